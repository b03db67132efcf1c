"""Prompt sets of GenEval's shape: its six tasks over COCO's objects, sampled anew from a seed.

The official set has 553 prompts; others of the same kind show how much of a score is the choice of prompts, and are
unseen by whoever tuned on the official ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.official.classes import COLOURS, OBJECTS, RELATIONS, TASKS
from mmdit_jax.evaluation.official.metadata import Clause, Question

SIZES = (80, 99, 80, 94, 100, 100)
"""Prompts of each task in the official set, in the order of ``TASKS``."""
COUNTS = (2, 3, 4)
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_PAIRS = {"skis", "scissors"}
_PLURALS = {"person": "people", "sheep": "sheep", "knife": "knives", "computer mouse": "computer mice"}
_MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_COLOURED = tuple(name for name in OBJECTS if name != "person")


def phrase(name: str, count: int = 1, colour: str | None = None) -> str:
    """An object, or 2 to 4 of them, in words: "an orange couch", "three knives", "a red pair of skis"."""
    words = [colour] if colour else []
    if count == 1:
        words.append(f"pair of {name}" if name in _PAIRS else name)
        return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"
    plural = f"pairs of {name}" if name in _PAIRS else _PLURALS.get(name)
    if plural is None:
        plural = name + ("es" if name.endswith(("s", "sh", "ch", "x")) else "s")
    return " ".join([_NUMBERS[count], *words, plural])


def generate(sizes: Sequence[int] = SIZES, seed: int = 0) -> list[Question]:
    """Questions of every task, ``sizes`` of each in the order of ``TASKS``; the same for the same arguments.

    None asks what another asks in other words: "a cat left of a dog" and "a dog right of a cat" are one question. A
    smaller set is the beginning, task by task, of a larger one of the same seed. Nobody is asked for coloured people,
    as in the official set, nor for an orange orange.

    Raises:
        UserError: not six sizes, or one below 0 or beyond what there is to ask.
    """
    if len(sizes) != len(TASKS):
        raise UserError(f"sizes={','.join(map(str, sizes))}: expected {len(TASKS)} numbers, of {', '.join(TASKS)}")
    if seed < 0:
        raise UserError(f"seed={seed}: expected 0 or more")
    found: list[Question] = []
    for number, (task, size) in enumerate(zip(TASKS, sizes, strict=True)):
        rng = np.random.default_rng((seed, number))
        every = _EVERY[task]()
        if not 0 <= size <= len(every):
            raise UserError(f"sizes={size} of {task}: expected 0 to {len(every):,}, all there is to ask")
        order, coins = rng.permutation(len(every)), rng.integers(2, size=len(every))
        found += [_ASK[task](every[order[i]], bool(coins[i])) for i in range(size)]
    if not found:
        raise UserError("sizes=0: expected a prompt or more")
    return found


def _mixed(pair: tuple, swap: bool) -> tuple:
    return pair[::-1] if swap else pair


def _single(name: str, _: bool) -> Question:
    return Question("single_object", (Clause(name),), f"a photo of {phrase(name)}")


def _two(pair: tuple[str, str], swap: bool) -> Question:
    one, other = _mixed(pair, swap)
    return Question("two_object", (Clause(one), Clause(other)), f"a photo of {phrase(one)} and {phrase(other)}")


def _counting(asked: tuple[str, int], _: bool) -> Question:
    name, count = asked
    more = Clause(name, count + 1)
    return Question("counting", (Clause(name, count),), f"a photo of {phrase(name, count)}", (more,))


def _colors(asked: tuple[str, str], _: bool) -> Question:
    name, colour = asked
    return Question("colors", (Clause(name, 1, colour),), f"a photo of {phrase(name, 1, colour)}")


def _position(asked: tuple[tuple[str, str], str], swap: bool) -> Question:
    pair, relation = asked
    one, other = _mixed(pair, swap)
    relation = _MIRRORED[relation] if swap else relation
    include = (Clause(other), Clause(one, position=(relation, 0)))  # GenEval lists the object of reference first
    return Question("position", include, f"a photo of {phrase(one)} {relation} {phrase(other)}")


def _color_attr(asked: tuple[tuple[str, str], tuple[str, str]], swap: bool) -> Question:
    one, other = (Clause(name, 1, colour) for name, colour in _mixed(asked, swap))
    words = " and ".join(phrase(clause.name, 1, clause.colour) for clause in (one, other))
    return Question("color_attr", (one, other), f"a photo of {words}")


def _painted() -> list[tuple[str, str]]:
    return [(name, colour) for name in _COLOURED for colour in COLOURS if name != colour]


_EVERY: dict[str, Callable[[], list]] = {
    "single_object": lambda: list(OBJECTS),
    "two_object": lambda: list(itertools.combinations(OBJECTS, 2)),
    "counting": lambda: list(itertools.product(OBJECTS, COUNTS)),
    "colors": _painted,
    "position": lambda: list(itertools.product(itertools.combinations(OBJECTS, 2), RELATIONS)),
    "color_attr": lambda: [
        (one, other)
        for one, other in itertools.combinations(_painted(), 2)
        if one[0] != other[0] and one[1] != other[1]
    ],
}
"""All there is to ask in a task, each question once."""
_ASK: dict[str, Callable[..., Question]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
