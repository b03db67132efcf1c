"""Recipes compared within blocks: measurements = block + recipe + noise, by least squares, with gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

SIZE = ["depth", "steps"]
BLOCK = [*SIZE, "seed"]
POOLED, POOLED_ONE = 0.25, 0.05
"""Where sizes differ with a lower p, their differences are not pooled with the noise of seeds; with one degree of
freedom."""


@dataclass(frozen=True)
class Blocks:
    """Least squares of block (a size and a seed, which share data and noise) and recipe.

    ``effect [names]`` are the recipes' estimates about ``level``, the mean of blocks, ``inverse [names, names]`` their
    covariance but for the variance of the noise, ``operator [names, runs]`` what makes them of values of ``runs``.
    ``noise`` is the standard deviation that their errors are to be told by (NaN with nothing to judge by) with
    ``freedom`` degrees. ``within`` is that of one run within a size, NaN with one seed each, ``varies`` the one by
    which a recipe's effect differs between sizes beyond that.
    """

    names: tuple[str, ...]
    runs: tuple[int, ...]
    level: float
    effect: np.ndarray
    inverse: np.ndarray
    operator: np.ndarray
    noise: float
    freedom: int
    within: float
    varies: float
    table: pd.DataFrame
    """Of values by block and recipe."""

    def error(self, first: int, second: int, sigma: float) -> float:
        """Standard error of the difference of two recipes, were one run's noise ``sigma``."""
        v = self.inverse
        return sigma * float(np.sqrt(max(v[first, first] + v[second, second] - 2 * v[first, second], 0.0)))

    def shared(self, first: int, second: int) -> tuple[int, int]:
        """(seeds, sizes) that two recipes share; seeds of the median size."""
        both = self.table[[self.names[first], self.names[second]]].dropna()
        counts = both.groupby(level=SIZE).size()
        return (int(np.median(counts)), len(counts)) if len(counts) else (0, 0)


def fit_blocks(frame: pd.DataFrame) -> Blocks | None:
    """Of ``frame`` with depth, steps, seed, recipe, value and run (a number); None where no two recipes share a block.

    Recipes that no chain of shared blocks joins to most others are left out. Runs of one recipe and block are averaged.

    The variance of the noise is what recipe and block leave. Where recipes do better at one size and worse at another
    by more than one in four studies would show by chance (Bancroft's level for pooling), it is the mean square of that
    instead, so that a lead holds for sizes like these and not for these alone. Two recipes at two sizes have a single
    degree of freedom for it: there it takes one in twenty. Equal recipes are then told apart in 4 to 9 % of studies,
    whatever the effect varies by, with three recipes or sizes and two or three seeds, but of two recipes at two sizes
    in 5 % where sizes agree and up to 21 % where they do not.
    """
    frame = _joined(frame)
    if frame is None:
        return None
    cells = frame.groupby([*BLOCK, "recipe"], sort=True).agg(value=("value", "mean"), runs=("run", list)).reset_index()
    names = sorted(set(cells["recipe"]))
    recipe = cells["recipe"].map(names.index).to_numpy()
    block = cells.groupby(BLOCK).ngroup().to_numpy()
    size = cells.groupby(SIZE).ngroup().to_numpy()
    value = cells["value"].to_numpy(float)
    dummies = np.eye(len(names))[recipe]
    # Within blocks: a block's own mean is out, as of the dummies.
    centred = dummies - _means(dummies, block)
    inverse = np.linalg.pinv(centred.T @ centred)
    project = inverse @ centred.T
    effect = project @ value
    rest = value - _means(value[:, None], block)[:, 0] - centred @ effect
    levels = np.bincount(block, weights=value - effect[recipe]) / np.bincount(block)
    all_squares, all_freedom = float((rest**2).sum()), len(value) - (block.max() + 1) - (len(names) - 1)
    squares, freedom = 0.0, 0
    for key in np.unique(size):
        own = size == key
        left, degrees = _left(value[own], recipe[own], block[own])
        squares, freedom = squares + left, freedom + degrees
    nan = float("nan")
    within = np.sqrt(squares / freedom) if freedom else nan
    noise, degrees = (np.sqrt(all_squares / all_freedom), all_freedom) if all_freedom else (nan, 0)
    between, varies = all_freedom - freedom, 0.0
    if freedom and between:
        extra = max(all_squares - squares, 0.0) / between
        if within == 0 or stats.f.sf(extra / within**2, between, freedom) < (POOLED if between > 1 else POOLED_ONE):
            noise, degrees = np.sqrt(extra), between
            varies = np.sqrt(max(extra - within**2, 0.0) / np.median(_seeds(block, size)))
    runs = [int(key) for keys in cells["runs"] for key in keys]
    share = np.concatenate([np.full(len(keys), 1 / len(keys)) for keys in cells["runs"]])
    column = np.repeat(np.arange(len(cells)), [len(keys) for keys in cells["runs"]])
    table = cells.pivot(index=BLOCK, columns="recipe", values="value")
    return Blocks(
        tuple(names), tuple(runs), float(levels.mean()), effect, inverse, project[:, column] * share, float(noise),
        int(degrees), float(within), float(varies), table,
    )  # fmt: skip


def _seeds(block: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Seeds of each size."""
    return np.array([len(np.unique(block[size == key])) for key in np.unique(size)])


def _joined(frame: pd.DataFrame) -> pd.DataFrame | None:
    """The rows of blocks with two recipes or more, of the largest set of recipes that blocks join."""
    frame = frame[frame.groupby(BLOCK)["recipe"].transform("nunique") > 1]
    if frame.empty:
        return None
    part = {name: name for name in frame["recipe"]}
    for _, names in frame.groupby(BLOCK)["recipe"]:
        joined = {part[name] for name in names}
        first = min(joined)
        part = {name: first if root in joined else root for name, root in part.items()}
    roots = frame["recipe"].map(part)
    most = roots.value_counts()
    return frame[roots == min(most.index[most == most.max()])]


def _means(rows: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Each row's group's mean, ``[rows, columns]``."""
    totals = np.zeros((group.max() + 1, rows.shape[1]))
    np.add.at(totals, group, rows)
    found: np.ndarray = (totals / np.bincount(group)[:, None])[group]
    return found


def _left(value: np.ndarray, recipe: np.ndarray, block: np.ndarray) -> tuple[float, int]:
    """Sum of squares and degrees of freedom that blocks and recipes leave within a size."""
    block = np.unique(block, return_inverse=True)[1]
    recipe = np.unique(recipe, return_inverse=True)[1]
    design = np.hstack([np.eye(block.max() + 1)[block], np.eye(recipe.max() + 1)[recipe]])
    found, _, rank, _ = np.linalg.lstsq(design, value, rcond=None)
    rest = value - design @ found
    return float((rest**2).sum()), len(value) - int(rank)
