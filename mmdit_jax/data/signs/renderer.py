"""Paint signs, many at a time: a word in DejaVu Sans Mono Bold on a plate, on a plain background.

The font comes with matplotlib. Letters are drawn ten times as large and averaged down, so that a word may stand
anywhere between pixels, and the font's hints for small sizes have no part in it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmdit_jax.data.signs.words import LONGEST
from mmdit_jax.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]

MIN_RESOLUTION: Final = 32
FONT: Final = "DejaVuSansMono-Bold.ttf"
PITCH: Final = (0.18, 0.21)
"""Width of a letter's cell, in fractions of the frame's side."""
FIXED_PITCH: Final = 0.25
"""The same of all signs of `signs_fixed`: 8 of 32 pixels, so that a letter begins where a patch of 4 does."""
HEIGHT: Final = 0.729 / 0.602
"""Height of a capital over the width of its cell: the font's."""
SHIFT: Final = (0.03, 0.10)
"""The most that a word's centre is away from the frame's, across and down."""
PLATE: Final = (0.47, 0.30)
"""Half the plate's sides; it moves up and down with its word."""
_UNIT: Final = 60  # pixels of a cell's width in the large drawing
_CHUNK: Final = 256  # signs painted together

INKS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.86, 0.10, 0.10),
    "green": (0.08, 0.50, 0.14),
    "blue": (0.10, 0.22, 0.88),
    "black": (0.05, 0.05, 0.05),
    "white": (0.97, 0.97, 0.97),
    "yellow": (0.96, 0.88, 0.08),
}
"""RGB in [0, 1], of letters and of plates."""
PAIRS: Final[tuple[tuple[str, str], ...]] = tuple(
    (ink, plate)
    for plate, inks in {
        "white": ("red", "green", "blue", "black"),
        "black": ("white", "yellow", "red", "green"),
        "yellow": ("black", "blue", "red", "green"),
        "blue": ("white", "yellow"),
    }.items()
    for ink in inks
)
"""(letters, plate) that are told apart with ease."""


@dataclasses.dataclass(frozen=True)
class Sign:
    """A word and every number that its image needs."""

    word: str
    ink: str
    plate: str
    pitch: float
    """Width of a letter's cell. This and the places are in fractions of the frame's side."""
    x: float
    """The middle of the word."""
    y: float
    background: float
    """Gray level in [0, 1]."""
    shades: tuple[tuple[float, float, float], tuple[float, float, float]]
    """RGB offsets of letters and plate."""


def render(signs: Sequence[Sign], resolution: int = 32) -> Array:
    """Images of the signs, uint8 [N, resolution, resolution, 3]. Each depends on its own sign alone.

    Raises:
        UserError: the resolution is too small to read four letters.
    """
    if resolution < MIN_RESOLUTION:
        raise UserError(f"resolution={resolution}: signs need {MIN_RESOLUTION} pixels or more to be read")
    images = np.empty((len(signs), resolution, resolution, 3), np.uint8)
    for start in range(0, len(signs), _CHUNK):
        chunk = signs[start : start + _CHUNK]
        images[start : start + len(chunk)] = np.round(_paint(chunk, resolution) * 255)
    return images


def _paint(signs: Sequence[Sign], resolution: int) -> Array:
    edges = np.arange(resolution, dtype=np.float32)
    half = np.array(PLATE, np.float32) * resolution
    centres = np.array([(0.5, s.y) for s in signs], np.float32) * resolution
    # How much of each pixel's side the plate covers, across and down.
    spans = [
        np.clip(np.minimum(edges + 1, centre + side) - np.maximum(edges, centre - side), 0, 1)
        for centre, side in zip(centres.T[:, :, None], half, strict=True)
    ]
    plate = spans[1][:, :, None, None] * spans[0][:, None, :, None]
    colours = np.array([(INKS[s.ink], INKS[s.plate]) for s in signs], np.float32)
    colours = np.clip(colours + np.array([s.shades for s in signs], np.float32), 0, 1)[:, :, None, None]
    image = np.array([s.background for s in signs], np.float32)[:, None, None, None] * np.ones(3, np.float32)
    image = image + plate * (colours[:, 1] - image)
    ink = np.stack([letters(s.word, s.pitch, s.x, s.y, resolution) for s in signs])[..., None]
    return image + ink * (colours[:, 0] - image)


def letters(word: str, pitch: float, x: float, y: float, resolution: int) -> Array:
    """How much of each pixel the letters cover: float32 [resolution, resolution] in [0, 1].

    Args:
        word: capitals, at most four.
        pitch: width of a cell; this and the middle (x, y) of the word in fractions of the frame's side.
        resolution: pixels a side.
    """
    side = _UNIT / pitch
    drawing = _large(word)
    left, top = drawing.width / 2 - x * side, drawing.height / 2 - y * side
    small = drawing.resize((resolution, resolution), Image.Resampling.BOX, (left, top, left + side, top + side))
    return np.asarray(small, np.float32) / 255


@functools.lru_cache(maxsize=1024)
def _large(word: str) -> Image.Image:
    """The word in white on black, a cell 60 pixels wide, in the middle of a field that any frame fits in."""
    assert len(word) <= LONGEST
    side = round(2 * _UNIT / PITCH[0])
    drawing = Image.new("L", (side, side), 0)
    width = _font().getlength("M")
    place = (side / 2 - width * len(word) / 2, side / 2 + _UNIT * HEIGHT / 2)
    ImageDraw.Draw(drawing).text(place, word, fill=255, font=_font(), anchor="ls")
    return drawing


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONT, _UNIT / 0.602)
