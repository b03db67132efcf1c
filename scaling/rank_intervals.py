"""Intervals of ranks that hold for all players at once, from intervals of all their differences."""

from __future__ import annotations

import numpy as np


def rank_intervals(
    ratings: np.ndarray,
    deviations: np.ndarray,
    level: float,
    *,
    widen: float = 1.0,
    apart: np.ndarray | None = None,
    sure: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Best and worst rank that each player may have: int ``[players]`` each; 1 is the highest rating.

    Source: Mogstad, Romano, Shaikh and Wilhelm 2024, joint confidence sets for all ranks. Differences of all pairs get
    simultaneous intervals, whose critical value is the quantile of the largest studentised difference over pairs
    (step-down: pairs that are settled leave, and the others get a smaller value). A player's best rank is one more
    than the number of those surely better; its worst is the number of players less those surely worse. So all true
    ranks lie in their intervals together with probability ``level``, or more where strengths are far apart.

    Args:
        ratings: ``[players]``, any scale.
        deviations: ``[draws, players]``, what ratings are off by in as many repetitions (bootstrap less estimate).
        widen: factor of the critical value, such as ``resample.small_sample_factor``.
        apart, sure: bool ``[players, players]``, pairs that ``deviations`` say nothing of, and those of them whose
            order is known all the same.
    """
    players = len(ratings)
    i, j = np.triu_indices(players, 1)
    gap = ratings[i] - ratings[j]
    off = deviations[:, i] - deviations[:, j]
    error = off.std(axis=0)
    # Two whose difference never moves (both are given) are apart for certain.
    sizes = np.divide(np.abs(gap), error, out=np.full(len(gap), np.inf), where=error > 0)
    sizes[gap == 0] = 0.0
    judged = np.ones(len(gap), dtype=bool)
    if apart is not None and sure is not None:
        judged = ~apart[i, j]
        sizes[~judged] = np.where(sure[i, j], np.inf, 0.0)[~judged]
    extreme = np.abs(np.divide(off, error, out=np.zeros_like(off), where=error > 0))
    settled = np.isinf(sizes)
    while (unsettled := judged & ~settled).any():
        critical = widen * np.quantile(extreme[:, unsettled].max(axis=1), level)
        more = sizes > critical
        if not (more & unsettled).any():
            break
        settled |= more
    better, worse = np.where(gap > 0, i, j)[settled], np.where(gap > 0, j, i)[settled]
    low = 1 + np.bincount(worse, minlength=players)
    high = players - np.bincount(better, minlength=players)
    return low, high
