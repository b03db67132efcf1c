"""A profile as it is walked along: where to look, what was found there, and where it crosses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from scaling.descent import huber
from scaling.law_bootstrap import Problem

STEPS = np.concatenate([np.linspace(0.25, 3.0, 12), [3.5, 4.0, 5.0, 6.0, 8.0, 11.0, 16.0, 24.0, 40.0]])
"""Where a profile is looked at, on either side, in standard errors of the linearised fit; beyond, to the box's end."""
_BEYOND = 11
"""Further places from the last of STEPS to the end of the box, each as many times farther."""
_REGULAR = 1.5
"""How many times longer or shorter than in theory an arm may be, before other starts are tried."""
_KERNEL = 0.6
"""Standard deviation of the kernel of the density at zero, in units of σ·n^(−1/5). The normal rule's 1.06 flattens the
peak that is asked for: of 36 rows with t3 noise 95 % intervals would hold 97.7 % (96.7 so), of normal 96.8 (96.3)."""
_ROUNDING = 1e-10
"""Log losses that are nearer to a law than this are exact: what is left over is arithmetic's."""


@dataclass(frozen=True)
class Walk:
    """A profile as far as it has been looked at: the least objective at each place, infinite where nobody was yet."""

    moves: np.ndarray
    """Where each of ``[P]`` places is, from the fit."""
    objective: np.ndarray
    thetas: np.ndarray

    @classmethod
    def of(cls, moves: np.ndarray, theta: np.ndarray) -> Walk:
        return cls(moves.copy(), np.full(len(moves), np.inf), np.tile(theta, (len(moves), 1)))

    def keep(
        self, part: np.ndarray, thetas: np.ndarray, objective: np.ndarray, moves: np.ndarray | None = None
    ) -> None:
        """Of what was found at the places ``part [P]`` (a mask) what is better than before."""
        better = objective < self.objective[part]
        index = np.flatnonzero(part)[better]
        self.thetas[index], self.objective[index] = thetas[better], objective[better]
        if moves is not None:
            self.moves[index] = moves[better]

    def seen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(moves, objective, thetas) of the places that were looked at."""
        known = np.isfinite(self.objective)
        return self.moves[known], self.objective[known], self.thetas[known]

    def neighbours(self) -> np.ndarray:
        """For each place the theta ``[P, size]`` of that of its two neighbours with the lower objective."""
        before = np.append(np.inf, self.objective[:-1])
        after = np.append(self.objective[1:], np.inf)
        index = np.arange(len(self.objective)) + np.where(before <= after, -1, 1)
        return self.thetas[np.clip(index, 0, len(self.objective) - 1)]


@dataclass(frozen=True)
class Side:
    """Where a profile crosses the threshold, infinite if nowhere, and the two places about it; from the centre."""

    at: float
    inner: float = 0.0
    outer: float = 0.0


@dataclass(frozen=True)
class Local:
    """The fit near its optimum: where to look along a direction, and what rise of the objective is too much."""

    spread: np.ndarray
    """Covariance ``[size, size]`` of the linearised fit."""
    plain: np.ndarray
    """The same of least squares with the noise of the median residual, where that is narrower."""
    best: float
    threshold: float
    quantile: float
    """Of F at the level, with one degree of freedom above."""

    @classmethod
    def of(cls, problem: Problem, theta: np.ndarray, level: float) -> Local:
        residual = problem.form.log_loss(theta[None], problem.u)[0] - problem.target
        jacobian = problem.form.jacobian(theta[None], problem.u)[0]
        best = float(huber(residual, problem.delta).sum())
        unit, inside, freedom = _unit(residual, problem)
        quantile = float(stats.f.ppf(level, 1, freedom))
        length = np.maximum(np.sqrt((jacobian**2).sum(axis=0)), 1e-12)
        # The ridge is far below what data can tell, and keeps what they do not tell finite.
        inverse = np.linalg.inv((jacobian / length).T @ (jacobian / length) + 1e-10 * np.eye(len(theta)))
        inverse = inverse / np.outer(length, length)
        square = min((1.4826 * float(np.median(_rest(residual, problem)))) ** 2, unit / inside)
        return cls(unit / inside * inverse, square * inverse, best, best + unit / 2 * quantile, quantile)

    def arm(self, q: np.ndarray) -> float:
        """How far, by the linearised fit, a profile of q·theta crosses from it."""
        return float(np.sqrt(max(q @ self.spread @ q, 0.0) * self.quantile))

    def regular(self, q: np.ndarray, walk: Walk) -> bool:
        """Whether a profile crosses about where the linearised fit says: then it has met no other valley."""
        arm = self.arm(q)
        moves, objective, _ = walk.seen()
        found = [abs(self.crossing(moves, objective, sign).at) for sign in (-1, 1)]
        return all(arm / _REGULAR < at < arm * _REGULAR for at in found)

    def along(self, q: np.ndarray) -> np.ndarray:
        """How theta moves, to first order, with q·theta."""
        moved: np.ndarray = self.spread @ q / max(float(q @ self.spread @ q), 1e-300)
        return moved

    def moves(self, q: np.ndarray, reach: Sequence[float]) -> np.ndarray:
        """Places ``[P]`` from low to high, in units of q·theta from the fit, within ``reach`` (low < 0 < high)."""
        error = max(float(np.sqrt(max(q @ self.spread @ q, 0.0))), 1e-9)
        sides = []
        for end in map(abs, reach):
            if end < 1e-9:  # the fit is at the box's end
                sides.append(np.zeros(0))
                continue
            # Near an end of the box a standard error may lie beyond it: some places are wanted before.
            near = STEPS * min(error, end / 4)
            near = near[near < end]
            beyond = np.geomspace(near[-1], end, len(STEPS) - len(near) + _BEYOND + 1)[1:]
            sides.append(np.append(near, beyond))
        return np.concatenate([-sides[0][::-1], sides[1]])

    def crossing(self, moves: np.ndarray, objective: np.ndarray, sign: int) -> Side:
        """Where the objective, walked from the centre outwards to the side of ``sign``, first passes the threshold."""
        there = np.flatnonzero(moves * sign > 0)
        there = there[np.argsort(moves[there] * sign, kind="stable")]
        # Signed roots are nearly straight, whatever the steps.
        root = np.sqrt(np.maximum(np.append(self.best, objective[there]) - self.best, 0.0))
        need = np.sqrt(max(self.threshold - self.best, 0.0))
        at = np.append(0.0, moves[there])
        above = np.flatnonzero(root > need)
        if not len(above):
            return Side(sign * np.inf)
        k = int(above[0])
        share = (need - root[k - 1]) / max(root[k] - root[k - 1], 1e-300)
        return Side(float(at[k - 1] + share * (at[k] - at[k - 1])), float(at[k - 1]), float(at[k]))

    def outermost(self, moves: np.ndarray, objective: np.ndarray, sign: int) -> float:
        """Where the objective is last below the threshold to the side of ``sign``: beyond other valleys."""
        order = np.argsort(moves * sign, kind="stable")
        at, root = moves[order], np.sqrt(np.maximum(objective[order] - self.best, 0.0))
        need = np.sqrt(max(self.threshold - self.best, 0.0))
        below = np.flatnonzero((root <= need) & (at * sign > 0))
        if not len(below):
            return self.crossing(moves, objective, sign).at
        last = int(below[-1])
        if last == len(at) - 1:
            return sign * np.inf
        share = (need - root[last]) / max(root[last + 1] - root[last], 1e-300)
        return float(at[last] + share * (at[last + 1] - at[last]))


def _rest(residual: np.ndarray, problem: Problem) -> np.ndarray:
    """Sizes of the residuals but for as many as there are parameters: a small delta's fit goes through these."""
    return np.sort(np.abs(residual))[min(problem.form.size, len(residual) - 1) :]


