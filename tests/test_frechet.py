"""Fréchet distances against scipy's matrix root, closed forms, and rows repeated by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from scaling.errors import TableError
from scaling.frechet import distance, distances, fit_gaussian


def by_definition(first: np.ndarray, second: np.ndarray) -> float:
    """Heusel et al. 2017, with scipy's general matrix square root."""
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    gap = first.mean(0) - second.mean(0)
    return float(gap @ gap + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real))


@pytest.mark.parametrize(("rows", "others", "width"), [(60, 80, 5), (9, 50, 12), (40, 7, 12), (6, 7, 20)])
def test_is_the_definition(rows: int, others: int, width: int) -> None:
    rng = np.random.default_rng(rows)
    mix = rng.normal(size=(width, width))
    first, second = rng.normal(size=(rows, width)) @ mix, 3 + 2 * rng.normal(size=(others, width)) @ mix
    reference = fit_gaussian(second)
    # sqrtm of a product without full rank is only good to half the digits
    exact = rows > width and others > width
    assert distance(first, reference) == pytest.approx(by_definition(first, second), rel=1e-9 if exact else 1e-5)
    assert distance(second, reference) == pytest.approx(0, abs=1e-9 * reference.trace)
    assert distance(first, reference) == pytest.approx(distance(second, fit_gaussian(first)), rel=1e-9)


def test_closed_forms() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6))
    reference = fit_gaussian(x)
    shift = np.arange(6.0)
    assert distance(x + shift, reference) == pytest.approx(shift @ shift)
    # scaled about the mean by s: tr Σ·(s − 1)²
    scaled = x.mean(0) + 3 * (x - x.mean(0))
    assert distance(scaled, reference) == pytest.approx(4 * np.trace(np.cov(x, rowvar=False)))
    # one axis: (m₁ − m₂)² + (s₁ − s₂)²
    a, b = rng.normal(size=(30, 1)), 2 + 3 * rng.normal(size=(40, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert distance(a, fit_gaussian(b)) == pytest.approx(expected)
    # a point: its Gaussian has no spread, and its distance to x is that of the means plus tr Σ
    point = fit_gaussian(np.ones((3, 6)))
    assert distance(x, point) == pytest.approx(((x.mean(0) - 1) ** 2).sum() + np.trace(np.cov(x, rowvar=False)))


@pytest.mark.parametrize(("rows", "width"), [(30, 4), (8, 25)])
def test_counts_repeat_rows(rows: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, reference = 100 + rng.normal(size=(rows, width)), fit_gaussian(100 + rng.normal(size=(50, width)))
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=7)
    expected = [distance(np.repeat(x, count, axis=0), reference) for count in counts]
    np.testing.assert_allclose(distances(x, counts, reference), expected, rtol=1e-9)
    monkeypatch.setattr("scaling.frechet.CHUNK_BYTES", 1)
    np.testing.assert_allclose(distances(x, counts, reference), expected, rtol=1e-9)


def test_what_is_no_sample_is_refused() -> None:
    x = np.random.default_rng(0).normal(size=(10, 3))
    reference = fit_gaussian(x)
    with pytest.raises(TableError, match="4 wide; expected the reference's 3"):
        distance(np.ones((5, 4)), reference)
    with pytest.raises(TableError, match="not finite in row 2"):
        fit_gaussian(np.array([[1.0], [np.nan]]))
    with pytest.raises(TableError, match="2 or more rows"):
        fit_gaussian(x[:1])
    with pytest.raises(TableError, match=r"counts=\(1, 9\)"):
        distances(x, np.ones((1, 9)), reference)
    with pytest.raises(TableError, match="2 or more rows in each resample"):
        distances(x, np.eye(10), reference)
