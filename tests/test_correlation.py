"""Correlations against scipy.stats, and how often their intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scaling.coefficients import KINDS, Control, coefficient
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
    assert found.kendall.r == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)

    def pearson(x: np.ndarray) -> float:
        return abs(np.corrcoef(x, y)[0, 1])

    def kendall(x: np.ndarray) -> float:
        return abs((np.sign(np.subtract.outer(x, x)) * np.sign(np.subtract.outer(y, y))).sum())

    for ours, statistic in ((found.pearson, pearson), (found.kendall, kendall)):
        test = stats.permutation_test(
            (x,),
            statistic,
            permutation_type="pairings",
            alternative="greater",
            n_resamples=np.inf if rows <= 8 else 2_000,
            rng=np.random.default_rng(0),
        )
        assert ours.p == pytest.approx(test.pvalue, abs=1e-12 if rows <= 8 else 0.015)
        assert ours.p_method == ("exact permutation" if rows <= 8 else "random permutation")


def test_a_weight_is_how_often_a_row_is_there() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, 30).astype(float)
    y = x + rng.integers(0, 9, 30)  # ties in both
    weights = rng.multinomial(30, np.full(30, 1 / 30), size=3).astype(float)
    known = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    for kind in KINDS:
        found = coefficient(kind, x, y, weights, Control.nothing(30))
        for r, counts in zip(found, weights, strict=True):
            rows = np.repeat(np.arange(30), counts.astype(int))
            assert r == pytest.approx(known[kind](x[rows], y[rows]).statistic, abs=1e-12), kind
    alone = np.eye(30)[:2] * 5
    assert all(np.isnan(coefficient(kind, x, y, alone, Control.nothing(30))).all() for kind in KINDS)


def test_few_rows_use_fishers_z() -> None:
    x, y = pairs(7, 0.8, 0)
    found = correlate(x, y).pearson
    known = stats.pearsonr(x, y).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9)
    assert found.interval == "Fisher z"
    perfect = correlate(np.arange(6.0), np.arange(6.0) ** 3)
    for ranked in (perfect.spearman, perfect.kendall):
        assert ranked.r == pytest.approx(1.0) and ranked.low < 0.8 and ranked.high == pytest.approx(1.0)
    three = correlate(np.array([1.0, 2, 3]), np.array([2.0, 1, 3]))
    assert (three.pearson.low, three.pearson.high) == (-1, 1) and "fewer than 4" in three.pearson.interval
    four = correlate(np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 3, 4])).kendall
    assert (four.low, four.high) == (-1, 1) and "fewer than 5" in four.interval


@pytest.mark.parametrize("rows", [6, 15, 40])
def test_intervals_cover(rows: int) -> None:
    studies = 200
    hits = np.zeros(3)
    for study in range(studies):
        x, y = pairs(rows, 0.7, study)
        found = correlate(x, y, draws=400, permutations=100)
        rank_truth = 6 / np.pi * np.arcsin(0.35)  # Spearman's of a bivariate normal, Pearson 1907
        hits += [
            found.pearson.low <= 0.7 <= found.pearson.high,
            found.spearman.low <= rank_truth <= found.spearman.high,
            found.kendall.low <= 2 / np.pi * np.arcsin(0.7) <= found.kendall.high,  # Kendall 1948
        ]
    assert (hits / studies >= 0.90).all()


def test_useless_columns_are_refused() -> None:
    with pytest.raises(TableError, match="rows=2: too few"):
        correlate(np.arange(2.0), np.arange(2.0))
    with pytest.raises(TableError, match="y=1 in every row"):
        correlate(np.arange(5.0), np.ones(5))
