"""Where the objects of a scene stand: apart from each other, inside the frame, in the relation that was asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np

from mmdit_jax.data.scenes.geometry import REACH, bounds
from mmdit_jax.data.scenes.vocabulary import RELATIONS

T = TypeVar("T")

GAP: Final = 0.05  # between the circles that hold two objects; the frame's side is 1
MARGIN: Final = 0.02  # between that circle and the frame
MAX_TURN: Final = 8.0  # degrees either way: a square never looks like a diamond
RADIUS: Final[dict[int, tuple[float, float]]] = {1: (0.19, 0.26), 2: (0.16, 0.21), 3: (0.14, 0.165), 4: (0.125, 0.14)}
SMALLEST: Final = 0.118  # 3.8 pixels at 32: below it, shapes look alike
CROWD: Final = 0.62  # share of the frame that the circles around the objects may claim at first
POSITION_MARGIN: Final = 0.1  # GenEval's POSITION_THRESHOLD
POSITION_COSINE: Final = 0.5  # GenEval: within 60 degrees of the axis
PLACED_COSINE: Final = 0.7  # scenes are placed within 45 degrees, so that a caption is never a matter of opinion


class Box(NamedTuple):
    """Axis-aligned box; x to the right, y down; any unit."""

    left: float
    top: float
    right: float
    bottom: float


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One shape. Position and radius are fractions of the frame's side, the angle is in radians."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def box(self) -> Box:
        left, top, right, bottom = (self.radius * side for side in bounds(self.shape, self.angle))
        return Box(self.x + left, self.y + top, self.x + right, self.y + bottom)


class Relation(NamedTuple):
    """``first`` stands ``name`` (one of ``RELATIONS``) ``second``; both are indices into the objects."""

    first: int
    name: str
    second: int


class Draws:
    """Uniform numbers in [0, 1) from one generator, taken one at a time: numpy's scalar calls are ten times slower."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._left: list[float] = []

    def __call__(self) -> float:
        if not self._left:
            self._left = self._rng.random(128).tolist()
        return self._left.pop()

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self()

    def choice(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of ``options``, in proportion to ``weights`` (which sum to 1) or evenly."""
        if weights is None:
            return options[int(self() * len(options))]
        u = self()
        for option, weight in zip(options, weights, strict=True):
            u -= weight
            if u < 0:
                return option
        return options[-1]


def relation_holds(first: Box, second: Box, name: str, cosine: float = POSITION_COSINE) -> bool:
    """GenEval's rule: the offset of the centres, less a margin of a tenth of both sizes, points along the relation."""
    dx = (first.left + first.right - second.left - second.right) / 2
    dy = (first.top + first.bottom - second.top - second.bottom) / 2
    width = first.right - first.left + second.right - second.left
    height = first.bottom - first.top + second.bottom - second.top
    along_x = math.copysign(max(abs(dx) - POSITION_MARGIN * width, 0.0), dx)
    along_y = math.copysign(max(abs(dy) - POSITION_MARGIN * height, 0.0), dy)
    x, y = RELATIONS[name]
    return along_x * x + along_y * y > cosine * math.hypot(dx, dy)


def arrange(
    draws: Draws, items: Sequence[tuple[str, str]], relation: Relation | None = None
) -> tuple[SceneObject, ...]:
    """Place objects of the given (shape, colour) at random, without overlap, by rejection.

    Objects get smaller where they do not fit; four of the widest always fit at the smallest radius.
    """
    low, high = RADIUS[len(items)]
    crowd = sum(math.pi * (high * REACH[shape] + GAP / 2) ** 2 for shape, _ in items)
    room = min(1.0, math.sqrt(CROWD / crowd))  # start from sizes that have a fair chance
    low, high = max(low * room, SMALLEST), max(high * room, SMALLEST)
    failed = 0
    while True:
        objects = _attempt(draws, items, low, high)
        if objects is None:
            failed += 1
            if failed % 6 == 0:
                low, high = max(low * 0.97, SMALLEST), max(high * 0.97, SMALLEST)
            continue
        if relation is None:
            return tuple(objects)
        first, second = objects[relation.first].box, objects[relation.second].box
        if relation_holds(first, second, relation.name, PLACED_COSINE):
            return tuple(objects)


def _attempt(draws: Draws, items: Sequence[tuple[str, str]], low: float, high: float) -> list[SceneObject] | None:
    placed: list[SceneObject] = []
    circles: list[tuple[float, float, float]] = []
    for shape, colour in items:
        radius = draws.uniform(low, high)
        reach = radius * REACH[shape]
        span = 1 - 2 * (reach + MARGIN)
        for _ in range(10):
            x = reach + MARGIN + span * draws()
            y = reach + MARGIN + span * draws()
            if not any(math.hypot(x - a, y - b) < reach + other + GAP for a, b, other in circles):
                break
        else:
            return None
        angle = 0.0 if shape == "circle" else math.radians(draws.uniform(-MAX_TURN, MAX_TURN))
        circles.append((x, y, reach))
        placed.append(SceneObject(shape, colour, x, y, radius, angle))
    return placed
