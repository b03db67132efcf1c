"""Wilson's interval for the mean of values in [0, 1], such as a player's share of each prompt's battles."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats


def wilson(share: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's (1927) interval of a ``share`` of ``n`` trials, where n may be an effective number."""
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (share * n + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(n * share * (1 - share) + z**2 / 4)
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def share_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Interval of the mean of independent ``values [n]`` in [0, 1]: Wilson's, on as many trials as they are worth.

    All or nothing, n values are worth about n trials. What varies less, as shares of many battles or ties do, is worth
    more, up to n²; since that is known from the values' own spread, it is taken off again by the square of Student's t
    over the normal quantile. Unlike a bootstrap's, the interval keeps its width where all values are 0, or 1.

    NaN for a single value: of how others would differ it says nothing.
    """
    count, mean = len(values), float(values.mean())
    if count < 2:
        return math.nan, math.nan
    tail = (1 + level) / 2
    most, variance = mean * (1 - mean), float(values.var(ddof=1))
    n = count * most / variance if count * variance > most else count**2 if most else count
    if n > count:
        n = max(count, n * float(stats.norm.ppf(tail) / stats.t.ppf(tail, count - 1)) ** 2)
    return wilson(mean, n, level)
