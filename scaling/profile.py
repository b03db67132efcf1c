"""Profile-likelihood intervals of robust fits: the values that a law can be forced to have at no significant cost.

A quantity q·theta is held at a value, everything else is fitted again, and what Huber's objective rises by is compared
with a quantile of F (the τ test of Schrader and Hettmansperger 1980). Unlike a bootstrap's percentiles these intervals
follow a bent valley, and are open at the end where the objective never rises enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scaling.descent import descend, huber
from scaling.law_bootstrap import Problem
from scaling.profile_walk import Local, Walk

_NEAR = 0.3
"""Of the way to a crossing: a longer gap between the two places about it is looked at again."""
_FAR = 5.0
"""How far from the fit a band is looked for, on the log of the loss."""
_INNER = 1.8
"""In theory's arms, how far places are looked at first: a regular profile ends there, and those beyond are slow."""
_ITERATIONS = 100
_NOTHING = 0.02
"""Of the least loss: a floor below this has no slope to leave by, and is looked for higher up as well."""
_FORCE = 1e3
"""How many times all rows together the one weighs that a law is forced through."""


def profiles(
    problem: Problem, theta: np.ndarray, quantities: np.ndarray, level: float, ends: np.ndarray
) -> list[tuple[float, float]]:
    """(low, high) at ``level`` of each of ``quantities [Q, size] · theta``, theta ``[size]`` being the best fit.

    ``ends [m, size]``: where other descents ended; a profile far from the fit may lie in another valley. An end is
    infinite where no value on that side is excluded, up to the box's end. Rows that share a fate (groups) are taken as
    such: the threshold is for the fewer independent ones.
    """
    local = Local.of(problem, theta, level)
    ones = np.ones((1, len(problem.target)))
    found = []
    for q in quantities:
        centre = float(q @ theta)
        reach = [
            float(np.where(q > 0, problem.lower, problem.upper) @ q) - centre,
            float(np.where(q > 0, problem.upper, problem.lower) @ q) - centre,
        ]

        def held(moves: np.ndarray, start: np.ndarray, q: np.ndarray = q, centre: float = centre) -> Any:
            return descend(
                problem.form, problem.u, start, problem.target[None], ones, delta=problem.delta, lower=problem.lower,
                upper=problem.upper, fixed=(q, centre + moves), iterations=_ITERATIONS,
            )  # fmt: skip

        def look(part: np.ndarray, start: np.ndarray, walk: Walk, held: Any = held) -> None:
            walk.keep(part, *held(walk.moves[part], start[part]))
            if (flat := part & _flat(problem, walk)).any():
                walk.keep(flat, *held(walk.moves[flat], problem.form.lifted(walk.thetas[flat], problem.target.min())))

        moves = local.moves(q, reach)
        walk = Walk.of(moves, theta)
        first = theta + moves[:, None] * local.along(q)
        inner = np.abs(moves) <= _INNER * local.arm(q)
        for part in (inner, ~inner):
            look(part, first, walk)
            if local.regular(q, walk):
                break
        else:
            # Again from the better neighbour, and from where other descents ended: the least of all is the profile.
            everywhere = np.ones(len(moves), bool)
            look(everywhere, walk.neighbours(), walk)
            look(everywhere, _nearest(ends, q, centre + moves), walk)
        moves, objective, thetas = walk.seen()
        sides = [local.crossing(moves, objective, sign) for sign in (-1, 1)]
        for k, (sign, side) in enumerate(zip((-1, 1), sides, strict=True)):
            if np.isfinite(side.at) and abs(side.outer - side.inner) > _NEAR * abs(side.at):
                between = np.linspace(side.inner, side.outer, 34)[1:-1]
                nearest = np.abs(moves[None, :] - between[:, None]).argmin(axis=1)
                _, values = held(between, thetas[nearest])
                sides[k] = local.crossing(np.append(moves, between), np.append(objective, values), sign)
        found.append((centre + sides[0].at, centre + sides[1].at))
    return found


