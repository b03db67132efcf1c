"""Scenes that show what a caption of `scenes` says, read from its words alone: what prompts are tested with."""

from __future__ import annotations

import numpy as np

from mmdit_jax.data.scenes.layout import Draws, Relation, arrange
from mmdit_jax.data.scenes.renderer import Scene, dress
from mmdit_jax.data.scenes.vocabulary import BACKGROUNDS, COLOURS, NUMBERS, SHAPES

_SINGULAR = {shape + ("es" if shape.endswith("s") else "s"): shape for shape in SHAPES} | {s: s for s in SHAPES}


def drawn(caption: str, seed: int) -> Scene:
    """A scene of which the caption is true; what the caption leaves open is drawn at random."""
    draws = Draws(np.random.default_rng((77, seed)))
    items: list[tuple[str, str]] = []
    relation: str | None = None
    words = caption.replace(",", "").split()
    count, colour = 1, None
    background = draws.choice(tuple(BACKGROUNDS))
    for i, word in enumerate(words):
        if word in ("a", "an"):
            count, colour = 1, None
        elif word in NUMBERS:
            count, colour = NUMBERS.index(word), None
        elif word in COLOURS:
            colour = word
        elif word in _SINGULAR:
            taken = {c for s, c in items if s == _SINGULAR[word]}
            free = [name for name in COLOURS if name not in taken]
            items += [(_SINGULAR[word], colour or draws.choice(free))] * count
        elif word in ("left", "right", "above", "below"):
            relation = word if word in ("above", "below") else f"{word} of"
        elif word == "background":
            background = next(name for name in BACKGROUNDS if " ".join(words[:i]).endswith(name))
    objects = arrange(draws, items, Relation(0, relation, 1) if relation else None)
    return dress(draws, objects, background)
