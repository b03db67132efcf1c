"""One budget of approach 2: runs of equal compute, the parabola through their losses, the best size that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from scaling.clusters import clusters, windows
from scaling.errors import TableError
from scaling.parabola import Parabola, fieller, vertex_error
from scaling.plain import plain

MIN_SIZES = 3
"""Different sizes that a budget needs: a parabola has three coefficients."""
SAME_SIZE = 1e-3
"""Difference of log N up to which two runs are of one size."""


@dataclass(frozen=True)
class Budget:
    """Runs of one compute, and the size that is best for it."""

    compute: float
    """Geometric mean of its rows."""
    spread: float
    """Their largest compute over the least."""
    rows: int
    sizes: int
    span: tuple[float, float]
    """From the smallest to the largest N."""
    n_opt: float
    """The parabola's vertex; NaN where there is none."""
    low: float
    """Of Fieller's interval of the vertex; NaN where nothing tells noise, or no interval is left."""
    high: float
    d_opt: float
    """What a run of that size and compute has of data; NaN likewise."""
    loss: float
    """Of the parabola, at ``n_opt``."""
    error: float
    """Standard error of log ``n_opt``, by the delta method."""
    edge: bool
    """The lowest mean loss is at the smallest or largest N: the best size may lie beyond."""
    reason: str
    """Why the budget takes no part in the laws; empty where it does."""
    curve: tuple[float, float, float]
    """(log) loss = c0 + c1 x + c2 x² with x = log N; of log loss or loss, as ``IsoFlops.of`` says."""

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""
        return {name: plain(value) for name, value in vars(self).items()}


def budget_index(log_c: np.ndarray, log_n: np.ndarray, given: Sequence[float], tolerance: float) -> np.ndarray:
    """Index ``[rows]`` of each row's budget, or −1."""
    size = clusters(log_n, SAME_SIZE)
    if not len(given):
        return windows(log_c, size, tolerance, MIN_SIZES)
    middles = np.sort(np.asarray(given, dtype=np.float64))
    if not (np.isfinite(middles).all() and (middles > 0).all()):
        raise TableError(f"budgets={list(given)}: expected numbers above 0")
    if (np.diff(np.log(middles)) <= 0).any():
        raise TableError(f"budgets={list(given)}: expected different numbers")
    apart = np.abs(log_c[:, None] - np.log(middles))
    nearest = apart.argmin(axis=1)
    index = np.where(apart.min(axis=1) <= tolerance + 1e-9, nearest, -1)
    for key, middle in enumerate(middles):
        sizes = len(np.unique(size[index == key]))
        if sizes < MIN_SIZES:
            raise TableError(
                f"budgets: {middle:g} has {sizes} sizes within {tolerance:g} of its log; expected {MIN_SIZES} or more"
            )
    return index


def shape(parabola: Parabola, values: np.ndarray) -> tuple[str, bool]:
    """(why there is no vertex, whether the lowest mean is at an edge) of a budget; empty where there is one."""
    member = clusters(parabola.x, SAME_SIZE)
    means = np.bincount(member, weights=values[parabola.rows]) / np.bincount(member)
    lowest = int(np.argmin(means))
    if lowest in (0, len(means) - 1):
        end, other = ("smallest", "smaller") if lowest == 0 else ("largest", "larger")
        return f"the lowest loss is at the {end} size: a {other} one may be better", True
    if not np.isfinite(parabola.vertices(parabola.coefficients(values))):
        return "the parabola has no minimum among the sizes", False
    return "", False


def pooled_noise(parabolas: Sequence[Parabola], values: np.ndarray) -> tuple[float, int]:
    """(standard deviation of values about parabolas, its degrees of freedom), pooled; (NaN, 0) without any."""
    freedom = sum(len(parabola.rows) - 3 for parabola in parabolas)
    if freedom <= 0:
        return float("nan"), 0
    square = sum(float((parabola.residuals(values) ** 2).sum()) for parabola in parabolas)
    return float(np.sqrt(square / freedom)), freedom


def find_budget(
    parabola: Parabola,
    values: np.ndarray,
    log_c: np.ndarray,
    log_d: np.ndarray,
    of: str,
    noise: float,
    freedom: int,
    level: float,
) -> Budget:
    nan = float("nan")
    reason, edge = shape(parabola, values)
    found = parabola.coefficients(values)
    vertex = nan if reason else float(parabola.vertices(found))
    low = high = error = nan
    if not reason and freedom:
        spread = max(noise, 1e-12) ** 2 * parabola.spread[1:, 1:]
        error = vertex_error(found[1], found[2], spread)
        ends = fieller(found[1], found[2], spread, float(stats.t.ppf(0.5 + level / 2, freedom)))
        if ends is None:
            reason = "the bend of the parabola is not told from none: no best size is shown"
        else:
            low, high = (float(np.exp(parabola.middle + end)) for end in ends)
    lowest = float(parabola.at(found, np.asarray(vertex)))
    middle, own = parabola.middle, np.exp(log_c[parabola.rows])
    return Budget(
        compute=float(np.exp(log_c[parabola.rows].mean())),
        spread=float(own.max() / own.min()),
        rows=len(parabola.rows),
        sizes=int(clusters(parabola.x, SAME_SIZE).max()) + 1,
        span=(float(np.exp(parabola.x.min())), float(np.exp(parabola.x.max()))),
        n_opt=float(np.exp(vertex)),
        low=low,
        high=high,
        d_opt=float(np.exp(parabola.at(parabola.coefficients(log_d), np.asarray(vertex)))),
        loss=float(np.exp(lowest)) if of == "log" else lowest,
        error=error,
        edge=edge,
        reason=reason,
        curve=(
            float(found[0] - middle * found[1] + middle**2 * found[2]),
            float(found[1] - 2 * middle * found[2]),
            float(found[2]),
        ),
    )
