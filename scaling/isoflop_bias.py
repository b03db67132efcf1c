"""What approach 2 makes of a law that is known: parabolas that are wide or off their centre miss the optimum.

A budget's loss over log N is no parabola; its two sides fall at different rates. A fit to a grid that is wide, or not
centred, puts the vertex where the optimum is not, and by more at some budgets than at others (2603.22339).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling.isoflop_grid import Grid, at_equal_compute
from scaling.law_kinds import JOINT
from scaling.laws import Law, fit_law
from scaling.parabola import Parabola
from scaling.plain import plain
from scaling.resample import interval

PROPORTIONAL = 0.05
"""How far log(C / (N D)) may range for compute to count as proportional to N D."""
_FINE = 401
"""Sizes at which a law is looked at between a budget's smallest and largest."""


@dataclass(frozen=True)
class Value:
    """A number with the ends of its interval, NaN where nothing was resampled."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers, None where undefined."""
        return {name: plain(number) for name, number in vars(self).items()}


@dataclass(frozen=True)
class Bias:
    """What the method finds on the same grid without noise, less what is true of the joint law that was evaluated.

    ``sizes``: of each budget that takes part, vertex over optimum less 1; NaN where the law has no vertex or no optimum
    in the range of N. ``exponent``: of a. Intervals are by the resampled joint law.
    """

    law: Law
    proportional: bool
    """Whether compute is proportional to N·D; if not, the optimum is looked for along each budget's D of N."""
    flops: float
    """Median of C / (N D)."""
    optima: tuple[float, ...]
    sizes: tuple[Value, ...]
    exponent: Value
    exponent_of_law: float
    exponent_of_method: float

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""
        return {
            "law": self.law.to_json(),
            "proportional": self.proportional,
            "flops_per_nd": self.flops,
            "optima": plain(self.optima),
            "sizes": [value.to_json() for value in self.sizes],
            "exponent": self.exponent.to_json(),
            "exponent_of_law": plain(self.exponent_of_law),
            "exponent_of_method": plain(self.exponent_of_method),
        }


def bias_of(
    grid: Grid,
    parabolas: Sequence[Parabola],
    log_c: np.ndarray,
    log_n: np.ndarray,
    loss: np.ndarray,
    *,
    of_log: bool,
    groups: np.ndarray,
    draws: int,
    level: float,
    seed: int,
) -> Bias:
    """Fit L = E + A N^(−alpha) + B D^(−beta) to all rows, and repeat approach 2 on it on the same grid.

    ``parabolas`` are all budgets, ``grid`` holds those that take part.

    With C = k N D the optimum is N = (alpha A / (beta B))^(1/(alpha + beta)) (C/k)^(beta/(alpha + beta)) (Hoffmann et
    al. 2022, eq. 4). Where C is not proportional to N D, as where attention or streams count, the least loss is looked
    for along the D that the budget's runs have at each N.

    Raises TableError where the law cannot be fitted.
    """
    law = fit_law(JOINT, [np.exp(log_n), np.exp(grid.log_d)], loss, groups=groups, draws=draws, seed=seed)
    ratio = (log_c - log_n - grid.log_d)[grid.rows]
    proportional = bool(np.ptp(ratio) <= PROPORTIONAL)
    flops = float(np.exp(np.median(ratio)))
    predicted = _losses(law, log_n, grid.log_d)
    values = at_equal_compute(np.log(predicted) if of_log else predicted, log_c, parabolas)
    vertices = grid.vertices(values)
    if proportional:
        optima = _analytic(law, grid.middles - np.log(flops))
    else:
        optima = np.stack([_least(law, grid, number) for number in range(len(grid.parabolas))], axis=-1)
    known = np.isfinite(vertices) & np.isfinite(optima)
    slopes = [grid.lines(np.where(known, found, np.nan))[:, 0, 1] for found in (vertices, optima)]
    apart = np.expm1(vertices - optima)
    return Bias(
        law=law,
        proportional=proportional,
        flops=flops,
        optima=tuple(float(value) for value in np.exp(optima[0])),
        sizes=tuple(_value(apart[:, number], level) for number in range(apart.shape[1])),
        exponent=_value(slopes[0] - slopes[1], level),
        exponent_of_law=float(slopes[1][0]),
        exponent_of_method=float(slopes[0][0]),
    )


def _losses(law: Law, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
    """``[1 + draws, points]``: of the law, then of the resampled ones."""
    at = np.exp(log_n), np.exp(log_d)
    return np.concatenate([law.predict(*at)[None], law.draws_of(*at)])


def _analytic(law: Law, log_nd: np.ndarray) -> np.ndarray:
    """log N of the least loss ``[1 + draws, B]`` where log(N D) is ``log_nd [B]``."""
    a, b, alpha, beta = (
        np.concatenate([[law.params[name]], law.sampled(name)]) for name in ("A", "B", "alpha", "beta")
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        start = np.log(alpha) + np.log(a) - np.log(beta) - np.log(b)
        found = (start[:, None] + beta[:, None] * log_nd) / (alpha + beta)[:, None]
    return np.where(np.isfinite(found), found, np.nan)


def _least(law: Law, grid: Grid, number: int) -> np.ndarray:
    """log N ``[1 + draws]`` of the least loss along budget ``number``; NaN at an end of its sizes."""
    x = grid.parabolas[number].x
    fine = np.linspace(x.min(), x.max(), _FINE)
    losses = _losses(law, fine, grid.data(number, fine))
    lowest = losses.argmin(axis=1)
    inside = (lowest > 0) & (lowest < _FINE - 1)
    at = np.clip(lowest, 1, _FINE - 2)
    before, here, after = (losses[np.arange(len(at)), at + step] for step in (-1, 0, 1))
    # A parabola through the least of the fine grid and its neighbours.
    shift = 0.5 * (before - after) / np.maximum(before - 2 * here + after, 1e-300)
    return np.where(inside, fine[at] + shift * (fine[1] - fine[0]), np.nan)


def _value(values: np.ndarray, level: float) -> Value:
    """``values [1 + draws]``, the first being the estimate."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not len(drawn) or not np.isfinite(values[0]):
        return Value(float(values[0]), float("nan"), float("nan"))
    low, high = interval(drawn, level, centre=float(values[0]))
    return Value(float(values[0]), float(low), float(high))