def _unit(residual: np.ndarray, problem: Problem) -> tuple[float, float, int]:
    """(τ, E ψ′, degrees of freedom): τ = E ψ² / E ψ′, by which twice the rise of the objective is χ² with one degree.

    A fit with a small delta goes through ``size`` points; their residuals tell nothing and are left out. The density at
    zero, that E ψ′ is made of, is a normal kernel's over the others.
    """
    rows, size, delta = len(residual), problem.form.size, problem.delta
    free = max(rows - size, 1)
    slope = np.clip(residual, -delta, delta)
    square = max(float((slope**2).sum()) / free, _ROUNDING**2)
    rest = _rest(residual, problem)
    width = max(_KERNEL * 1.4826 * float(np.median(rest)) * len(rest) ** -0.2, 1e-12)
    # E ψ′ = P(|r| < δ), r smoothed by the kernel.
    inside = float(np.mean(stats.norm.cdf((delta - rest) / width) - stats.norm.cdf((-delta - rest) / width)))
    if problem.groups < rows:
        totals = np.bincount(problem.member, weights=slope, minlength=problem.groups)
        # Rows of a group that err together are worth fewer: the design effect of their scores.
        square *= max(float((totals**2).sum() / max((slope**2).sum(), 1e-300)), 1.0)
        square *= free * problem.groups / rows / max(problem.groups - size, 1)
        free = max(problem.groups - size, 1)
    inside = max(inside, 1e-12)
    return square / inside, inside, free
