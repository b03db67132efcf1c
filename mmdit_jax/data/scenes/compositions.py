"""Compositional prompts in the words of `scenes`: T2I-CompBench's three kinds of question that scenes can be asked.

Source: T2I-CompBench (Huang et al. 2023, arXiv:2307.06350) and T2I-CompBench++ (2024), their categories attribute
binding, 2-D spatial relation and numeracy. Scenes have colours and shapes to bind, and no texture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from mmdit_jax.data.scenes.captions import Group, caption
from mmdit_jax.data.scenes.geometry import SHAPES
from mmdit_jax.data.scenes.prompts import Prompt, Requirement
from mmdit_jax.data.scenes.vocabulary import COLOURS, RELATIONS
from mmdit_jax.errors import UserError

COMPOSITIONS: Final = ("attribute", "spatial", "numeracy")

ROUND: Final = 160
"""So many prompts of a task are all different; then it begins anew. Numeracy has asked for each pair of shapes in each
pair of counts by then."""

_COUNTS: Final = ((2, 1), (1, 2), (2, 2), (3, 1), (1, 3), (2, 1, 1), (1, 2, 1), (1, 1, 2))
_COLOURS: Final = tuple(COLOURS)


def compositions(count_per_task: int, seed: int = 0) -> list[Prompt]:
    """``count_per_task`` prompts of each task, in the order of ``COMPOSITIONS``; the same for the same arguments.

    attribute: two objects of one shape in two colours, two of one colour in two shapes, or three that differ in both,
    in turn. spatial: two objects in two colours, one of the four relations between them. numeracy: two or three kinds,
    three or four objects. Every one is a caption that the training set could have drawn.

    Raises:
        UserError: ``count_per_task`` is less than 1.
    """
    if count_per_task < 1:
        raise UserError(f"count_per_task={count_per_task}: expected 1 or more")
    chosen: list[Prompt] = []
    for number, task in enumerate(COMPOSITIONS):
        rng = np.random.default_rng((seed, 100 + number))
        found: dict[tuple[int, str], Prompt] = {}
        while (turn := len(found)) < count_per_task:
            made = _MAKERS[task](rng, turn % ROUND)
            found.setdefault((turn // ROUND, made.prompt), made)
        chosen.extend(found.values())
    return chosen


def _attribute(rng: np.random.Generator, turn: int) -> Prompt:
    kind = turn % 3
    number = 3 if kind == 2 else 2
    shapes = _pick(rng, SHAPES, 1) * number if kind == 0 else _pick(rng, SHAPES, number)
    colours = _pick(rng, _COLOURS, 1) * number if kind == 1 else _pick(rng, _COLOURS, number)
    kinds = list(zip(shapes, colours, strict=True))
    text = caption([Group(shape, colour, 1) for shape, colour in kinds])
    return Prompt("attribute", tuple(Requirement(shape, 1, colour) for shape, colour in kinds), text)


def _spatial(rng: np.random.Generator, turn: int) -> Prompt:
    relation = tuple(RELATIONS)[turn % len(RELATIONS)]
    first, second = (SHAPES[int(i)] for i in rng.integers(len(SHAPES), size=2))
    colour, other = _pick(rng, _COLOURS, 2)
    text = caption([Group(first, colour, 1), Group(second, other, 1)], relation)
    # As in GenEval's position task, the object of reference comes first.
    include = (Requirement(second, 1, other), Requirement(first, 1, colour, (relation, 0)))
    return Prompt("spatial", include, text)


def _numeracy(rng: np.random.Generator, turn: int) -> Prompt:
    counts = _COUNTS[turn % len(_COUNTS)]
    shapes = _pick(rng, SHAPES, len(counts))
    groups = [Group(shape, _COLOURS[0], count, named=False) for shape, count in zip(shapes, counts, strict=True)]
    return Prompt("numeracy", tuple(Requirement(g.shape, g.count) for g in groups), caption(groups))


def _pick(rng: np.random.Generator, options: Sequence[str], number: int) -> list[str]:
    """``number`` different ones."""
    return [options[int(i)] for i in rng.choice(len(options), size=number, replace=False)]


_MAKERS: Final[dict[str, Callable[[np.random.Generator, int], Prompt]]] = {
    "attribute": _attribute,
    "spatial": _spatial,
    "numeracy": _numeracy,
}
