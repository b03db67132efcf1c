"""Vertices of parabolas, and what is known of them."""

from __future__ import annotations

import numpy as np


def fieller(slope: float, bend: float, spread: np.ndarray, t: float) -> tuple[float, float] | None:
    """The u at which slope + 2 bend u is not told from 0 (Fieller 1954); None where these are not an interval.

    ``spread [2, 2]`` is the covariance of both.
    """
    a = 4 * (bend**2 - t**2 * spread[1, 1])
    b = 4 * (slope * bend - t**2 * spread[0, 1])
    c = slope**2 - t**2 * spread[0, 0]
    if a <= 0:
        return None
    root = np.sqrt(max(b**2 - 4 * a * c, 0.0))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def vertex_error(slope: float, bend: float, spread: np.ndarray) -> float:
    """Standard error of the vertex −slope / (2 bend) by the delta method."""
    gradient = np.array([-1 / (2 * bend), slope / (2 * bend**2)])
    return float(np.sqrt(gradient @ spread @ gradient))
