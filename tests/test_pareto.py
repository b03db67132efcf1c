"""Pareto fronts against literal peeling, and what must hold of any."""

from __future__ import annotations

import numpy as np
import pytest

from scaling.pareto import fronts


def peeled(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """The paper's words: take away what nothing left dominates, count, repeat."""
    out = np.zeros(len(up), dtype=int)
    left, front = set(range(len(up))), 0
    while left:
        front += 1
        best = {
            i
            for i in left
            if not any(up[j] >= up[i] and down[j] <= down[i] and (up[j] > up[i] or down[j] < down[i]) for j in left)
        }
        for i in best:
            out[i] = front
        left -= best
    return out


@pytest.mark.parametrize("values", [2, 4, 30, 10**6])
def test_fronts_are_those_of_peeling(values: int) -> None:
    rng = np.random.default_rng(values)
    up, down = rng.integers(values, size=(2, 5, 6, 23)).astype(float)  # few values: many ties and equal points
    expected = [[peeled(up[a, b], down[a, b]) for b in range(6)] for a in range(5)]
    np.testing.assert_array_equal(fronts(up, down), expected)


def test_chains_and_antichains() -> None:
    line = np.arange(9.0)
    np.testing.assert_array_equal(fronts(line, -line), np.arange(9, 0, -1))  # one beats the next in both
    np.testing.assert_array_equal(fronts(line, line), np.ones(9))  # each trades one score for the other
    np.testing.assert_array_equal(fronts(np.zeros(4), np.zeros(4)), np.ones(4))
    np.testing.assert_array_equal(fronts(np.array([1.0, 1.0]), np.array([2.0, 3.0])), [1, 2])
    np.testing.assert_array_equal(fronts(np.array([[3.0]]), np.array([[1.0]])), [[1]])


def test_only_order_counts() -> None:
    up, down = np.random.default_rng(0).normal(size=(2, 4, 40))
    found = fronts(up, down)
    np.testing.assert_array_equal(fronts(np.exp(up), down**3), found)
    np.testing.assert_array_equal(fronts(-down, -up), found)
    assert (np.sort(np.unique(found[0])) == np.arange(1, found[0].max() + 1)).all()
