"""Where a hyperparameter is best at each size of a model, and how that drifts with the size; all with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from scaling.errors import TableError
from scaling.parabola import fieller, vertex_error
from scaling.tables import labels, numbers, require

REACH = 2
"""Values on either side of the lowest that the parabola goes through."""


@dataclass(frozen=True)
class Optimum:
    """Of one size: the vertex of a parabola in log2 x through log2 loss near its lowest mean.

    ``low`` and ``high`` are Fieller's interval of the vertex. It is NaN where the values do not bound the optimum: the
    lowest mean is at an end of the grid, the parabola has no significant minimum, or nothing is left to tell noise by.
    """

    size: float
    best: float
    low: float
    high: float
    loss: float
    """Of the parabola, at ``best``: of the mean seed."""
    error: float
    """Standard error of log2 ``best`` by the delta method; NaN as ``low``."""
    freedom: int
    """Of the residuals that it is from."""
    edge: bool
    """The lowest mean is at an end of the grid: ``best`` is that value, and the optimum may lie beyond it."""
    curve: tuple[float, float, float]
    """log2 loss = c0 + c1 u + c2 u², u = log2 x; NaN at an edge."""
    span: tuple[float, float]
    """From the lowest to the highest x that the parabola goes through."""

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite(self.error))


@dataclass(frozen=True)
class Drift:
    """log2 of the optimum over log2 of the size: a line through the bounded optima, 0 where the optimum stays put.

    The interval has the optima's own errors in it and not how far they are from a line; NaN with fewer than 2.
    """

    slope: float
    low: float
    high: float
    middle: tuple[float, float]
    """log2 of size and optimum that the line goes through."""
    sizes: int


def optima(
    table: pd.DataFrame, x: str, loss: str, by: str, *, pair: str = "seed", reach: int = REACH, level: float = 0.95
) -> list[Optimum]:
    """Of each value of ``by`` (a number), from the least on; columns ``x``, ``loss`` (both above 0), ``by``, ``pair``.

    Runs with the same ``pair`` (a seed) share a level, which moves no optimum: it is taken out. A row without a loss,
    as of a run that diverged, is none; where that leaves a value of ``x`` without some pair, others decide.

    Raises TableError for an absent column, a cell that is no number, fewer than 3 values of ``x`` at a size, or a run
    that is there twice.
    """
    require(table, [x, loss, by, pair])
    losses = numbers(table, loss, allow_missing=True)
    if (losses <= 0).any():
        row = int(np.argmax(losses <= 0))
        raise TableError(f"{loss}={losses[row]:g} (row {row + 1}): expected a number above 0")
    clean = pd.DataFrame(
        {"size": numbers(table, by, positive=True), "x": numbers(table, x, positive=True), "pair": labels(table, pair)}
    ).assign(y=losses)
    twice = clean[clean.duplicated(["size", "x", "pair"])]
    if len(twice):
        first = twice.iloc[0]
        raise TableError(f"{by}={first['size']:g}: {x} {first['x']:g} of {pair} {first['pair']} is there twice")
    clean = clean.dropna()
    found = []
    for size, part in clean.groupby("size"):
        wide = part.pivot(index="x", columns="pair", values="y").dropna().sort_index()
        if len(wide) < 3:
            raise TableError(f"{by}={size:g}: {len(wide)} {x}s with all {pair}s; expected 3 or more")
        found.append(_optimum(float(size), np.log2(wide.index.to_numpy(float)), np.log2(wide.to_numpy()), reach, level))
    if not found:
        raise TableError(f"{loss}: no row has one")
    return found


def _optimum(size: float, grid: np.ndarray, losses: np.ndarray, reach: int, level: float) -> Optimum:
    """``grid [values]`` and ``losses [values, pairs]`` are log2."""
    mean = losses.mean(axis=1)
    lowest = int(np.argmin(mean))
    nan = float("nan")
    at_grid = float(2 ** grid[lowest])
    if lowest in (0, len(grid) - 1):
        span = (at_grid, at_grid)
        return Optimum(size, at_grid, nan, nan, float(2 ** mean[lowest]), nan, 0, True, (nan, nan, nan), span)
    near = slice(max(lowest - reach, 0), lowest + reach + 1)
    centre, u, y = grid[lowest], grid[near] - grid[lowest], losses[near]
    values, pairs = y.shape
    columns = np.concatenate([np.tile(np.eye(pairs), (values, 1)), np.repeat([u, u**2], pairs, axis=1).T], axis=1)
    found, *_ = np.linalg.lstsq(columns, y.ravel(), rcond=None)
    level0, slope, bend = found[:pairs].mean(), found[-2], found[-1]
    span = (float(2 ** grid[near][0]), float(2 ** grid[near][-1]))
    freedom = values * pairs - pairs - 2
    # A least loss between two greater ones has a parabola that opens upwards, unless others pull it over.
    vertex = -slope / (2 * bend) if bend > 0 else nan
    if not (u[0] <= vertex <= u[-1]):
        return Optimum(size, at_grid, nan, nan, float(2 ** mean[lowest]), nan, freedom, False, (nan, nan, nan), span)
    low = high = error = nan
    if freedom > 0:
        noise = ((y.ravel() - columns @ found) ** 2).sum() / freedom
        spread = noise * np.linalg.inv(columns.T @ columns)[-2:, -2:]
        bounds = fieller(slope, bend, spread, stats.t.ppf(0.5 + level / 2, freedom))
        if bounds is not None:
            low, high = (float(2 ** (centre + bound)) for bound in bounds)
            error = vertex_error(slope, bend, spread)
    curve = (level0 - slope * centre + bend * centre**2, slope - 2 * bend * centre, bend)
    best, least = float(2 ** (centre + vertex)), float(2 ** (level0 + slope * vertex / 2))
    return Optimum(size, best, low, high, least, error, freedom, False, (curve[0], curve[1], float(curve[2])), span)


def drift(found: Sequence[Optimum], level: float = 0.95) -> Drift:
    """The line through the bounded ones of ``found``; its interval by Welch and Satterthwaite."""
    known = [item for item in found if item.bounded]
    nan = float("nan")
    if len({item.size for item in known}) < 2:
        return Drift(nan, nan, nan, (nan, nan), len(known))
    sizes, best = (np.log2([vars(item)[name] for item in known]) for name in ("size", "best"))
    weights = (sizes - sizes.mean()) / ((sizes - sizes.mean()) ** 2).sum()
    parts = (weights * [item.error for item in known]) ** 2
    freedom = parts.sum() ** 2 / (parts**2 / [item.freedom for item in known]).sum()
    slope, reach = weights @ best, stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(parts.sum())
    middle = (float(sizes.mean()), float(best.mean()))
    return Drift(float(slope), float(slope - reach), float(slope + reach), middle, len(known))
