"""Scenes made to satisfy a prompt, or to miss it by one thing: the known answers of the scorer's tests."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmdit_jax.data.scenes import Prompt, Scene
from mmdit_jax.data.scenes.layout import Draws, Relation, arrange
from mmdit_jax.data.scenes.renderer import dress
from mmdit_jax.data.scenes.vocabulary import BACKGROUNDS, COLOURS, RELATIONS, SHAPES


def satisfying(prompt: Prompt, draws: Draws) -> Scene:
    """A scene of exactly the objects that the prompt asks for; what it leaves open is random."""
    items: list[tuple[str, str]] = []
    relation = None
    for asked in prompt.include:
        if asked.position is not None:
            relation = Relation(len(items), *asked.position)
        common = draws.choice(tuple(COLOURS))
        for _ in range(asked.count):
            own = common if draws() < 0.5 else draws.choice(tuple(COLOURS))
            items.append((asked.shape, asked.colour or own))
    return dress(draws, arrange(draws, items, relation), draws.choice(tuple(BACKGROUNDS)))


def near_miss(prompt: Prompt, draws: Draws) -> Scene:
    """A scene that the prompt must reject: one wrong shape, number, colour or relation, or two colours exchanged."""
    while True:
        scene = satisfying(_change(prompt, draws), draws)
        if not is_true(prompt, scene):
            return scene


def is_true(prompt: Prompt, scene: Scene) -> bool:
    """Whether the scene's own description satisfies the prompt; by counting, without the scorer's code."""
    groups = []
    for asked in prompt.include:
        group = [o for o in scene.objects if o.shape == asked.shape and asked.colour in (None, o.colour)]
        if len(group) < asked.count or (prompt.task == "counting" and len(group) != asked.count):
            return False
        groups.append(group)
    for asked, group in zip(prompt.include, groups, strict=True):
        if asked.position is not None:
            relation, reference = asked.position
            if not any(relation in genevals_relations(a.box, b.box) for a in group for b in groups[reference]):
                return False
    return True


def genevals_relations(a: tuple[float, ...], b: tuple[float, ...]) -> set[str]:
    """Where box a lies relative to box b, written out from the description in GenEval's paper (section 3.2)."""
    box_a, box_b = np.reshape(a, (2, 2)), np.reshape(b, (2, 2))
    offset = box_a.mean(axis=0) - box_b.mean(axis=0)
    sizes = (box_a[1] - box_a[0]) + (box_b[1] - box_b[0])
    shortened = np.sign(offset) * np.maximum(np.abs(offset) - 0.1 * sizes, 0)
    dx, dy = shortened / np.linalg.norm(offset)
    found = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in found.items() if holds}


def _change(prompt: Prompt, draws: Draws) -> Prompt:
    include = list(prompt.include)
    place = int(draws() * len(include))
    item = include[place]
    if prompt.task in ("single_object", "two_object"):
        taken = [asked.shape for asked in include]
        include[place] = dataclasses.replace(item, shape=draws.choice([s for s in SHAPES if s not in taken]))
    elif prompt.task == "counting":
        include[0] = dataclasses.replace(item, count=min(4, max(1, item.count + draws.choice((-1, 1)))))
    elif prompt.task == "position":
        include[1] = dataclasses.replace(include[1], position=(draws.choice(tuple(RELATIONS)), 0))
    elif prompt.task == "color_attr" and draws() < 0.5:
        first, second = include
        include = [
            dataclasses.replace(first, colour=second.colour),
            dataclasses.replace(second, colour=first.colour),
        ]
    else:
        used = [asked.colour for asked in include]
        include[place] = dataclasses.replace(item, colour=draws.choice([c for c in COLOURS if c not in used]))
    return dataclasses.replace(prompt, include=tuple(include))
