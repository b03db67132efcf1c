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


def test_intervals_are_the_wider_of_fishers_z_and_the_jackknife() -> None:
    even = np.linspace(0, 1, 12)
    for (x, y), wider in (
        (pairs(12, 0.9, 3), "jackknife over 12 rows, t with 11 df"),
        ((even, even + 0.1 * (-1.0) ** np.arange(12)), "Fisher z"),
    ):
        found = correlate(x, y).pearson
        known = stats.pearsonr(x, y).confidence_interval(0.95)
        left = np.array([np.arctanh(np.corrcoef(np.delete(x, k), np.delete(y, k))[0, 1]) for k in range(12)])
        reach = stats.t.ppf(0.975, 11) * np.sqrt(11 / 12 * ((left - left.mean()) ** 2).sum())
        jackknife = np.tanh(np.arctanh(found.r) + np.array([-reach, reach]))
        assert (found.low, found.high) == pytest.approx((min(known.low, jackknife[0]), max(known.high, jackknife[1])))
        assert found.interval == wider


def test_few_rows_use_fishers_z() -> None:
    x, y = pairs(7, 0.8, 0)
    found = correlate(x, y)
    known = stats.pearsonr(x, y).confidence_interval(0.95)
    assert (found.pearson.low, found.pearson.high) == pytest.approx((known.low, known.high), abs=1e-9)
    assert found.pearson.interval == found.spearman.interval == "Fisher z"
    assert found.kendall.interval == "jackknife over 7 rows, t with 6 df"
    perfect = correlate(np.arange(6.0), np.arange(6.0) ** 3)
    for ranked in (perfect.spearman, perfect.kendall):
        assert ranked.r == pytest.approx(1.0) and ranked.low < 0.8 and ranked.high == pytest.approx(1.0)
    three = correlate(np.array([1.0, 2, 3]), np.array([2.0, 1, 3]))
    assert (three.pearson.low, three.pearson.high) == (-1, 1) and "fewer than 4" in three.pearson.interval
    four = correlate(np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 3, 4])).kendall
    assert (four.low, four.high) == (-1, 1) and "fewer than 5" in four.interval


@pytest.mark.parametrize(
    ("rows", "r", "freedom", "least"),
    [
        (6, 0.7, np.inf, 0.92),
        (15, -0.98, np.inf, 0.94),
        (20, -0.9, np.inf, 0.94),
        (40, 0.7, np.inf, 0.93),
        (36, 0.0, 3, 0.91),
    ],
)
def test_intervals_cover(rows: int, r: float, freedom: float, least: float) -> None:
    """Fisher's z alone is short for Kendall's near ±1, and for Pearson's where tails are heavy (t with 3 df)."""
    studies = 200
    hits = np.zeros(3)
    order = np.arange(rows)[None]
    for study in range(studies):
        x, y = pairs(rows, r, study)
        far = np.sqrt(3 / np.random.default_rng(study).chisquare(3, rows)) if freedom == 3 else 1.0
        found = correlate(x * far, y * far, order=order)
        rank_truth = 6 / np.pi * np.arcsin(r / 2)  # Spearman's of a bivariate normal, Pearson 1907
        hits += [
            found.pearson.low <= r <= found.pearson.high,
            found.spearman.low <= rank_truth <= found.spearman.high,
            found.kendall.low <= 2 / np.pi * np.arcsin(r) <= found.kendall.high,  # Kendall 1948
        ]
    assert (hits / studies >= least).all()


def test_useless_columns_are_refused() -> None:
    with pytest.raises(TableError, match="rows=2: too few"):
        correlate(np.arange(2.0), np.arange(2.0))
    with pytest.raises(TableError, match="y=1 in every row"):
        correlate(np.arange(5.0), np.ones(5))
