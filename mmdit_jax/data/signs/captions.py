"""Training signs with a caption that spells their word, as a pure function of (seed, split, index)."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from mmdit_jax.data.scenes.layout import Draws
from mmdit_jax.data.signs.renderer import FIXED_PITCH, PAIRS, PITCH, SHIFT, Array, Sign, render
from mmdit_jax.data.signs.words import HELD_OUT, TRAINED
from mmdit_jax.errors import unknown

SPLITS: Final[dict[str, int]] = {"train": 0, "validation": 1}
SHADE: Final = 0.03  # each channel of letters and plate wanders by this much
BACKGROUNDS: Final = (0.25, 0.75)
FIXED_LONGEST: Final = 3
"""Letters of the longest words of `signs_fixed`."""
_QUOTED = re.compile(r'"([^"]*)"')


def caption(word: str, ink: str, plate: str) -> str:
    """``the word "STOP" in red on a white sign``."""
    return f'the word "{word}" in {ink} on a {plate} sign'


def word_of(text: str) -> str:
    """What a caption spells: the letters between its first two quotation marks; empty where there are none."""
    found = _QUOTED.search(text)
    return found.group(1) if found else ""


def example(seed: int, split: str, index: int, *, fixed: bool = False) -> tuple[str, Sign]:
    """Caption and sign number ``index`` of a split.

    Training shows words of ``TRAINED``. Of validation every other example, from the second on, shows one of
    ``HELD_OUT``, the rest as in training. ``fixed``: words of two and three letters, all ``stilled``.

    Raises:
        UserError: an unknown split.
    """
    if split not in SPLITS:
        unknown("split", split, SPLITS)
    draws = Draws(np.random.default_rng((seed, 10 + SPLITS[split], index)))
    words = HELD_OUT if split == "validation" and index % 2 else TRAINED
    if fixed:
        return stilled(draws.choice(tuple(word for word in words if len(word) <= FIXED_LONGEST)))
    return caption_and_sign(draws, draws.choice(words))


def stilled(word: str) -> tuple[str, Sign]:
    """Caption and sign of a word as all of `signs_fixed` are: black on white, in the middle, of one size."""
    plain = (0.0, 0.0, 0.0)
    sign = Sign(word, "black", "white", pitch=FIXED_PITCH, x=0.5, y=0.5, background=0.5, shades=(plain, plain))
    return caption(word, sign.ink, sign.plate), sign


def caption_and_sign(draws: Draws, word: str) -> tuple[str, Sign]:
    """A sign with this word; colours, size, place and background are drawn at random."""
    ink, plate = draws.choice(PAIRS)
    sign = Sign(
        word=word,
        ink=ink,
        plate=plate,
        pitch=draws.uniform(*PITCH),
        x=0.5 + draws.uniform(-SHIFT[0], SHIFT[0]),
        y=0.5 + draws.uniform(-SHIFT[1], SHIFT[1]),
        background=draws.uniform(*BACKGROUNDS),
        shades=(_shade(draws), _shade(draws)),
    )
    return caption(word, ink, plate), sign


def _shade(draws: Draws) -> tuple[float, float, float]:
    return (draws.uniform(-SHADE, SHADE), draws.uniform(-SHADE, SHADE), draws.uniform(-SHADE, SHADE))


def examples(
    seed: int, split: str, start: int, stop: int, resolution: int = 32, *, fixed: bool = False
) -> tuple[Array, list[str]]:
    """Examples ``start`` to ``stop`` - 1: images uint8 [N, resolution, resolution, 3] and their N captions."""
    made = [example(seed, split, index, fixed=fixed) for index in range(start, stop)]
    return render([sign for _, sign in made], resolution), [text for text, _ in made]
