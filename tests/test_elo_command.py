"""``mmdit elo``: what it prints, as text and as JSON, what it writes, what it refuses and what it warns of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from elo_cases import battles, simulate
from matplotlib.colors import to_hex

from launch.cli import main
from scaling.win_bars import baseline_frame, win_bars
from scaling.win_rates import win_rates

ASKED = ("prompt following", "aesthetics", "typography")


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three questions about four runs, by three people."""
    rng = np.random.default_rng(0)
    parts = [
        simulate(size * np.array([0.8, 0.1, -0.2, -0.7]), 40, 6, 0.4, seed=seed).assign(question=question, seed=0)
        for seed, (question, size) in enumerate(zip(ASKED, (1.0, 0.0, 2.0), strict=True))
    ]
    table = pd.concat(parts)
    table["judge"] = rng.choice(["ada", "bob", "eve"], len(table))
    path = tmp_path_factory.mktemp("votes") / "votes.csv"
    table.to_csv(path, index=False)
    return path


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, str]:
    assert main(["elo", *map(str, words)]) == 0
    out, err = capsys.readouterr()
    return out, err


def test_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    battles(30, 10, 5).to_csv(tmp_path / "b.csv", index=False)
    out, err = printed(capsys, tmp_path / "b.csv", "--bootstrap", 100, "--json")
    found = json.loads(out)
    assert err == "" and out.count("\n") == 1
    assert [row["name"] for row in found["ratings"]] == ["a", "b"]
    assert {"name", "elo", "low", "high", "battles", "rank", "rank_low", "rank_high"} <= set(found["ratings"][0])
    assert found["ratings"][0]["battles"] == 45 and found["intervals"] == "bootstrap" and found["draws"] == 100
    text, _ = printed(capsys, tmp_path / "b.csv", "--bootstrap", 100)
    assert "45 battles on 45 prompts, 100 bootstraps over 45 prompts" in text


