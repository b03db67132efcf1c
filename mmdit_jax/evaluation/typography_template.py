"""Read a word by comparing every place of an image with every letter: an optical reader for one font, without weights.

It knows the font of `signs`, and neither the word, its colours, its length nor its place. It can read any string of up
to four capitals, not only the words of a list.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
from PIL import Image

from mmdit_jax.data.signs.renderer import FIXED_PITCH, PITCH, letters
from mmdit_jax.data.signs.words import ALPHABET, LONGEST
from mmdit_jax.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]

SIDE: Final = 32
"""Pixels a side that are read; larger images are averaged down."""
SIZES: Final = (
    *(SIDE * (PITCH[0] + (PITCH[1] - PITCH[0]) * share) for share in (1 / 6, 1 / 2, 5 / 6)),
    SIDE * FIXED_PITCH,
)
"""Widths of a letter's cell that are tried, in pixels."""
WINDOW: Final = (10, 6)
"""Height and width of what is compared, in pixels: a capital with room above and below, and no neighbour."""
ACROSS, DOWN = 4, 2
"""Places tried a pixel, either way."""
FLOOR: Final = 0.03
"""Deviation from one colour, RMS over pixels and channels, that counts as nothing."""
LIKE: Final = 0.5
"""Share of a window's variance that a letter must explain to count as read."""


def read_templates(images: Array) -> list[str]:
    """The word in each image, "" where none is found.

    A window is explained by a letter as far as its pixels, in each channel, are a colour plus a multiple of the
    letter's coverage: R² of that regression, all channels together, so that ink may be of any colour on any other. Of
    all sizes, places and lengths the word is where R² exceeds ``LIKE`` by most, summed over its letters.

    Args:
        images: uint8 [N, R, R, 3].

    Raises:
        UserError: another shape or type.
    """
    return [_word(_explained(image)) for image in _shrunk(images)]


def _shrunk(images: Array) -> Array:
    """float32 [N, SIDE, SIDE, 3] in [0, 1]."""
    at = images.shape
    if len(at) != 4 or at[1] != at[2] or at[3] != 3 or images.dtype != np.uint8:
        raise UserError(f"images={images.dtype}{list(at)}: expected uint8 [N, R, R, 3]")
    if at[1] != SIDE:
        size = (SIDE, SIDE)
        images = np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BOX)) for i in images])
    return images.astype(np.float32) / 255


@functools.cache
def _templates() -> Array:
    """Every letter at every size and fraction of a pixel, centred, of unit norm: [pixels, size × letter × dy × dx]."""
    height, width = WINDOW
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    made = []
    for pitch in SIZES:
        for letter in ALPHABET:
            for dy in range(DOWN):
                for dx in range(ACROSS):
                    x, y = (left + width / 2 + dx / ACROSS) / SIDE, (top + height / 2 + dy / DOWN) / SIDE
                    drawn = letters(letter, pitch / SIDE, x, y, SIDE)[top : top + height, left : left + width]
                    made.append(drawn.ravel() - drawn.mean())
    stacked = np.stack(made, axis=1)
    return stacked / np.linalg.norm(stacked, axis=0)


def _explained(image: Array) -> Array:
    """R² of every letter at every place: float32 [size, letter, Y, X], Y and X in ``DOWN`` and ``ACROSS`` a pixel."""
    height, width = WINDOW
    windows = np.lib.stride_tricks.sliding_window_view(image, (height, width), axis=(0, 1))
    rows, columns = windows.shape[:2]
    flat = windows.reshape(rows * columns, 3, height * width)
    flat = flat - flat.mean(axis=2, keepdims=True)
    total = (flat**2).sum((1, 2)) + 3 * height * width * FLOOR**2
    found = ((flat.reshape(-1, height * width) @ _templates()).reshape(len(flat), 3, -1) ** 2).sum(1) / total[:, None]
    found = found.reshape(rows, columns, len(SIZES), len(ALPHABET), DOWN, ACROSS)
    return found.transpose(2, 3, 0, 4, 1, 5).reshape(len(SIZES), len(ALPHABET), rows * DOWN, columns * ACROSS)


def _word(explained: Array) -> str:
    best, which = explained.max(axis=1), explained.argmax(axis=1)
    top, word = 0.0, ""
    for size, pitch in enumerate(SIZES):
        total = np.zeros_like(best[size])
        for length in range(1, LONGEST + 1):
            step = round((length - 1) * pitch * ACROSS)
            total = total[:, : best.shape[2] - step] + best[size, :, step:] - LIKE
            place = np.unravel_index(int(total.argmax()), total.shape)
            if total[place] > top:
                top = float(total[place])
                steps = [round(i * pitch * ACROSS) for i in range(length)]
                word = "".join(ALPHABET[which[size, place[0], place[1] + by]] for by in steps)
    return word
