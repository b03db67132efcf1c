"""Wilson's interval for the mean of values in [0, 1], such as a player's share of each prompt's battles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from scaling.resample import group_index


def wilson(share: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's (1927) interval of a ``share`` of ``n`` trials, where n may be an effective number."""
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (share * n + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(n * share * (1 - share) + z**2 / 4)
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def share_interval(
    values: np.ndarray,
    level: float,
    *,
    weights: np.ndarray | None = None,
    clusters: Sequence[np.ndarray] = (),
) -> tuple[float, float]:
    """Interval of a mean of ``values [n]`` in [0, 1]: Wilson's, on as many trials as their clusters are worth.

    All or nothing, n clusters are worth about n trials. What varies less, as shares of many battles or ties do, is
    worth more, up to n²; since that is known from the clusters' own spread, it is taken off again by the square of
    Student's t over the normal quantile. Unlike a bootstrap's, the interval keeps its width where all are 0, or 1.

    The spread is the jackknife's over clusters; of two kinds of clusters, that over both is taken off the sum (Cameron,
    Gelbach and Miller 2011), but never is it less than over either alone, and degrees of freedom are Satterthwaite's
    (1946). n counts clusters as if all had one weight, (Σ w)² / Σ w²; of two kinds it is the lower that is held to.

    Args:
        weights: float ``[n]``; default: all alike.
        clusters: one or two indices int64 ``[n]`` from 0, values of one belong together; default: each by itself.

    NaN for a single cluster: of how others would differ it says nothing.
    """
    share = np.full(len(values), 1.0) if weights is None else weights
    # The same sum above and below, so that a mean of ones is one.
    mean = float((share * values).sum() / share.sum())
    share = share / share.sum()
    kinds = list(clusters) or [np.arange(len(values))]
    if min(int(index.max()) for index in kinds) < 1:
        return math.nan, math.nan
    off = share * (values - mean)
    spreads = [_spread(off, share, index) for index in kinds]
    variance = max(spread for spread, _ in spreads)
    if len(kinds) == 2:
        crossed, _ = group_index(kinds[0] * (int(kinds[1].max()) + 1) + kinds[1])
        variance = max(variance, sum(spread for spread, _ in spreads) - _spread(off, share, crossed)[0])
    least, most = min(count for _, count in spreads), max(count for _, count in spreads)
    whole = mean * (1 - mean)
    if variance <= 0:
        n, freedom = most**2 if whole else least, least - 1
    else:
        n = min(whole / variance, most**2)
        freedom = variance**2 / sum(spread**2 / max(count - 1, 1e-9) for spread, count in spreads)
    if n > least:
        tail = (1 + level) / 2
        n = max(least, n * float(stats.norm.ppf(tail) / stats.t.ppf(tail, max(freedom, 1.0))) ** 2)
    return wilson(mean, n, level)


def _spread(off: np.ndarray, weights: np.ndarray, index: np.ndarray) -> tuple[float, float]:
    """Variance of a weighted mean by leaving out one cluster at a time, and what number of clusters these come to."""
    size, moved = np.bincount(index, weights), np.bincount(index, off)
    kept = size < 1 - 1e-12
    moved = np.divide(moved, 1 - size, out=np.zeros_like(moved), where=kept)
    return float((moved**2).sum() * (len(size) - 1) / len(size)), float(1 / (size**2).sum())