def band(
    problem: Problem, theta: np.ndarray, valleys: np.ndarray, u: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) ``[m]`` at ``level`` of the law's log loss at ``u [m, K]``, in or beyond the range of the data.

    The law is forced through a value there by a row of its own, which weighs more than all others together. Of
    ``valleys [starts, 1 + size]``, where other descents ended with their objective, those that are not significantly
    worse belong to the band: off the rows a fit as good may say another thing.
    """
    local = Local.of(problem, theta, level)
    slopes = problem.form.jacobian(theta[None], u)[0]
    centre = problem.form.log_loss(theta[None], u)[0]
    rows = len(problem.target)
    low, high = np.empty(len(u)), np.empty(len(u))
    weight = np.append(np.ones(rows), _FORCE * rows)[None]
    good = valleys[valleys[:, 0] <= local.threshold, 1:]
    for k, q in enumerate(slopes):
        moves = local.moves(q, [-_FAR, _FAR])
        targets = np.column_stack([np.tile(problem.target, (len(moves), 1)), centre[k] + moves])
        walk = Walk.of(moves, theta)
        first = theta + moves[:, None] * local.along(q)
        inner = np.abs(moves) <= _INNER * local.arm(q)

        def forced(part: np.ndarray, start: np.ndarray, k: int = k, targets: np.ndarray = targets) -> Any:
            found, _ = descend(
                problem.form, np.vstack([problem.u, u[k]]), start[part], targets[part], weight, delta=problem.delta,
                lower=problem.lower, upper=problem.upper,
            )  # fmt: skip
            value = huber(problem.form.log_loss(found, problem.u) - problem.target, problem.delta).sum(axis=1)
            return found, value, problem.form.log_loss(found, u[k : k + 1])[:, 0] - centre[k]

        def look(part: np.ndarray, start: np.ndarray, walk: Walk, forced: Any = forced) -> None:
            walk.keep(part, *forced(part, start))
            if (flat := part & _flat(problem, walk)).any():
                walk.keep(flat, *forced(flat, problem.form.lifted(walk.thetas, problem.target.min())))

        everywhere = np.ones(len(moves), bool)
        for part, start in ((inner, first), (~inner, first), (everywhere, None)):
            look(part, walk.neighbours() if start is None else start, walk)
            if local.regular(q, walk):
                break
        sides = [local.crossing(*walk.seen()[:2], sign).at for sign in (-1, 1)]
        there = problem.form.log_loss(good, u[k : k + 1])[:, 0] - centre[k]
        if len(there) and (there.min() < sides[0] or there.max() > sides[1]):
            look(everywhere, good[np.abs(there - moves[:, None]).argmin(axis=1)], walk)
            sides = [local.outermost(*walk.seen()[:2], sign) for sign in (-1, 1)]
            sides = [min(sides[0], there.min()), max(sides[1], there.max())]
        # A fit that goes through points follows them: at an edge of few rows its profile is narrower than the noise.
        least = float(np.sqrt(max(q @ local.plain @ q, 0.0) * local.quantile))
        low[k], high[k] = centre[k] + min(sides[0], -least), centre[k] + max(sides[1], least)
    return low, high


def _flat(problem: Problem, walk: Walk) -> np.ndarray:
    """The places ``[P]`` at which the floor is next to nothing."""
    if not problem.form.floor:
        return np.zeros(len(walk.moves), bool)
    flat: np.ndarray = walk.thetas[:, -1] < problem.target.min() + np.log(_NOTHING)
    return flat


def _nearest(ends: np.ndarray, q: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of ``ends [m, size]`` the one whose q·theta is nearest to each of ``values [P]``, ``[P, size]``."""
    found: np.ndarray = ends[np.abs(ends @ q - values[:, None]).argmin(axis=1)]
    return found
