"""Correlations against scipy.stats, and how often their intervals hold the truth."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from launch.stats import add_parsers
from scaling.correlation import correlate
from scaling.errors import TableError


def pairs(rows: int, r: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, noise = np.random.default_rng(seed).normal(size=(2, rows))
    return x, r * x + np.sqrt(1 - r * r) * noise


@pytest.mark.parametrize("rows", [5, 7, 30])
def test_coefficients_and_p_values_are_scipys(rows: int) -> None:
    x, y = pairs(rows, 0.5, rows)
    y[:2] = y[0]  # a tie
    found = correlate(x, y)
    assert found.pearson.r == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert found.spearman.r == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    test = stats.permutation_test(
        (x,),
        lambda x: abs(np.corrcoef(x, y)[0, 1]),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf if rows <= 8 else 5_000,
        rng=np.random.default_rng(0),
    )
    assert found.pearson.p == pytest.approx(test.pvalue, abs=1e-12 if rows <= 8 else 0.012)
    assert found.pearson.p_method == ("exact permutation" if rows <= 8 else "random permutation")


def test_few_rows_use_fishers_z() -> None:
    x, y = pairs(7, 0.8, 0)
    found = correlate(x, y).pearson
    known = stats.pearsonr(x, y).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9)
    assert found.interval == "Fisher z"
    perfect = correlate(np.arange(6.0), np.arange(6.0) ** 3).spearman
    assert perfect.r == pytest.approx(1.0) and perfect.low < 0.8 and perfect.high == pytest.approx(1.0)
    three = correlate(np.array([1.0, 2, 3]), np.array([2.0, 1, 3]))
    assert (three.pearson.low, three.pearson.high) == (-1, 1) and "fewer than 4" in three.pearson.interval


@pytest.mark.parametrize("rows", [6, 15, 40])
def test_intervals_cover(rows: int) -> None:
    studies = 200
    hits = np.zeros(2)
    for study in range(studies):
        x, y = pairs(rows, 0.7, study)
        found = correlate(x, y, draws=400, permutations=100)
        rank_truth = 6 / np.pi * np.arcsin(0.35)  # Spearman's of a bivariate normal, Pearson 1907
        hits += [
            found.pearson.low <= 0.7 <= found.pearson.high,
            found.spearman.low <= rank_truth <= found.spearman.high,
        ]
    assert (hits / studies >= 0.90).all()


def test_useless_columns_are_refused() -> None:
    with pytest.raises(TableError, match="rows=2: too few"):
        correlate(np.arange(2.0), np.arange(2.0))
    with pytest.raises(TableError, match="y=1 in every row"):
        correlate(np.arange(5.0), np.ones(5))


def test_correlate_command_prints_one_object(tmp_path, capsys) -> None:
    x, y = pairs(7, -0.9, 1)
    pd.DataFrame({"loss": x, "score": y}).to_csv(tmp_path / "t.csv", index=False)
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers())
    args = parser.parse_args(["correlate", str(tmp_path / "t.csv"), "--x", "loss", "--y", "score", "--json"])
    assert args.run(args) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 7 and found["pearson"]["r"] == pytest.approx(stats.pearsonr(x, y).statistic)
