"""Paint scenes, many at a time: anti-aliased flat shapes on a nearly flat background."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np

from mmdit_jax.data.scenes.geometry import Array, coverage, rotate
from mmdit_jax.data.scenes.layout import Draws, SceneObject
from mmdit_jax.data.scenes.vocabulary import BACKGROUNDS, COLOURS
from mmdit_jax.errors import UserError

SHADE: Final = 0.03  # each colour channel of an object and of the background wanders by this much
GRADIENT: Final = 0.03  # the background brightens by at most this much from one side to the other
MIN_RESOLUTION: Final = 24
_CHUNK: Final = 128  # scenes painted together: their arrays stay in cache


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects on a background, with every number that the image needs."""

    objects: tuple[SceneObject, ...]
    background: str
    shades: tuple[tuple[float, float, float], ...]
    """RGB offset of the background, then of each object."""
    gradient: tuple[float, float]
    """Brightness from left to right and from top to bottom."""


def dress(draws: Draws, objects: tuple[SceneObject, ...], background: str) -> Scene:
    """A scene with random shades and gradient."""
    shades = tuple(
        (draws.uniform(-SHADE, SHADE), draws.uniform(-SHADE, SHADE), draws.uniform(-SHADE, SHADE))
        for _ in range(1 + len(objects))
    )
    return Scene(objects, background, shades, (draws.uniform(-GRADIENT, GRADIENT), draws.uniform(-GRADIENT, GRADIENT)))


def render(scenes: Sequence[Scene], resolution: int = 32) -> Array:
    """Images of the scenes, uint8 [N, resolution, resolution, 3]. Each depends on its own scene alone.

    Raises:
        UserError: the resolution is too small for the shapes to be told apart.
    """
    if resolution < MIN_RESOLUTION:
        raise UserError(f"resolution={resolution}: scenes need {MIN_RESOLUTION} pixels or more; 32 and 64 are tested")
    images = np.empty((len(scenes), resolution, resolution, 3), np.uint8)
    for start in range(0, len(scenes), _CHUNK):
        chunk = scenes[start : start + _CHUNK]
        images[start : start + len(chunk)] = np.round(_paint(chunk, resolution) * 255)
    return images


def _paint(scenes: Sequence[Scene], resolution: int) -> Array:
    centres = np.arange(resolution, dtype=np.float32) + np.float32(0.5)
    x, y = centres[None, None, :], centres[None, :, None]
    base = np.array([np.add(BACKGROUNDS[s.background], s.shades[0]) for s in scenes], np.float32)
    slope = np.array([s.gradient for s in scenes], np.float32)[:, :, None, None]
    light = slope[:, 0] * (x / resolution - 0.5) + slope[:, 1] * (y / resolution - 0.5)
    image = np.clip(base[:, None, None, :] + light[..., None], 0, 1)
    # Objects never overlap, so the order does not matter: one pass for each shape and place in the list.
    groups: dict[tuple[int, str], list[int]] = {}
    for row, scene in enumerate(scenes):
        for place, item in enumerate(scene.objects):
            groups.setdefault((place, item.shape), []).append(row)
    for (place, shape), rows in groups.items():
        items = [scenes[row].objects[place] for row in rows]
        shades = np.array([scenes[row].shades[1 + place] for row in rows], np.float32)
        colours = np.clip(np.array([COLOURS[item.colour] for item in items], np.float32) + shades, 0, 1)
        places = np.array([(o.x, o.y, o.radius) for o in items], np.float32)[..., None, None] * np.float32(resolution)
        angles = np.array([o.angle for o in items], np.float32)[:, None, None]
        turned = rotate(x - places[:, 0], y - places[:, 1], angles)
        alpha = coverage(shape, *turned, places[:, 2])[..., None]
        image[rows] += alpha * (colours[:, None, None, :] - image[rows])
    return image
