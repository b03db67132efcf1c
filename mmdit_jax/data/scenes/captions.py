"""Training scenes with a true caption of at most 16 words, as a pure function of (seed, split, index)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np

from mmdit_jax.data.scenes.geometry import SHAPES, Array
from mmdit_jax.data.scenes.layout import Draws, Relation, arrange
from mmdit_jax.data.scenes.renderer import Scene, dress, render
from mmdit_jax.data.scenes.vocabulary import BACKGROUNDS, COLOURS, MAX_OBJECTS, RELATIONS, phrase
from mmdit_jax.errors import unknown

SPLITS: Final[dict[str, int]] = {"train": 0, "validation": 1}
MAX_WORDS: Final = 16


@dataclasses.dataclass(frozen=True)
class Group:
    """Objects of one kind. ``named`` tells whether the caption names their colour."""

    shape: str
    colour: str
    count: int
    named: bool = True


def caption(groups: Sequence[Group], relation: str | None = None, background: str | None = None) -> str:
    """``a red circle left of two squares on a dark gray background``: the words for 1 to 3 groups.

    A relation joins exactly two groups. Lists take no comma before "and"; a comma is glued to its word.
    """
    phrases = [phrase(g.shape, g.count, g.colour if g.named else None) for g in groups]
    if relation is not None:
        first, second = phrases
        text = f"{first} {relation} {second}"
    else:
        text = ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]
    return f"{text} on a {background} background" if background is not None else text


def example(seed: int, split: str, index: int) -> tuple[str, Scene]:
    """Caption and scene number ``index`` of a split: 1 to 4 objects in 1 to 3 groups.

    Colours, relations and backgrounds are left out of some captions, since the evaluation prompts leave them out too;
    what a caption does say is always true, and it always tells the groups apart.

    Raises:
        UserError: an unknown split.
    """
    if split not in SPLITS:
        unknown("split", split, SPLITS)
    draws = Draws(np.random.default_rng((seed, SPLITS[split], index)))
    groups = _groups(draws)
    relation = None
    if [g.count for g in groups] == [1, 1] and draws() < 0.6:
        relation = draws.choice(tuple(RELATIONS))
    items = [(g.shape, g.colour) for g in groups for _ in range(g.count)]
    objects = arrange(draws, items, Relation(0, relation, 1) if relation else None)
    background = draws.choice(tuple(BACKGROUNDS))
    text = caption(groups, relation, background if draws() < 0.25 else None)
    return text, dress(draws, objects, background)


def examples(seed: int, split: str, start: int, stop: int, resolution: int = 32) -> tuple[Array, list[str]]:
    """Examples ``start`` to ``stop`` - 1: images uint8 [N, resolution, resolution, 3] and their N captions."""
    captions, scenes = [], []
    for index in range(start, stop):
        text, scene = example(seed, split, index)
        captions.append(text)
        scenes.append(scene)
    return render(scenes, resolution), captions


def _groups(draws: Draws) -> list[Group]:
    while True:
        number = draws.choice((1, 2, 3), (0.42, 0.48, 0.10))
        counts = [draws.choice((1, 2, 3, 4), (0.55, 0.17, 0.15, 0.13) if number == 1 else (0.8, 0.15, 0.05, 0.0))]
        counts += [draws.choice((1, 2, 3), (0.8, 0.15, 0.05)) for _ in range(number - 1)]
        kinds = [(draws.choice(SHAPES), draws.choice(tuple(COLOURS))) for _ in range(number)]
        if sum(counts) <= MAX_OBJECTS and len(set(kinds)) == number:
            break
    shapes = [shape for shape, _ in kinds]
    keep = 0.0 if draws() < 0.3 else 0.9  # a caption without any colour, or with nearly all
    return [
        Group(shape, colour, count, named=shapes.count(shape) > 1 or draws() < keep)
        for (shape, colour), count in zip(kinds, counts, strict=True)
    ]
