"""Recipes compared within blocks: measurements = block + recipe + noise, by least squares, with gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

SIZE = ["depth", "steps"]
BLOCK = [*SIZE, "seed"]
LUCK = ["depth", "seed"]
"""What runs of one recipe have in common that differ in nothing but how long they were trained: initial weights and
the order of data. With a constant learning rate the longer one passes through the shorter. They are one training."""
POOLED, POOLED_ONE = 0.25, 0.05
"""Where depths differ with a lower p, their differences are not pooled with the noise of seeds; with one degree of
freedom."""


@dataclass(frozen=True)
class Blocks:
    """Least squares of block (a size and a seed, which share data and noise) and recipe.

    ``effect [names]`` are the recipes' estimates about ``level``, the mean of blocks, ``inverse [names, names]`` their
    covariance but for the variance of the noise, ``operator [names, runs]`` what makes them of values of ``runs``.
    ``noise`` is the standard deviation that their errors are to be told by (NaN with nothing to judge by) with
    ``freedom`` degrees. ``within`` is that of one training within a depth (of its mean over lengths), NaN with one seed
    each, ``varies`` the one by which a recipe's effect differs between depths beyond that.
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

    def shared(self, first: int, second: int) -> tuple[int, int, int]:
        """(seeds, depths, lengths of training) that two recipes share; seeds and lengths of the median depth."""
        both = self.table[[self.names[first], self.names[second]]].dropna().reset_index()
        counts = both.groupby("depth")[["seed", "steps"]].nunique()
        if not len(counts):
            return 0, 0, 0
        return int(np.median(counts["seed"])), len(counts), int(np.median(counts["steps"]))


def fit_blocks(frame: pd.DataFrame) -> Blocks | None:
    """Of ``frame`` with depth, steps, seed, recipe, value and run (a number); None where no two recipes share a block.

    Recipes that no chain of shared blocks joins to most others are left out. Runs of one recipe and block are averaged.
    What runs of one recipe, depth and seed leave beside their blocks is averaged over lengths of training: these share
    their luck (``LUCK``), and are no repetition. So what is repeated are seeds and depths.

    The variance of the noise is what recipe and block leave. Where recipes do better at one depth and worse at another
    by more than one in four studies would show by chance (Bancroft's level for pooling), it is the mean square of that
    instead, so that a lead holds for depths like these and not for these alone. Two recipes at two depths have a single
    degree of freedom for it: there it takes one in twenty. Equal recipes are then told apart in 4 to 9 % of studies,
    whatever the effect varies by, with three recipes or depths and two or three seeds, but of two recipes at two depths
    in 5 % where depths agree and up to 21 % where they do not.
    """
    frame = _joined(frame)
    if frame is None:
        return None
    cells = frame.groupby([*BLOCK, "recipe"], sort=True).agg(value=("value", "mean"), runs=("run", list)).reset_index()
    names = sorted(set(cells["recipe"]))
    recipe = cells["recipe"].map(names.index).to_numpy()
    block = cells.groupby(BLOCK).ngroup().to_numpy()
    value = cells["value"].to_numpy(float)
    dummies, mean = np.eye(len(names))[recipe], _averaging(block)
    effects, _ = _solution(dummies, mean)
    levels = np.bincount(block, weights=value - (effects @ value)[recipe]) / np.bincount(block)
    # Cells without their blocks' levels, then the mean of these over lengths of training.
    freed = np.eye(len(cells)) - mean @ (np.eye(len(cells)) - dummies @ effects)
    training = cells.groupby([*LUCK, "recipe"]).ngroup().to_numpy()
    _, merged = np.unique(training, return_index=True)
    over = _averaging(training)[merged] @ freed
    luck = cells.loc[merged].groupby(LUCK).ngroup().to_numpy()
    depth = cells.loc[merged, "depth"].to_numpy()
    value, recipe, dummies, mean = over @ value, recipe[merged], dummies[merged], _averaging(luck)
    project, inverse = _solution(dummies, mean)
    effect = project @ value
    rest = value - mean @ value - (dummies - mean @ dummies) @ effect
    all_squares, all_freedom = float((rest**2).sum()), len(value) - (luck.max() + 1) - (len(names) - 1)
    squares, freedom = 0.0, 0
    for key in np.unique(depth):
        own = depth == key
        left, degrees = _left(value[own], recipe[own], luck[own])
        squares, freedom = squares + left, freedom + degrees
    nan = float("nan")
    within = np.sqrt(squares / freedom) if freedom else nan
    noise, degrees = (np.sqrt(all_squares / all_freedom), all_freedom) if all_freedom else (nan, 0)
    between, varies = all_freedom - freedom, 0.0
    if freedom and between:
        extra = max(all_squares - squares, 0.0) / between
        if within == 0 or stats.f.sf(extra / within**2, between, freedom) < (POOLED if between > 1 else POOLED_ONE):
            noise, degrees = np.sqrt(extra), between
            varies = np.sqrt(max(extra - within**2, 0.0) / np.median(_seeds(luck, depth)))
    runs = [int(key) for keys in cells["runs"] for key in keys]
    share = np.concatenate([np.full(len(keys), 1 / len(keys)) for keys in cells["runs"]])
    column = np.repeat(np.arange(len(cells)), [len(keys) for keys in cells["runs"]])
    table = cells.pivot(index=BLOCK, columns="recipe", values="value")
    return Blocks(
        tuple(names), tuple(runs), float(levels.mean()), effect, inverse, (project @ over)[:, column] * share,
        float(noise), int(degrees), float(within), float(varies), table,
    )  # fmt: skip


def _solution(dummies: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(what makes recipes' effects of cells ``[names, cells]``, their covariance) by least squares within blocks."""
    centred = dummies - mean @ dummies
    inverse = np.linalg.pinv(centred.T @ centred)
    return inverse @ centred.T, inverse


def _averaging(group: np.ndarray) -> np.ndarray:
    """What takes each row's group's mean, ``[rows, rows]``."""
    same = group[:, None] == group[None, :]
    found: np.ndarray = same / same.sum(axis=1, keepdims=True)
    return found


def _seeds(luck: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Seeds of each depth."""
    return np.array([len(np.unique(luck[depth == key])) for key in np.unique(depth)])


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


def _left(value: np.ndarray, recipe: np.ndarray, block: np.ndarray) -> tuple[float, int]:
    """Sum of squares and degrees of freedom that blocks and recipes leave within a depth."""
    block = np.unique(block, return_inverse=True)[1]
    recipe = np.unique(recipe, return_inverse=True)[1]
    design = np.hstack([np.eye(block.max() + 1)[block], np.eye(recipe.max() + 1)[recipe]])
    found, _, rank, _ = np.linalg.lstsq(design, value, rcond=None)
    rest = value - design @ found
    return float((rest**2).sum()), len(value) - int(rank)
