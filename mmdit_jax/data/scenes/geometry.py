"""Five shapes as exact signed distances: what the renderer paints and what the scorer compares with.

Every shape lives in unit coordinates, x to the right and y down. Sizes are chosen so that all five cover a similar
area at the same radius and stay distinguishable at a radius of 4 pixels: a star needs longer points than a circle
of equal area, else anti-aliasing turns it into one.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SHAPES: Final = ("circle", "square", "triangle", "cross", "star")

_SQUARE = 0.88  # half a side
_TRIANGLE = 1.42  # centre to corner
_CROSS, _ARM = 1.12, 0.38  # half the length and half the width of a bar
_STAR, _NOTCH = 1.45, 0.58  # centre to the points and to the notches

REACH: Final[dict[str, float]] = {
    "circle": 1.0,
    "square": _SQUARE * 2**0.5,
    "triangle": _TRIANGLE,
    "cross": math.hypot(_CROSS, _ARM),
    "star": _STAR,
}
"""Radius of the circle around the centre that holds the whole shape, at radius 1."""

AREA: Final[dict[str, float]] = {
    "circle": math.pi,
    "square": 4 * _SQUARE**2,
    "triangle": 3 * _TRIANGLE**2 * math.sin(2 * math.pi / 3) / 2,
    "cross": 8 * _CROSS * _ARM - 4 * _ARM**2,
    "star": 5 * _STAR * _NOTCH * math.sin(math.pi / 5),
}
"""Area at radius 1. Each shape is placed by its centroid."""


def signed_distance(shape: str, x: Array, y: Array) -> Array:
    """Distance of the points (x, y) to the outline of the unit ``shape``, negative inside.

    Args:
        shape: one of ``SHAPES``.
        x, y: float arrays of one common shape, in units of the radius, y down.

    Returns:
        Array like ``x``.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - 1
    if shape == "square":
        return _box(np.abs(x), np.abs(y), _SQUARE, _SQUARE)
    if shape == "cross":  # the union of two bars: by symmetry, look at the nearer one only
        ax, ay = np.abs(x), np.abs(y)
        return _cross(np.maximum(ax, ay), np.minimum(ax, ay))
    if shape == "triangle":
        return _spiked(x, y, points=3, tip=_TRIANGLE, notch=_TRIANGLE / 2)
    if shape == "star":
        return _spiked(x, y, points=5, tip=_STAR, notch=_NOTCH)
    raise KeyError(shape)


def coverage(shape: str, x: Array, y: Array, radius: Array | float) -> Array:
    """Share of each pixel that ``shape`` covers, by a linear ramp one pixel wide around the outline.

    Args:
        x, y: pixel centres relative to the shape's centre, in its own (rotated) frame, in pixels.
        radius: radius in pixels, broadcast against x.
    """
    distance = signed_distance(shape, x / radius, y / radius) * radius
    return np.clip(0.5 - distance, 0, 1)


def rotate(x: Array, y: Array, angle: Array | float) -> tuple[Array, Array]:
    """The points in the frame of a shape that is turned by ``angle`` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def bounds(shape: str, angle: float) -> tuple[float, float, float, float]:
    """Axis-aligned box (left, top, right, bottom) of the turned unit shape, relative to its centre."""
    if shape == "circle":
        return -1.0, -1.0, 1.0, 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    xs = [x * cos - y * sin for x, y in _corners(shape)]
    ys = [x * sin + y * cos for x, y in _corners(shape)]
    return min(xs), min(ys), max(xs), max(ys)


@functools.cache
def _corners(shape: str) -> tuple[tuple[float, float], ...]:
    """The corners that may touch the box of the turned shape."""
    if shape == "square":
        return tuple((_SQUARE * x, _SQUARE * y) for x in (-1, 1) for y in (-1, 1))
    if shape == "cross":
        bar = [(_CROSS * x, _ARM * y) for x in (-1, 1) for y in (-1, 1)]
        return (*bar, *((y, x) for x, y in bar))
    points, tip = (3, _TRIANGLE) if shape == "triangle" else (5, _STAR)
    turns = [2 * math.pi * k / points for k in range(points)]
    return tuple((tip * math.sin(turn), -tip * math.cos(turn)) for turn in turns)


def _box(ax: Array, ay: Array, width: float, height: float) -> Array:
    dx, dy = ax - width, ay - height
    outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
    return outside + np.minimum(np.maximum(dx, dy), 0)


def _cross(far: Array, near: Array) -> Array:
    """``far`` and ``near`` are the larger and the smaller of |x| and |y|."""
    outside = _box(far, near, _CROSS, _ARM)
    corner = np.sqrt((far - _ARM) ** 2 + (near - _ARM) ** 2)  # where the two bars meet
    inside = np.maximum(np.maximum(far - _CROSS, near - _ARM), -corner)
    # In the middle square the nearest outline is that inner corner, not a side of the bar.
    inside = np.where(far < _ARM, -corner, inside)
    return np.where(outside > 0, outside, inside)


def _spiked(x: Array, y: Array, points: int, tip: float, notch: float) -> Array:
    """A star polygon with one point up, folded into half a spike: then its outline is a single segment."""
    sector = 2 * math.pi / points
    x, y = np.abs(x), -y
    normals = [(math.cos(sector * k), math.sin(sector * k)) for k in (0.5, 1.0)]
    for cos, sin in (*normals, *normals)[: points - 1]:  # reflect until every point lies beside the upper spike
        beyond = 2 * np.maximum(x * cos - y * sin, 0)
        x, y = np.abs(x - beyond * cos), y + beyond * sin
    ex, ey = notch * math.sin(sector / 2), notch * math.cos(sector / 2) - tip
    wx, wy = x, y - tip
    along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
    distance = np.sqrt((wx - along * ex) ** 2 + (wy - along * ey) ** 2)
    return np.where(wx * ey - wy * ex > 0, -distance, distance)
