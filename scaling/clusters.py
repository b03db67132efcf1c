"""Rows that belong together: values that are equal up to a tolerance, on a log scale."""

from __future__ import annotations

import numpy as np


def clusters(log_values: np.ndarray, tolerance: float) -> np.ndarray:
    """Index ``[rows]`` of each row's cluster, ascending: a gap of more than ``tolerance`` begins the next.

    Values that follow each other closely chain up: a cluster may be wider than ``tolerance``.
    """
    order = np.argsort(log_values, kind="stable")
    index = np.empty(len(log_values), dtype=np.int64)
    index[order] = np.concatenate([[0], np.cumsum(np.diff(log_values[order]) > tolerance)])[: len(order)]
    return index


def windows(log_values: np.ndarray, kinds: np.ndarray, tolerance: float, least: int) -> np.ndarray:
    """Index ``[rows]`` of each row's window, ascending, or −1: windows of at most ``tolerance`` on either side.

    The window with the most different ``kinds`` is taken first (of equals the one with more rows, then the narrowest),
    then the next among the rows that are left, while there are ``least`` kinds in one. Unlike clusters these do not
    chain up where other rows lie between.
    """
    order = np.argsort(log_values, kind="stable")
    value, kind = log_values[order], kinds[order]
    left = np.ones(len(order), dtype=bool)
    taken: list[tuple[float, np.ndarray]] = []
    while True:
        best: tuple[tuple[int, int, float], np.ndarray] | None = None
        for first in np.flatnonzero(left):
            # A hair more, so that rounding does not put equal rows on both sides of an end.
            end = int(np.searchsorted(value, value[first] + 2 * tolerance + 1e-9, side="right"))
            rows = first + np.flatnonzero(left[first:end])
            score = (len(np.unique(kind[rows])), len(rows), -float(value[rows[-1]] - value[first]))
            if score[0] >= least and (best is None or score > best[0]):
                best = score, rows
        if best is None:
            break
        left[best[1]] = False
        taken.append((float(value[best[1]].mean()), best[1]))
    index = np.full(len(order), -1, dtype=np.int64)
    for number, (_, rows) in enumerate(sorted(taken, key=lambda window: window[0])):
        index[order[rows]] = number
    return index
