"""Win rates: intervals that hold the truth near 0 and 1, and none where nothing is known; what commands print of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, norm, t

from launch.cli import main
from scaling.errors import TableError
from scaling.wilson import share_interval, wilson
from scaling.win_rates import win_rates


def table_of(shares: np.ndarray, trainings: int = 1) -> pd.DataFrame:
    """Battles of "a" against "b", a prompt for each of ``shares`` (of two battles), the same in all trainings."""
    rows = [
        (f"r{training}", f"p{prompt}", "a", "b", "left" if 2 * share > battle else "right")
        for training in range(trainings)
        for prompt, share in enumerate(shares)
        for battle in range(2)
    ]
    return pd.DataFrame(rows, columns=["run", "prompt", "left", "right", "outcome"])


@pytest.mark.parametrize(("prompts", "rate"), [(10, 0.85), (10, 0.95), (25, 0.95), (100, 0.5)])
def test_one_battle_a_prompt_covers(prompts: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    bounds = np.array([share_interval((rng.random(prompts) < rate).astype(float), 0.95) for _ in range(2000)])
    assert np.mean((bounds[:, 0] <= rate) & (rate <= bounds[:, 1])) > 0.905
    assert (bounds[:, 1] > bounds[:, 0]).all()


def test_shares_of_many_battles_cover() -> None:
    """Ties, many battles a prompt, prompts that differ: more than yes and no, fewer prompts than a normal needs."""
    rng = np.random.default_rng(1)
    for draw, mean in (
        (lambda: rng.choice([0, 0.5, 1], 10, p=[0.1, 0.7, 0.2]), 0.55),
        (lambda: rng.binomial(8, rng.beta(2, 1, 10)) / 8, 2 / 3),
        (lambda: rng.binomial(20, 0.97, 25) / 20, 0.97),
        (lambda: rng.binomial(20, 0.6, 40) / 20, 0.6),
    ):
        bounds = np.array([share_interval(draw(), 0.95) for _ in range(1500)])
        assert 0.93 < np.mean((bounds[:, 0] <= mean) & (mean <= bounds[:, 1])) < 0.995


def test_wilson_is_scipys() -> None:
    for won, n, level in ((0, 12, 0.95), (1, 12, 0.9), (12, 12, 0.95), (7, 12, 0.99)):
        expected = binomtest(won, n).proportion_ci(level, method="wilson")
        assert wilson(won / n, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wins_without_exception_have_an_interval() -> None:
    expected = binomtest(12, 12).proportion_ci(0.95, method="wilson")
    for trainings in (1, 3):
        (row,) = win_rates(table_of(np.ones(12), trainings), "b", trainings="run", draws=200).rows
        assert row.rate == 1 and (row.low, row.high) == pytest.approx((expected.low, 1))
    (row,) = win_rates(table_of(np.zeros(12)), "b").rows
    assert (row.low, row.high) == pytest.approx((0, 1 - expected.low))


def test_trainings_never_narrow_the_interval_of_prompts() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        shares = rng.choice([0, 0.5, 1], 15, p=[0.03, 0.1, 0.87])
        low, high = share_interval(shares, 0.95)
        (row,) = win_rates(table_of(shares, 2), "b", trainings="run", draws=200).rows
        assert row.rate == pytest.approx(shares.mean())
        assert row.low <= low + 1e-12 and row.high >= high - 1e-12


def test_one_prompt_says_nothing_of_others() -> None:
    for trainings in (1, 3):
        found = win_rates(table_of(np.array([0.5]), trainings), "b", trainings="run", draws=200)
        assert np.isnan([found.rows[0].low, found.rows[0].high]).all() and "one prompt" in found.how
    # One question of two is asked of a single prompt.
    table = table_of(np.array([1, 0.5, 1, 0])).assign(question="x")
    table = pd.concat([table, table[table["prompt"] == "p0"].assign(question="y")])
    asked, alone = win_rates(table, "b", by=("question",)).rows
    assert np.isfinite(asked.low) and np.isnan(alone.low)


def test_a_single_resample_has_no_spread() -> None:
    with pytest.raises(TableError, match="bootstrap=1: expected 0, or 2 or more"):
        win_rates(table_of(np.array([1, 1, 0.5, 1, 0]), 2), "b", trainings="run", draws=1)


def test_commands_print_no_interval_without_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, one = tmp_path / "b.csv", tmp_path / "one.csv"
    table = table_of(np.ones(12))
    table.to_csv(whole, index=False)
    table.assign(prompt="p").to_csv(one, index=False)
    for command, shown in (("elo", "100.0 %  [75.8, 100.0]"), ("winrate", "0.0 %    [0.0, 24.2]")):
        assert main([command, str(whole), "--against", "a", "--bootstrap", "0"]) == 0
        assert shown in capsys.readouterr().out
        assert main([command, str(one), "--against", "a", "--bootstrap", "0"]) == 0
        told = capsys.readouterr().out
        assert "1 prompt, no intervals, since one prompt says nothing of others" in told and " 0.0," not in told
        assert main([command, str(one), "--against", "a", "--bootstrap", "0", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        (row,) = found["win_rates" if command == "elo" else "rows"]
        assert row["low"] is None and row["high"] is None


def taste(rng: np.random.Generator, voters: int, zipf: float, spread: float) -> pd.DataFrame:
    """70 battles of "a" against an equal "b" on 60 prompts, by voters of whom the first may vote most."""
    share = 1 / np.arange(1, voters + 1) ** zipf
    voter = rng.choice(voters, 70, p=share / share.sum())
    gap = rng.normal(0, spread, voters)[voter]
    outcome = np.where(rng.random(70) < 1 / (1 + np.exp(-gap)), "left", "right")
    columns = {"prompt": rng.integers(60, size=70), "left": "a", "right": "b", "outcome": outcome}
    return pd.DataFrame({**columns, "voter": voter})


@pytest.mark.parametrize(("voters", "zipf"), [(12, 0.0), (12, 1.0), (5, 0.0)])
def test_tastes_of_few_voters_are_in_the_interval(voters: int, zipf: float) -> None:
    rng = np.random.default_rng(0)
    held: dict[tuple[str, ...], list[bool]] = {("prompt",): [], ("prompt", "voter"): []}
    for _ in range(150):
        table = taste(rng, voters, zipf, 1.4)
        for cluster, inside in held.items():
            (row,) = win_rates(table, "b", cluster=cluster, draws=0).rows
            inside.append(row.low <= 0.5 <= row.high)
    assert np.mean(held["prompt", "voter"]) >= 0.92 and np.mean(held["prompt",]) <= 0.9


def test_two_kinds_of_clusters_are_jackknifed_and_added() -> None:
    table = taste(np.random.default_rng(3), 8, 0.5, 2.0)
    score = (table["outcome"] == "left").to_numpy(float)
    weight = 1 / table.groupby("prompt")["prompt"].transform("size").to_numpy(float)
    mean = (weight * score).sum() / weight.sum()

    def left_out(*columns: str) -> tuple[float, float]:
        groups = [g.index for _, g in table.groupby(list(columns))]
        kept = [np.setdiff1d(table.index, rows) for rows in groups]
        means = np.array([(weight[rows] * score[rows]).sum() / weight[rows].sum() for rows in kept])
        sizes = np.array([weight[rows].sum() for rows in groups])
        spread = ((means - mean) ** 2).sum() * (len(groups) - 1) / len(groups)
        return spread, sizes.sum() ** 2 / (sizes**2).sum()

    (of_prompts, prompts), (of_voters, voters) = left_out("prompt"), left_out("voter")
    variance = of_prompts + of_voters - left_out("prompt", "voter")[0]
    assert variance > max(of_prompts, of_voters)
    freedom = variance**2 / (of_prompts**2 / (prompts - 1) + of_voters**2 / (voters - 1))
    n = mean * (1 - mean) / variance * (norm.ppf(0.975) / t.ppf(0.975, freedom)) ** 2
    (row,) = win_rates(table, "b", cluster=("prompt", "voter")).rows
    assert (row.low, row.high) == pytest.approx(wilson(mean, max(n, voters), 0.95))


def test_commands_cluster_win_rates_by_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = taste(np.random.default_rng(0), 5, 0.0, 2.0)
    table.to_csv(tmp_path / "v.csv", index=False)
    ends = []
    for words in (["elo"], ["elo", "--cluster", "prompt,voter"], ["winrate", "--cluster", "prompt,voter"]):
        shared = [str(tmp_path / "v.csv"), "--against", "a", "--bootstrap", "0"]
        assert main([words[0], *shared, *words[1:]]) == 0
        told = capsys.readouterr().out
        assert ("the prompts and 5 voters (Wilson's)" in told) == ("--cluster" in words)
        assert main([words[0], *shared, *words[1:], "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        (row,) = found["win_rates" if words[0] == "elo" else "rows"]
        ends.append((row["low"], row["high"]) if words[0] == "elo" else (1 - row["high"], 1 - row["low"]))
    assert ends[1][1] - ends[1][0] > 1.3 * (ends[0][1] - ends[0][0]) and ends[2] == pytest.approx(ends[1])
    assert found["clusters"] == {"prompt": table["prompt"].nunique(), "voter": 5}
    assert main(["winrate", str(tmp_path / "v.csv"), "--against", "a", "--cluster", ""]) == 2
    assert "cluster='': expected one column or two" in capsys.readouterr().err
    table.assign(voter="ada").to_csv(tmp_path / "one.csv", index=False)
    assert main(["winrate", str(tmp_path / "one.csv"), "--against", "a", "--cluster", "prompt,voter"]) == 0
    assert "no intervals, since one voter says nothing of others" in capsys.readouterr().out


def test_an_opponent_without_an_interval_has_an_empty_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.concat([table_of(np.ones(4)), table_of(np.ones(1)).iloc[:1].assign(right="c")])
    table.to_csv(tmp_path / "b.csv", index=False)
    assert main(["elo", str(tmp_path / "b.csv"), "--against", "a", "--bootstrap", "0"]) == 0
    told = capsys.readouterr().out
    assert "nan" not in told and [line for line in told.splitlines() if line.split() == ["c", "100.0", "%", "1"]]