def test_names_are_text_whatever_they_look_like(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders of checkpoints: 0010000 and 10000 are two runs, and 0010000 is the same one on both sides."""
    rng = np.random.default_rng(0)
    pairs = [("0020000", "base"), ("0020000", "0010000"), ("0010000", "base"), ("10000", "0010000")]
    rows = [(k, *pairs[k % 4], rng.choice(["left", "right"]), f"0{k % 3}") for k in range(180)]
    table = pd.DataFrame(rows, columns=["prompt", "left ", "right", "outcome", "checkpoint"])
    table.to_csv(tmp_path / "b.csv", index=False)
    words = ("--bootstrap", 0, "--against", "0010000", "--by", "checkpoint", "--json")
    found = json.loads(printed(capsys, tmp_path / "b.csv", *words)[0])
    assert [part["checkpoint"] for part in found["tables"]] == ["00", "01", "02"]
    for part in found["tables"]:
        assert {row["name"] for row in part["ratings"]} == {"0020000", "0010000", "10000", "base"}
    assert {row["opponent"] for row in found["win_rates"]} == {"0020000", "10000", "base"}


def test_pooling_is_never_silent(votes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, votes, "--bootstrap", 0, "--json")
    assert len(err.splitlines()) == 2 and "ratings" in json.loads(out)
    assert "3 questions rated as one (prompt following, aesthetics, typography); --by question rates each" in err
    assert "--where judge=" in err and "--where 'question=prompt following'" in err
    assert printed(capsys, votes, "--bootstrap", 0, "--pool")[1] == ""
    assert printed(capsys, votes, "--bootstrap", 0, "--by", "question", "--cluster", "prompt,judge")[1] == ""
    assert printed(capsys, votes, "--bootstrap", 0, "--by", "question,judge")[1] == ""


def test_a_table_for_each_question_is_that_of_its_rows(votes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, votes, "--by", "question", "--pool", "--bootstrap", 100, "--json")
    tables = json.loads(out)["tables"]
    assert [table["question"] for table in tables] == list(ASKED)
    alone, _ = printed(capsys, votes, "--where", f"question={ASKED[2]}", "--pool", "--bootstrap", 100, "--json")
    assert {key: value for key, value in tables[2].items() if key != "question"} == json.loads(alone)
    text, _ = printed(capsys, votes, "--by", "question", "--pool", "--bootstrap", 100)
    assert [line for line in text.splitlines() if line.startswith("question=")] == [f"question={q}" for q in ASKED]


def test_figures_tables_sides_and_next(votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (votes, "--by", "question", "--pool", "--bootstrap", 100, "--side-bias", "--anchor", "m0=1000")
    out, _ = printed(capsys, *words, "--against", "m0", "--next", 3, "--out", tmp_path / "out", "--json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "elo.pdf",
        "elo.png",
        "ratings.csv",
        "win_rates.csv",
        "win_rates.pdf",
        "win_rates.png",
    ]
    found = json.loads(out)
    assert all(table["anchors"] == {"m0": 1000.0} for table in found["tables"])
    assert all(table["effects"][0]["name"] == "left side" for table in found["tables"])
    drops = [row["drop"] for row in found["next"]]
    assert (
        len(drops) == 3
        and drops == sorted(drops, reverse=True)
        and {"question", "left", "right"} < set(found["next"][0])
    )
    assert len(found["win_rates"]) == 9 and found["against"] == "m0"
    written = pd.read_csv(tmp_path / "out" / "win_rates.csv")
    table = pd.read_csv(votes)
    for row in written.itertuples():
        own = table[(table["question"] == row.question) & (table[["left", "right"]] == row.opponent).any(axis=1)]
        own = own[(own[["left", "right"]] == "m0").any(axis=1)]
        won = (own["outcome"] == np.where(own["left"] == "m0", "left", "right")).sum()
        assert row.battles == len(own)
        assert row.low <= row.rate <= row.high
        # A prompt with two battles of the pair counts once, so that the rate of all battles is near, not the same.
        assert row.rate == pytest.approx((won + (own["outcome"] == "tie").sum() / 2) / len(own), abs=0.05)
    ratings = pd.read_csv(tmp_path / "out" / "ratings.csv")
    assert list(ratings.columns[:3]) == ["question", "name", "elo"] and len(ratings) == 12
    text, _ = printed(capsys, *words, "--against", "m0", "--next", 3)
    assert "left side: " in text and "battles to run next" in text and "m0 is 1000" in text


def test_bars_are_in_the_announcements_order(votes: Path) -> None:
    table = pd.read_csv(votes)
    mixed = pd.concat([table[table["question"] == question] for question in reversed(ASKED)])
    frame = baseline_frame(win_rates(mixed, "m0", by=("question",), draws=50))
    assert list(frame["question"])[:3] == list(ASKED)
    means = frame.groupby("opponent", sort=False)["rate"].mean()
    assert list(means) == sorted(means)
    (axes,) = win_bars(frame, "m0").axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(list(100 * frame["rate"]))
    assert [line for line in axes.lines if list(line.get_xdata()) == [50, 50]]
    assert axes.get_xlabel() == "win rate of m0 (%), ties as half"


@pytest.mark.parametrize("order", [ASKED, ASKED[::-1], ASKED[1:2]])
def test_a_question_has_one_colour_in_both_figures(
    votes: Path, order: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.read_csv(votes)
    pd.concat([table[table["question"] == question] for question in order]).to_csv(tmp_path / "v.csv", index=False)
    drawn: dict[str, Any] = {}
    monkeypatch.setattr("scaling.look.save", lambda figure, folder, name: drawn.update({name: figure}))
    (tmp_path / "out").mkdir()
    words = ["elo", str(tmp_path / "v.csv"), "--by", "question", "--pool", "--bootstrap", "0", "--against", "m0"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    colours = []
    for name in ("elo", "win_rates"):
        (legend,) = drawn[name].legends
        shown = zip(legend.get_texts(), legend.legend_handles, strict=True)
        got = {text.get_text(): to_hex(h.get_color() if name == "elo" else h.get_facecolor()) for text, h in shown}
        colours.append(got)
    assert colours[0] == colours[1] and set(colours[0]) == set(order) and len(set(colours[0].values())) == len(order)


def test_bad_input_is_one_line(votes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complaint(*words: str) -> str:
        assert main(["elo", str(votes), "--pool", "--bootstrap", "0", *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err

    assert "anchor='m0': expected NAME=ELO, as sd3=1000" in complaint("--anchor", "m0")
    assert complaint("--anchor", "m0", "--by", "question").startswith("mmdit: anchor='m0'")
    assert "'m0' is given twice" in complaint("--anchor", "m0=1", "--anchor", "m0=2")
    assert "anchor='z': no battle of it; expected one of m0, m1, m2, m3" in complaint("--anchor", "z=1000")
    assert "question=prompt following: anchor='z'" in complaint("--anchor", "z=1000", "--by", "question")
    assert "column='asked': not in the table" in complaint("--by", "asked")
    assert "column='juge': not in the table; did you mean 'judge'?" in complaint("--side-bias", "juge")
    assert "against='z': no battle with it" in complaint("--against", "z")
    assert "cluster='': expected one column or two" in complaint("--cluster", "")
    assert "is a file" in complaint("--out", str(votes))
