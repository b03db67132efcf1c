"""Pareto fronts of two scores, one to be high and one to be low: the rank that the SD3 paper gives a run."""

from __future__ import annotations

import numpy as np


def fronts(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Index of the Pareto front of each point: two arrays ``[..., n]`` -> int64 ``[..., n]``, 1 for the best front.

    A point dominates another where it is at least as good in both scores (``up`` high, ``down`` low) and better in
    one; equal points share a front. Front 1 is what nothing dominates, front 2 what nothing dominates once front 1
    is taken away, and so on (Esser et al. 2024, section 5.1). Leading axes are independent problems.

    Dominance is a partial order, so a point's front is 1 + the highest front among its dominators. Sorted by ``up``
    (best first, then by ``down``), all dominators come before the point: one pass, n² work, over the batch at once.
    Numbers must not be NaN: the caller says which cell is.
    """
    up, down = np.broadcast_arrays(np.asarray(up, dtype=np.float64), np.asarray(down, dtype=np.float64))
    shape, count = up.shape, up.shape[-1]
    order = np.lexsort((down, -up), axis=-1).reshape(-1, count)
    # Points first: the pass then reads whole rows of the batch.
    high = np.ascontiguousarray(np.take_along_axis(up.reshape(-1, count), order, axis=-1).T)
    low = np.ascontiguousarray(np.take_along_axis(down.reshape(-1, count), order, axis=-1).T)
    found = np.ones(low.shape, dtype=np.int64)
    for i in range(1, count):
        dominates = low[:i] < low[i]
        dominates |= (low[:i] == low[i]) & (high[:i] > high[i])
        found[i] += (found[:i] * dominates).max(axis=0)
    out = np.empty_like(order)
    np.put_along_axis(out, order, found.T, axis=-1)
    return out.reshape(shape)
