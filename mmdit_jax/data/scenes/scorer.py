"""Does an image show what its prompt asks for? GenEval's decision rules, with a graded score beside pass or fail.

Source: GenEval (Ghosh et al. 2023, arXiv:2310.11513), rules of its evaluate_images.py: presence in the asked number,
colour, relative position with a margin, and no more objects than asked in the counting task. One difference: GenEval
looks only at the detections that its network is most confident of; here all clean detections have the same standing,
and a prompt is passed if any of them satisfy it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from mmdit_jax.data.scenes.detector import Detection, detect
from mmdit_jax.data.scenes.geometry import SHAPES, Array
from mmdit_jax.data.scenes.layout import relation_holds
from mmdit_jax.data.scenes.prompts import Prompt, Requirement
from mmdit_jax.errors import UserError

SOMETHING: Final = 0.25  # credit for an object of any shape where one was asked for
_SHARPNESS: Final = 0.05  # overlap by which one shape must beat another to be e times as likely


@dataclasses.dataclass(frozen=True)
class Score:
    """``graded`` is in [0, 1], and 1 exactly if ``passed``."""

    passed: bool
    graded: float


def score(image: Array, prompt: Prompt) -> Score:
    """Score one image [H, W, 3], uint8 or float in [0, 1], H = W."""
    return judge(detect(np.asarray(image)[None])[0], prompt)


def score_all(images: Array, prompts: Sequence[Prompt]) -> list[Score]:
    """Score image i against prompt i; faster than one at a time.

    Args:
        images: [N, H, W, 3], uint8 or float in [0, 1].

    Raises:
        UserError: not as many prompts as images.
    """
    if len(images) != len(prompts):
        raise UserError(f"prompts={len(prompts)}: expected one for each of {len(images)} images")
    return [judge(objects, prompt) for objects, prompt in zip(detect(images), prompts, strict=True)]


def judge(objects: Sequence[Detection], prompt: Prompt) -> Score:
    """Score the objects of an image."""
    passed = _passes(objects, prompt)
    return Score(passed, 1.0 if passed else _grade(objects, prompt))


def _passes(objects: Sequence[Detection], prompt: Prompt) -> bool:
    clean = [item for item in objects if item.clean]
    groups: list[list[Detection]] = []
    for asked in prompt.include:
        group = [o for o in clean if o.shape == asked.shape and asked.colour in (None, o.colour)]
        if len(group) < asked.count:
            return False
        groups.append(group)
    for asked, group in zip(prompt.include, groups, strict=True):
        if asked.position is not None:
            relation, reference = asked.position
            if not any(relation_holds(a.box, b.box, relation) for a in group for b in groups[reference]):
                return False
    return all(sum(o.shape == unwanted.shape for o in clean) < unwanted.count for unwanted in prompt.exclude)


def _grade(objects: Sequence[Detection], prompt: Prompt) -> float:
    """Mean of what the prompt asks about: its objects, their number if that is at stake, their relations.

    Objects: the best one-to-one match of what is there to what was asked, each worth its likeness in shape and, where
    a colour was asked for, in colour. Number: one minus the relative error of the number of objects of any kind.
    Relation: as good as the worse of the two objects it holds between.
    """
    if not objects or not prompt.include:
        return 0.0
    credit = np.array([[_credit(o, asked) for o in objects] for asked in prompt.include])
    wanted = [row for row, asked in enumerate(prompt.include) for _ in range(asked.count)]
    matrix = credit[wanted]
    parts = [matrix[linear_sum_assignment(-matrix)].sum() / len(wanted)]
    if prompt.exclude:
        parts.append(1 - min(1.0, abs(len(objects) - len(wanted)) / len(wanted)))
    for row, asked in enumerate(prompt.include):
        if asked.position is not None:
            relation, reference = asked.position
            pairs = [
                min(credit[row, i], credit[reference, j])
                for i, a in enumerate(objects)
                for j, b in enumerate(objects)
                if i != j and relation_holds(a.box, b.box, relation)
            ]
            parts.append(max(pairs, default=0.0))
    return float(np.mean(parts))


def _credit(item: Detection, asked: Requirement) -> float:
    """What an object is worth where ``asked`` was wanted: 1 only if it satisfies it."""
    if item.clean:
        likeness = 1.0 if item.shape == asked.shape else SOMETHING
    else:
        likeness = SOMETHING + 0.5 * shape_odds(item, asked.shape)
    if asked.colour is None:
        return likeness
    return (likeness + (item.colour == asked.colour)) / 2


def shape_odds(item: Detection, shape: str) -> float:
    """How likely an object is this one of the five shapes, by its overlaps alone: they add up to 1."""
    odds = [math.exp(fit / _SHARPNESS) for fit in item.fits]
    return odds[SHAPES.index(shape)] / sum(odds)
