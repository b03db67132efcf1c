"""GenEval's decisions: does an image, by what a detector found in it, pass its prompt? Pure, on arrays; no model here.

After arXiv 2310.11513 and the numbers of its public scorer, whose words the reasons are in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.official.classes import COLOURS, RELATIONS
from mmdit_jax.evaluation.official.metadata import Clause, Question

_LEAN = 0.5
"""Share of the distance between two centres that must lie along an axis for a relation along it: the sine of 30°."""
_STILL = 1e-3
"""Pixels; below, two boxes are in the same place."""


@dataclass(frozen=True)
class Rules:
    """The scorer's numbers; the defaults are those of the public scorer."""

    threshold: float = 0.3
    """An object counts above this score."""
    counting_threshold: float = 0.9
    """The same, in prompts of the task ``counting``."""
    max_objects: int = 16
    """Of a class, the best that are looked at."""
    max_overlap: float = 1.0
    """Of two objects of a class that overlap by so much (IoU) the better one is kept; 1: both."""
    position_threshold: float = 0.1
    """Of the two boxes' sides together, how far centres may lie apart without a relation."""

    def __post_init__(self) -> None:
        for name in ("threshold", "counting_threshold", "max_overlap", "position_threshold"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise UserError(f"{name}={value:g}: expected 0 to 1")
        if self.max_objects < 1:
            raise UserError(f"max_objects={self.max_objects}: expected 1 or more")

    def least_score(self, task: str) -> float:
        """What an object's score must exceed in prompts of ``task``."""
        return self.counting_threshold if task == "counting" else self.threshold


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, in any order."""

    boxes: np.ndarray
    """float32 [N, 4]: left, top, right, bottom in pixels."""
    scores: np.ndarray
    """float32 [N], 0 to 1."""
    names: tuple[str, ...]
    """N classes, by GenEval's names."""
    masks: np.ndarray | None = None
    """bool [N, H, W], of detectors that have them."""


class Found(NamedTuple):
    """One object: box float32 [4], score, mask bool [H, W] or none."""

    box: np.ndarray
    score: np.floating
    mask: np.ndarray | None


class Verdict(NamedTuple):
    """Whether an image passes, and what it lacks: a line each, empty where it passes."""

    correct: bool
    reason: str


Colours = Callable[[str, Sequence[Found]], Sequence[str]]
"""(class, objects) -> of each object, one of ``COLOURS``."""


def kept(detections: Detections, task: str, rules: Rules) -> dict[str, list[Found]]:
    """The objects that count in prompts of ``task``, by class, the best first; classes in order of their best."""
    order = np.argsort(-detections.scores, kind="stable")
    objects: dict[str, list[Found]] = {}
    seen: dict[str, int] = {}
    for i in order[detections.scores[order] > rules.least_score(task)]:
        name, box = detections.names[i], detections.boxes[i]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > rules.max_objects:
            continue
        of_class = objects.setdefault(name, [])
        if rules.max_overlap == 1 or all(overlap(other.box, box) < rules.max_overlap for other in of_class):
            mask = None if detections.masks is None else detections.masks[i]
            of_class.append(Found(box, detections.scores[i], mask))
    return objects


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes [4], both ends of which are pixels of theirs."""

    def area(low: np.ndarray, high: np.ndarray) -> float:
        return float(np.prod(np.maximum(high - low + 1, 0)))

    common = area(np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:]))
    union = area(one[:2], one[2:]) + area(other[:2], other[2:]) - common
    return common / union if union else 0.0


def relations(one: np.ndarray, other: np.ndarray, margin: float) -> list[str]:
    """How box ``one`` stands to ``other``, of ``RELATIONS``: none, one or, along a diagonal, two.

    Centres must lie apart by more than ``margin`` of both boxes' sides together, along an axis. What is beyond the
    margin is set against the whole distance of the centres.
    """
    corners = np.stack([one, other]).reshape(2, 2, 2)  # box, end, axis
    offset = np.subtract(*corners.mean(axis=1))
    sides = np.abs(corners[:, 1] - corners[:, 0]).sum(axis=0)
    beyond = np.maximum(np.abs(offset) - margin * sides, 0) * np.sign(offset)
    if (np.abs(beyond) < _STILL).all():
        return []
    x, y = beyond / np.linalg.norm(offset)
    true = (x < -_LEAN, x > _LEAN, y < -_LEAN, y > _LEAN)  # y points down
    return [name for name, holds in zip(RELATIONS, true, strict=True) if holds]


def judge(question: Question, objects: Mapping[str, Sequence[Found]], colours: Colours, rules: Rules) -> Verdict:
    """Whether the image passes: all that is included is there, nothing that is excluded.

    Clauses are independent, so that one object may serve two of them. Of a class the ``count`` best objects are looked
    at: all must have the colour, and all must stand in the relation to all that the clause of reference was met by.

    Args:
        question: the prompt's.
        objects: by class, the best first; see ``kept``.
        colours: tells objects' colours; asked only of clauses with a colour whose objects are there.
        rules: of which the margin of positions is used here.
    """
    reasons: list[str] = []
    met: list[Sequence[Found] | None] = []
    for clause in question.include:
        found = objects.get(clause.name, ())[: clause.count]
        lacking = _lacking(clause, found, met, colours, rules)
        reasons += lacking
        met.append(None if lacking else found)
    for clause in question.exclude:
        number = len(objects.get(clause.name, ()))
        if number >= clause.count:
            reasons.append(f"expected {clause.name}<{clause.count}, found {number}")
    return Verdict(not reasons, "\n".join(reasons))


def _lacking(
    clause: Clause, found: Sequence[Found], met: Sequence[Sequence[Found] | None], colours: Colours, rules: Rules
) -> list[str]:
    """Why a clause is not met by the objects ``found``; nothing where it is. ``met``: what earlier clauses found."""
    if len(found) < clause.count:
        return [f"expected {clause.name}>={clause.count}, found {len(found)}"]
    if clause.colour is not None:
        seen = list(colours(clause.name, found))
        right = seen.count(clause.colour)
        if right < clause.count:
            told = ", ".join(f"{seen.count(colour)} {colour}" for colour in COLOURS if colour in seen)
            wanted = f"{clause.colour} {clause.name}>={clause.count}"
            return [f"expected {wanted}, found {right} {clause.colour}; and {told}"]
    if clause.position is None:
        return []
    relation, reference = clause.position
    targets = met[reference]
    if targets is None:
        return [f"no target for {clause.name} to be {relation}"]
    for one in found:
        for other in targets:
            true = relations(one.box, other.box, rules.position_threshold)
            if relation not in true:
                return [f"expected {clause.name} {relation} target, found {' and '.join(true)} target"]
    return []
