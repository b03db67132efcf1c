"""Pearson's, Spearman's and Kendall's coefficients of weighted rows, many weightings at once, also given other columns.

A row's weight is how often it is there: all ones is the table itself, a zero leaves the row out, counts are a
resample. Each coefficient equals that of the table in which the rows are so repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["pearson", "spearman", "kendall"]
KINDS: tuple[Kind, ...] = ("pearson", "spearman", "kendall")
FLAT = 1e-10
"""Of a column's variance, below this share it counts as none: what rounding leaves of a constant."""


@dataclass(frozen=True)
class Control:
    """What is held fixed: ``columns [rows, k]`` float64, as powers up to ``degree``, and ``strata [rows]``, an index
    from 0 of rows that are compared only with each other (None: all with all)."""

    columns: np.ndarray
    degree: int = 1
    strata: np.ndarray | None = None

    @classmethod
    def nothing(cls, rows: int) -> Control:
        """Nothing held fixed."""
        return cls(np.zeros((rows, 0)))

    @property
    def parameters(self) -> int:
        """How many numbers are fitted beside the overall mean."""
        strata = 0 if self.strata is None else int(self.strata.max())
        return self.columns.shape[1] * self.degree + strata

    def design(self) -> np.ndarray:
        """Columns ``[rows, parameters]`` of the regression: strata but the first, powers of the scaled columns."""
        strata = [] if self.strata is None else list(np.eye(int(self.strata.max()) + 1)[self.strata].T[1:])
        powers = _powers([_scaled(column) for column in self.columns.T], self.degree)
        rows = len(self.columns)
        return np.stack([*strata, *powers], axis=1) if strata or powers else np.zeros((rows, 0))


def coefficient(kind: Kind, x: np.ndarray, y: np.ndarray, weights: np.ndarray, control: Control) -> np.ndarray:
    """One coefficient of ``x`` and ``y [rows]`` for each of ``weights [B, rows]``: float64 ``[B]``.

    NaN where a column, or what the control leaves of it, never changes.

    - Pearson: of the residuals of weighted least squares on the control's columns and their powers, and strata.
    - Spearman: the same of mid-ranks within the resample, the control's columns ranked too.
    - Kendall: tau-b over pairs of rows of one stratum; given columns, from the inverse of the matrix of taus (Kendall
      1942, eq. 3). It knows order only, so that powers of a column mean nothing to it and are left out.
    """
    if kind == "kendall":
        return _kendall(x, y, weights, control)
    if kind == "spearman":
        first, second = _ranks(x, weights), _ranks(y, weights)
        held = [_ranks(column, weights) for column in control.columns.T]
    else:
        first, second = _scaled(x)[None], _scaled(y)[None]
        held = [_scaled(column)[None] for column in control.columns.T]
    return _partial([first, second, *_powers(held, control.degree)], weights, control.strata)


def _scaled(column: np.ndarray) -> np.ndarray:
    """Mean 0, variance 1: so that sums of squares lose no digits."""
    spread = column.std()
    return (column - column.mean()) / spread if spread > 0 else column * 0.0


def _powers(columns: list[np.ndarray], degree: int) -> list[np.ndarray]:
    out = []
    for column in columns:
        centred = column - column.mean(axis=-1, keepdims=True)
        unit = centred / np.maximum(centred.std(axis=-1, keepdims=True), 1e-300)
        out += [unit**power for power in range(1, degree + 1)]
    return out


def _ranks(column: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mid-ranks ``[B, rows]`` of a column in each resample, equal values sharing theirs."""
    unique, index = np.unique(column, return_inverse=True)
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(len(unique)))
    copies = np.add.reduceat(weights[:, order], starts, axis=1)
    below = np.cumsum(copies, axis=1) - copies
    return (below + (copies + 1) / 2)[:, index]


def _partial(columns: list[np.ndarray], weights: np.ndarray, strata: np.ndarray | None) -> np.ndarray:
    """Correlation of the first two ``columns`` (``[B or 1, rows]``) given the others and the strata."""
    centred = [_centred(column, weights, strata) for column in columns]
    size = len(centred)
    total = weights.sum(axis=1)
    moments = np.empty((len(weights), size, size))
    for i in range(size):
        weighted = weights * centred[i]
        for j in range(i + 1):
            moments[:, i, j] = moments[:, j, i] = (weighted * centred[j]).sum(axis=1) / total
    left = moments[:, :2, :2]
    if size > 2:
        cross, held = moments[:, :2, 2:], moments[:, 2:, 2:]
        left = left - cross @ np.linalg.pinv(held, rcond=1e-12, hermitian=True) @ cross.transpose(0, 2, 1)
    whole = [_variance(column, weights) for column in columns[:2]]
    alive = (left[:, 0, 0] > FLAT * whole[0]) & (left[:, 1, 1] > FLAT * whole[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        r = left[:, 0, 1] / np.sqrt(left[:, 0, 0] * left[:, 1, 1])
    return np.where(alive, np.clip(r, -1, 1), np.nan)


def _variance(column: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of a column over all its rows, ``[B]``: what is compared with it can't be rounding."""
    spread = np.asarray(column.var(axis=-1))
    return np.broadcast_to(np.where(spread > 0, spread, np.inf), len(weights))


def _centred(column: np.ndarray, weights: np.ndarray, strata: np.ndarray | None) -> np.ndarray:
    """``column [B or 1, rows]`` less its weighted mean, in each stratum: ``[B, rows]``."""
    if strata is None:
        return column - (weights * column).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    member = np.eye(int(strata.max()) + 1)[strata]
    mean = ((weights * column) @ member) / np.maximum(weights @ member, 1e-300)
    return column - mean[:, strata]


def _kendall(x: np.ndarray, y: np.ndarray, weights: np.ndarray, control: Control) -> np.ndarray:
    columns = [x, y, *control.columns.T]
    signs = [np.sign(column[:, None] - column[None, :]) for column in columns]
    if control.strata is not None:
        same = control.strata[:, None] == control.strata[None, :]
        signs = [sign * same for sign in signs]
    # Sums of whole numbers below 2^24 are exact in float32, and half the work.
    small = weights.astype(np.float32) if weights.shape[1] <= 2000 else weights

    def pairs(i: int, j: int) -> np.ndarray:
        product = (signs[i] * signs[j]).astype(small.dtype)
        return ((small @ product).astype(np.float64) * weights).sum(axis=1)

    own = [pairs(i, i) for i in range(len(columns))]

    def tau(i: int, j: int) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where((own[i] > 0) & (own[j] > 0), pairs(i, j) / np.sqrt(own[i] * own[j]), np.nan)

    if len(columns) == 2:
        return tau(0, 1)
    # A held column that never changes in a resample says nothing there: 0 with every other.
    size = len(columns)
    taus = np.broadcast_to(np.eye(size), (len(weights), size, size)).copy()
    for i in range(size):
        for j in range(i):
            found = tau(i, j)
            taus[:, i, j] = taus[:, j, i] = np.nan_to_num(found) if i > 1 else found
    undefined = np.isnan(taus[:, 0, 1])
    taus[undefined] = np.eye(size)
    cross, held = taus[:, :2, 2:], taus[:, 2:, 2:]
    left = taus[:, :2, :2] - cross @ np.linalg.pinv(held, rcond=1e-10, hermitian=True) @ cross.transpose(0, 2, 1)
    alive = ~undefined & (left[:, 0, 0] > FLAT) & (left[:, 1, 1] > FLAT)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = left[:, 0, 1] / np.sqrt(left[:, 0, 0] * left[:, 1, 1])
    return np.where(alive, np.clip(r, -1, 1), np.nan)
