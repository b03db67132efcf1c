"""Runs that only won or only lost: their ranks are a sign test's; and runs that never met, which are rated apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from elo_cases import battles

from launch.cli import main
from scaling.battle_counts import cluster_index, count_battles
from scaling.elo import rate
from scaling.separation import separated, signs

COLUMNS = ["prompt", "left", "right", "outcome"]


def one_way(*pairs: tuple[str, str, int]) -> pd.DataFrame:
    """(winner, loser, battles), each battle on a prompt of its own."""
    rows = [(winner, loser) for winner, loser, count in pairs for _ in range(count)]
    return pd.DataFrame([(f"p{i}", *row, "left") for i, row in enumerate(rows)], columns=COLUMNS)


def surely(table: pd.DataFrame, elo: dict[str, float]) -> set[tuple[str, str]]:
    """Pairs of which a sign test is sure, the higher first."""
    counted = count_battles(table)
    ratings = np.array([elo[name] for name in counted.names])
    _, sure = signs(counted, counted.clusters(*cluster_index(table, "prompt")), ratings, 0.95)
    return {(counted.names[i], counted.names[j]) for i, j in np.argwhere(sure) if ratings[i] > ratings[j]}


def test_a_sign_test_counts_wins_over_those_that_are_no_worse() -> None:
    elo = {"a": 1400.0, "b": 1100.0, "c": 800.0}
    # Three pairs: 3 · 2^(1 − n) is at most 0.05 from n = 7 on.
    assert surely(one_way(("a", "b", 7), ("b", "c", 7)), elo) == {("a", "b"), ("b", "c"), ("a", "c")}
    assert surely(one_way(("a", "b", 6), ("b", "c", 7)), elo) == {("b", "c"), ("a", "c")}
    assert surely(one_way(("a", "c", 30), ("b", "c", 7)), elo) == {("a", "c"), ("b", "c")}  # a and b never met
    assert surely(one_way(("a", "b", 7), ("a", "b", 0), ("b", "c", 2)).assign(prompt="p"), elo) == set()
    tied = pd.concat([one_way(("a", "b", 9)), battles(3, 3, 1, "b", "c")])
    assert surely(tied, elo) == {("a", "b"), ("a", "c")}  # nine wins over b, who is no worse than c
    assert surely(tied, elo | {"b": 800.0, "c": 1100.0}) == {("a", "b")}  # none over one as good as c


def test_given_ratings_are_of_one_group() -> None:
    table = one_way(("a", "b", 3), ("c", "b", 2), ("c", "a", 1))
    assert separated(count_battles(table)) == (("a",), ("b",), ("c",))
    assert separated(count_battles(table, pinned={"a": 0.5, "b": 0.0})) == (("a", "b"), ("c",))
    assert rate(table, draws=0, anchors={"a": 1000.0, "b": 900.0}).separated == (("a", "b"), ("c",))


def test_a_newcomer_that_won_thrice_claims_no_rank() -> None:
    """Five equal runs with 300 battles and a sixth as good: who claims an order is wrong; at most 5 % may."""
    rng = np.random.default_rng(1)
    claimed = separate = 0
    for seed in range(60):
        old = rng.integers(5, size=300)
        pairs = np.stack([old, (old + rng.integers(1, 5, size=300)) % 5], axis=1)
        pairs = np.concatenate([pairs, np.stack([np.full(3, 5), rng.integers(5, size=3)], axis=1)])
        won = np.where(rng.random(303) < 0.5, "left", "right")
        won[300:] = won[300]  # the studies in which the three end alike
        prompts = np.concatenate([rng.integers(100, size=300), range(3)])
        table = pd.DataFrame({"prompt": prompts, "left": pairs[:, 0], "right": pairs[:, 1], "outcome": won})
        found = rate(table, draws=100, seed=seed)
        separate += bool(found.separated)
        claimed += any(rating.rank_low > 1 or rating.rank_high < 6 for rating in found.ratings)
    assert separate == 60 and claimed <= 7  # of 60 at 5 % more than 7 come up once in a hundred times


def test_an_unbeaten_run_is_first_from_enough_wins_on() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"p{i}", "b", "c", "left" if rng.random() < 0.7 else "right") for i in range(60)]
    ranks = {}
    for wins in (4, 12):
        more = [(f"p{i}", "new", other, "left") for i in range(wins) for other in ("b", "c")]
        found = rate(pd.DataFrame(rows + more, columns=COLUMNS), draws=200)
        ranks[wins] = {rating.name: (rating.rank_low, rating.rank_high) for rating in found.ratings}
    assert ranks[4]["new"] == (1, 3) and ranks[12] == {"new": (1, 1), "b": (2, 2), "c": (3, 3)}


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """Two questions; in the second, runs of two groups."""
    table = pd.concat(
        [
            battles(9, 5, 2).assign(question="x"),
            battles(8, 6, 3).assign(question="y"),
            battles(3, 7, 2, "c", "d").assign(question="y"),
        ]
    )
    table.to_csv(tmp_path / "apart.csv", index=False)
    return tmp_path / "apart.csv"


def test_runs_that_never_met_are_rated_apart(apart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["elo", str(apart), "--pool", "--bootstrap", "100", "--where", "question=y"]
    assert main([*words, "--json", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "do not compare" in found["note"] and [table["met_group"] for table in found["tables"]] == ["1", "2"]
    assert [[row["name"] for row in table["ratings"]] for table in found["tables"]] == [["a", "b"], ["d", "c"]]
    alone = pd.read_csv(apart).query("left == 'c'")
    expected = rate(alone, draws=100).to_json()
    assert {key: value for key, value in found["tables"][1].items() if key != "met_group"} == expected
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["elo_group1.pdf", "elo_group1.png", "elo_group2.pdf", "elo_group2.png", "ratings.csv"]
    assert list(pd.read_csv(tmp_path / "out" / "ratings.csv")["met_group"]) == [1, 1, 2, 2]

    assert main([*words, "--anchor", "z=1"]) == 2
    assert "anchor='z': no battle of it; expected one of a, b, c, d" in capsys.readouterr().err


def test_groups_are_told_in_words_and_given_ratings_join_them(apart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["elo", str(apart), "--bootstrap", "0", "--by", "question", "--against", "a"]
    assert main(words) == 0
    told = capsys.readouterr().out
    heads = [line for line in told.splitlines() if line.startswith("question=")]
    assert heads == ["question=x, met_group=1", "question=y, met_group=1", "question=y, met_group=2"]
    assert told.count("their ratings do not compare") == 1
    assert main([*words[:4], "--where", "question=y", "--anchor", "b=1000", "--anchor", "c=1000", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["ratings"]] == ["d", "a", "b", "c"]
