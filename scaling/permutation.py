"""p-values of correlations by permutation: of rows, or of whole groups of rows that depend on each other."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy import stats

from scaling.coefficients import Control, Kind, coefficient
from scaling.dependence import Groups

EXACT_ROWS = 8
"""Up to this many rows all permutations are counted (8! = 40,320); above, as many random ones as asked for."""
PAIRS = 50_000_000
"""Of rows, compared for Kendall's at most, which takes rows² of them for each permutation; at least 999 of these."""


def orders(groups: Groups, permutations: int, seed: int) -> np.ndarray:
    """Orders ``[P, rows]`` of the rows: all up to EXACT_ROWS rows that stand alone, else random ones.

    With groups, whole groups change places and rows do within them (``Groups.permutations``), so that what rows of a
    group share stays together. For groups of equal size.
    """
    if groups.rows <= EXACT_ROWS and not groups.index:
        return np.array(list(itertools.permutations(range(groups.rows))))
    return groups.permutations(permutations, np.random.default_rng(seed))


def permutation_p(kind: Kind, x: np.ndarray, y: np.ndarray, groups: Groups, order: np.ndarray) -> tuple[float, str]:
    """Two-sided p of a coefficient over ``order [P, rows]``, as ``orders`` gives them, and what was permuted."""
    rows = len(x)
    exact = rows <= EXACT_ROWS and not groups.index
    if kind == "kendall" and not exact:
        order = order[: max(PAIRS // rows**2, 999)]
    r = abs(float(coefficient(kind, x, y, np.ones((1, rows)), Control.nothing(rows))[0]))
    others = np.abs(_taus(x, y, order) if kind == "kendall" else _products(kind, x, y, order))
    extreme = int((others >= r - 1e-12).sum())
    if exact:
        return extreme / len(order), "exact permutation"
    what = f" of {' and '.join(groups.index)}" if groups.index else ""
    return (extreme + 1) / (len(order) + 1), f"random permutation{what}"


def _products(kind: Kind, x: np.ndarray, y: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Pearson's, or Spearman's, of ``y`` in each order ``[P, rows]`` with ``x``."""
    if kind == "spearman":
        x, y = stats.rankdata(x), stats.rankdata(y)
    x, y = x - x.mean(), y - y.mean()
    found: np.ndarray = (y / math.sqrt(y @ y))[order] @ (x / math.sqrt(x @ x))
    return found


def _taus(x: np.ndarray, y: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of ``y`` in each order ``[P, rows]`` with ``x``."""
    by_x = np.argsort(x, kind="stable")
    ranks = stats.rankdata(y, method="dense").astype(np.int16)[order][:, by_x]
    sorted_x = x[by_x]
    score = np.zeros(len(order))
    for first in range(len(x) - 1):
        later = first + 1 + int(np.searchsorted(sorted_x[first + 1 :], sorted_x[first], side="right"))
        score += np.sign(ranks[:, later:] - ranks[:, first : first + 1]).sum(axis=1, dtype=np.int64)
    untied = [(np.sign(column[:, None] - column[None, :]) ** 2).sum() / 2 for column in (x, y)]
    return score / math.sqrt(untied[0] * untied[1])
