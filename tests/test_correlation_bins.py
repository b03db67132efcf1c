"""Bins beside their mean: against Williams' test, picked by chance and for cause."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scaling.bins import answer, compare_bins
from scaling.dependence import Groups


def williams(x: np.ndarray, mean: np.ndarray, score: np.ndarray) -> float:
    """p that two correlations with one column are equal: Williams 1959, as Steiger 1980 writes it (eq. 7)."""
    jk, jh, kh = (np.corrcoef(a, b)[0, 1] for a, b in ((score, x), (score, mean), (x, mean)))
    rows = len(x)
    size = 1 - jk**2 - jh**2 - kh**2 + 2 * jk * jh * kh
    middle = (jk + jh) / 2
    bottom = 2 * (rows - 1) / (rows - 3) * size + middle**2 * (1 - kh) ** 3
    t = (jk - jh) * np.sqrt((rows - 1) * (1 + kh) / bottom)
    return float(2 * stats.t.sf(abs(t), rows - 3))


def losses(rng: np.random.Generator, rows: int, count: int = 8) -> np.ndarray:
    return rng.normal(size=(rows, 1)) + rng.normal(size=(rows, count))


def test_p_of_a_bin_is_williams() -> None:
    rng = np.random.default_rng(0)
    bins = losses(rng, 400)
    mean = bins.mean(axis=1)
    score = -mean - 0.2 * bins[:, 2] + rng.normal(size=400)
    found = compare_bins(mean, bins, score).rows["pearson"]
    for place, row in enumerate(found):
        known = williams(bins[:, place], mean, score)
        assert stats.norm.isf(row.p / 2) == pytest.approx(stats.norm.isf(known / 2), rel=0.1, abs=0.3)
        r = [np.corrcoef(column, score)[0, 1] for column in (bins[:, place], mean)]
        assert row.difference == pytest.approx(np.arctanh(r[1]) - np.arctanh(r[0]), abs=1e-9)
        assert row.low < row.difference < row.high and (row.low > 0) == (row.difference > 0 and row.p < 0.05)
        assert row.p_best >= row.p - 0.01


def test_the_best_of_many_is_not_taken_for_better() -> None:
    """A score that has nothing to do with any loss: of eight bins one is often ahead by its own p."""
    rng, studies = np.random.default_rng(1), 120
    groups = Groups.of(30, {"ladder": np.repeat(np.arange(10), 3)})
    alone = picked = 0
    for study in range(studies):
        bins = rng.normal(size=(30, 8))
        score = rng.normal(size=10)[np.repeat(np.arange(10), 3)] + rng.normal(size=30)
        found = compare_bins(bins.mean(axis=1), bins, score, groups=groups, kinds=("pearson",), seed=study)
        rows = found.rows["pearson"]
        alone += any(row.p < 0.05 for row in rows)
        picked += any(row.p_best < 0.05 for row in rows)
    assert picked / studies <= 0.1 < alone / studies


def test_the_bin_that_matters_is_found_and_told() -> None:
    rng = np.random.default_rng(2)
    bins = losses(rng, 60)
    score = -bins[:, 5] + 0.3 * rng.normal(size=60)
    groups = Groups.of(60, {"ladder": np.repeat(np.arange(20), 3)})
    found = compare_bins(bins.mean(axis=1), bins, score, names=[f"b{k}" for k in range(8)], groups=groups)
    for kind in ("pearson", "spearman", "kendall"):
        assert found.best(kind).name == "b5" and found.best(kind).p_best < 0.01
    assert found.r2["b5"] > found.r2["mean"] + 0.2
    text = answer(found, "pearson", "Elo", "t = 0.69")
    assert "t = 0.69 goes with Elo most" in text and "more than the mean does (p = " in text
    assert f"R² on groups left out {found.r2['b5']:.2f} against {found.r2['mean']:.2f}" in text
    told = found.to_json()
    assert set(told) == {"mean", "pearson", "spearman", "kendall", "r2_left_out"}


def test_no_better_bin_is_told() -> None:
    rng = np.random.default_rng(3)
    bins = losses(rng, 200)
    score = -bins.mean(axis=1) + 0.1 * rng.normal(size=200)
    found = compare_bins(bins.mean(axis=1), bins, score)
    assert answer(found, "spearman", "Elo", "t = 0.1").startswith("No bin of t goes with Elo more than the mean does")
