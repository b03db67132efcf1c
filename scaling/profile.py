"""Profile-likelihood intervals of robust fits: the values that a law can be forced to have at no significant cost.

A quantity q·theta is held at a value, everything else is fitted again, and what Huber's objective rises by is compared
with a quantile of F (the τ test of Schrader and Hettmansperger 1980). Unlike a bootstrap's percentiles these intervals
follow a bent valley, and are open at the end where the objective never rises enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from scaling.descent import descend, huber
from scaling.law_bootstrap import Problem

STEPS = np.concatenate([np.linspace(0.25, 3.0, 12), [3.5, 4.0, 5.0, 6.0, 8.0, 11.0, 16.0, 24.0, 40.0]])
"""Where a profile is looked at, on either side, in standard errors of the linearised fit."""
_FORCE = 1e3
"""How many times all rows together the one weighs that a law is forced through."""


def profiles(problem: Problem, theta: np.ndarray, quantities: np.ndarray, level: float) -> list[tuple[float, float]]:
    """(low, high) at ``level`` of each of ``quantities [Q, size] · theta``, theta ``[size]`` being the best fit.

    An end is infinite where no value on that side is excluded. Rows that share a fate (groups) are taken as such: the
    threshold is for the fewer independent ones.
    """
    local = _Local.of(problem, theta, level)
    ones = np.ones((1, len(problem.target)))
    found = []
    for q in quantities:
        moves = local.moves(q)
        start = np.clip(theta + moves[:, None] * local.along(q), problem.lower, problem.upper)
        _, objective = descend(
            problem.form, problem.u, start, problem.target[None], ones, delta=problem.delta, lower=problem.lower,
            upper=problem.upper, fixed=(q, q @ theta + moves),
        )  # fmt: skip
        found.append(local.crossings(float(q @ theta), moves, objective))
    return found


def band(problem: Problem, theta: np.ndarray, u: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) ``[m]`` at ``level`` of the law's log loss at ``u [m, K]``, in or beyond the range of the data.

    The law is forced through a value there by a row of its own, which weighs more than all others together.
    """
    local = _Local.of(problem, theta, level)
    slopes = problem.form.jacobian(theta[None], u)[0]
    centre = problem.form.log_loss(theta[None], u)[0]
    rows = len(problem.target)
    low, high = np.empty(len(u)), np.empty(len(u))
    weight = np.append(np.ones(rows), _FORCE * rows)[None]
    for k, q in enumerate(slopes):
        moves = local.moves(q)
        start = np.clip(theta + moves[:, None] * local.along(q), problem.lower, problem.upper)
        targets = np.column_stack([np.tile(problem.target, (len(moves), 1)), centre[k] + moves])
        found, _ = descend(
            problem.form, np.vstack([problem.u, u[k]]), start, targets, weight, delta=problem.delta,
            lower=problem.lower, upper=problem.upper,
        )  # fmt: skip
        reached = problem.form.log_loss(found, u[k : k + 1])[:, 0] - centre[k]
        objective = huber(problem.form.log_loss(found, problem.u) - problem.target, problem.delta).sum(axis=1)
        low[k], high[k] = local.crossings(float(centre[k]), reached, objective)
    return low, high


@dataclass(frozen=True)
class _Local:
    """The fit near its optimum: where to look along a direction, and what rise of the objective is too much."""

    spread: np.ndarray
    scale: float
    best: float
    threshold: float

    @classmethod
    def of(cls, problem: Problem, theta: np.ndarray, level: float) -> _Local:
        rows, size = len(problem.target), problem.form.size
        residual = problem.form.log_loss(theta[None], problem.u)[0] - problem.target
        jacobian = problem.form.jacobian(theta[None], problem.u)[0]
        best = float(huber(residual, problem.delta).sum())
        unit, freedom = _unit(residual, problem)
        scale = 1.4826 * float(np.median(np.abs(residual))) * np.sqrt(rows / max(rows - size, 1)) + 1e-12
        threshold = best + unit / 2 * float(stats.f.ppf(level, 1, freedom))
        return cls(np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-12), scale, best, threshold)

    def along(self, q: np.ndarray) -> np.ndarray:
        """How theta moves, to first order, with q·theta."""
        moved: np.ndarray = self.spread @ q / max(float(q @ self.spread @ q), 1e-300)
        return moved

    def moves(self, q: np.ndarray) -> np.ndarray:
        """STEPS on both sides, in units of q·theta."""
        error = max(self.scale * float(np.sqrt(max(q @ self.spread @ q, 0.0))), 1e-9)
        both: np.ndarray = np.concatenate([-STEPS[::-1], STEPS]) * error
        return both

    def crossings(self, centre: float, moves: np.ndarray, objective: np.ndarray) -> tuple[float, float]:
        half = len(moves) // 2
        low = self._crossing(moves[:half][::-1], objective[:half][::-1])
        high = self._crossing(moves[half:], objective[half:])
        return centre + (-np.inf if low is None else low), centre + (np.inf if high is None else high)

    def _crossing(self, moves: np.ndarray, objective: np.ndarray) -> float | None:
        """Where the objective, walked from the centre outwards, first passes the threshold."""
        # Signed roots are nearly straight, whatever the steps.
        root = np.sqrt(np.maximum(np.append(self.best, objective) - self.best, 0.0))
        need = np.sqrt(max(self.threshold - self.best, 0.0))
        at = np.append(0.0, moves)
        above = np.flatnonzero(root > need)
        if not len(above):
            return None
        k = int(above[0])
        share = (need - root[k - 1]) / max(root[k] - root[k - 1], 1e-300)
        return float(at[k - 1] + share * (at[k] - at[k - 1]))


def _unit(residual: np.ndarray, problem: Problem) -> tuple[float, int]:
    """(τ, degrees of freedom): E ψ² / E ψ′, by which twice the rise of the objective is χ² with one degree.

    A fit with a small delta goes through ``size`` points; their residuals tell nothing and are left out. The density at
    zero, that E ψ′ is made of, is a normal kernel's over the others.
    """
    rows, size, delta = len(residual), problem.form.size, problem.delta
    free = max(rows - size, 1)
    slope = np.clip(residual, -delta, delta)
    square = float((slope**2).sum()) / free
    rest = np.sort(np.abs(residual))[min(size, rows - 1) :]
    width = max(1.06 * 1.4826 * float(np.median(rest)) * len(rest) ** -0.2, 1e-12)
    # E ψ′ = P(|r| < δ), r smoothed by the kernel.
    inside = float(np.mean(stats.norm.cdf((delta - rest) / width) - stats.norm.cdf((-delta - rest) / width)))
    if problem.groups < rows:
        totals = np.bincount(problem.member, weights=slope, minlength=problem.groups)
        # Rows of a group that err together are worth fewer: the design effect of their scores.
        square *= max(float((totals**2).sum() / max((slope**2).sum(), 1e-300)), 1.0)
        free = max(problem.groups - size, 1)
    return square / max(inside, 1e-12), free
