"""Resampled fits of a law: of whole groups (runs), of residuals, or of repeated runs about their mean (seeds)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.descent import descend
from scaling.errors import TableError
from scaling.powers import Powers
from scaling.projection import projected_starts
from scaling.resample import group_counts

MIN_GROUPS = 10
"""Below this many groups (runs), resampling whole groups is too coarse and residuals are resampled instead."""
KEPT = 2
"""Starts that descend for a resampled table. (Of 100 tables of 240 points none ended 1e-14 above the best of 100.)"""
MOST_LEFT_OUT = 1000
"""Groups up to which the law is fitted without each."""
_MOST_NUMBERS = 4_000_000
"""Weights that are held at once."""
RESAMPLES = ("auto", "runs", "residuals", "seeds")


@dataclass(frozen=True)
class Problem:
    """What is fitted: ``u [n, K]`` (logs of abscissae less ``centre [K]``), ``target [n]`` (log losses), ``member [n]``
    (each row's group, from 0), Huber's ``delta``, and how many ``starts``."""

    form: Powers
    u: np.ndarray
    target: np.ndarray
    member: np.ndarray
    delta: float
    centre: np.ndarray
    starts: int

    @property
    def groups(self) -> int:
        """How many groups of rows there are."""
        return int(self.member.max()) + 1

    @property
    def lower(self) -> np.ndarray:
        """Of the box that theta is looked for in."""
        return self.form.box(self.u, self.target)[0]

    @property
    def upper(self) -> np.ndarray:
        """Of the same."""
        return self.form.box(self.u, self.target)[1]

    def descend(
        self, start: np.ndarray, target: np.ndarray, weight: np.ndarray, iterations: int = 200
    ) -> tuple[np.ndarray, np.ndarray]:
        """``scaling.descent.descend`` on these rows."""
        return descend(
            self.form, self.u, start, target, weight, delta=self.delta, lower=self.lower, upper=self.upper,
            iterations=iterations,
        )  # fmt: skip

    def refit(self, target: np.ndarray, weight: np.ndarray, iterations: int = 60) -> np.ndarray:
        """The best theta ``[B, size]`` of B tables: ``target``, ``weight`` ``[B or 1, n]``, all starts for each."""
        seeds = projected_starts(
            self.form, self.u, target, weight, delta=self.delta, lower=self.lower, upper=self.upper,
            starts=self.starts, keep=KEPT,
        )  # fmt: skip
        count, kept, size = seeds.shape
        many = [values if len(values) == 1 else np.repeat(values, kept, axis=0) for values in (target, weight)]
        thetas, objectives = self.descend(seeds.reshape(-1, size), many[0], many[1], iterations)
        best = objectives.reshape(count, kept).argmin(axis=1)
        return thetas.reshape(count, kept, size)[np.arange(count), best]


def bootstrap(
    problem: Problem, theta: np.ndarray, resample: str, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """(theta of each draw ``[draws, size]``, what was resampled: groups, residuals, seeds or none)."""
    if resample not in RESAMPLES:
        raise TableError(f"resample={resample!r}: expected one of {', '.join(RESAMPLES)}")
    if resample == "auto":
        resample = "runs" if problem.groups >= MIN_GROUPS else "residuals"
    if draws <= 0:
        return np.zeros((0, problem.form.size)), "none"
    rows = len(problem.target)
    if resample == "runs":
        weights = _group_weights(problem, draws, rng)
        return problem.refit(problem.target[None], weights), "groups"
    if resample == "seeds":
        return problem.refit(_seed_targets(problem, draws, rng), np.ones((1, rows))), "seeds"
    return problem.refit(_residual_targets(problem, theta, draws, rng), np.ones((1, rows))), "residuals"


def _group_weights(problem: Problem, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row comes up ``[draws, n]``.

    A draw that holds fewer values of an abscissa than a curve over it has parameters fits anything: it is drawn again.
    """
    weights = group_counts(draws, problem.groups, rng)[:, problem.member]
    need = 2 + problem.form.floor
    each = [np.unique(column, return_inverse=True) for column in problem.u.T]
    codes = [code.reshape(-1) for values, code in each if len(values) >= need]
    for _ in range(100):
        thin = np.zeros(len(weights), dtype=bool)
        for code in codes:
            present = np.zeros((len(weights), code.max() + 1))
            np.add.at(present.T, code, weights.T)
            thin |= (present > 0).sum(axis=1) < need
        if not thin.any():
            break
        weights[thin] = group_counts(int(thin.sum()), problem.groups, rng)[:, problem.member]
    return weights


def _residual_targets(problem: Problem, theta: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The law plus shocks ``[draws, n]``: rows swap residuals, groups of rows get one random sign and size each (Webb
    2014)."""
    fitted = problem.form.log_loss(theta[None], problem.u)[0]
    residual, rows = problem.target - fitted, len(problem.target)
    if problem.groups == rows:
        inflate = np.sqrt(rows / (rows - problem.form.size))
        return fitted + inflate * rng.choice(residual - residual.mean(), size=(draws, rows))
    sizes = np.sqrt([0.5, 1.0, 1.5])
    signs = rng.choice(np.concatenate([-sizes, sizes]), size=(draws, problem.groups))
    return fitted + signs[:, problem.member] * left_out_residuals(problem, theta)


def settings(u: np.ndarray) -> np.ndarray:
    """Which rows ``[n]`` of ``u [n, K]`` repeat each other: a number from 0 on for each setting."""
    _, found = np.unique(np.round(u, 9), axis=0, return_inverse=True)
    return found.reshape(-1)


def _seed_targets(problem: Problem, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Rows at the same abscissae are repetitions of a run: each gets their mean and one of their deviations.

    Deviations from a mean of m are √((m − 1)/m) too small. What the law misses by is not in this: every resampled
    table has the same means.
    """
    cell = settings(problem.u)
    count = np.bincount(cell)
    if (count < 2).any():
        raise TableError(
            f"resample='seeds': {int((count < 2).sum())} of {len(count)} settings have a single run; expected two or "
            "more seeds of each"
        )
    mean = np.bincount(cell, weights=problem.target) / count
    deviation = (problem.target - mean[cell]) * np.sqrt(count / (count - 1))[cell]
    # Any of the cell's rows, for each row: places of a cell's rows follow each other in `order`.
    order, first = np.argsort(cell, kind="stable"), np.concatenate([[0], np.cumsum(count)[:-1]])
    pick = order[first[cell] + (rng.random((draws, len(cell))) * count[cell]).astype(np.int64)]
    targets: np.ndarray = mean[cell] + deviation[pick]
    return targets


def left_out_residuals(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Residuals ``[n]`` of each group from the law fitted without it (the cluster jackknife's).

    A fit bends towards its own groups, the outer ones most, so its own residuals understate what a new run would do. A
    group that the law cannot be fitted without keeps its own residuals. Of more than MOST_LEFT_OUT groups none bends a
    fit by what could be seen: their own residuals are taken, larger by √(groups / (groups − parameters)).
    """
    groups, size = problem.groups, problem.form.size
    own: np.ndarray = problem.target - problem.form.log_loss(theta[None], problem.u)[0]
    if groups > MOST_LEFT_OUT:
        return own * np.sqrt(groups / (groups - size))
    cell, rows = settings(problem.u), np.bincount(problem.member, minlength=groups)
    pairs = np.unique(np.column_stack([cell, problem.member]), axis=0)
    alone = pairs[np.bincount(pairs[:, 0])[pairs[:, 0]] == 1, 1]
    settings_left = cell.max() + 1 - np.bincount(alone, minlength=groups)
    able = (len(own) - rows > size) & (settings_left >= size)
    found = own.copy()
    chunk = max(1, _MOST_NUMBERS // len(own))
    for begin in range(0, groups, chunk):
        some = np.arange(begin, min(begin + chunk, groups))[able[begin : begin + chunk]]
        if not len(some):
            continue
        weights = (problem.member[None, :] != some[:, None]).astype(np.float64)
        thetas, _ = problem.descend(np.tile(theta, (len(some), 1)), problem.target[None], weights)
        for group, fitted in zip(some, thetas, strict=True):
            mine = problem.member == group
            found[mine] = problem.target[mine] - problem.form.log_loss(fitted[None], problem.u[mine])[0]
    return found
