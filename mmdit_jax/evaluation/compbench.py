"""T2I-CompBench-shaped scores of generated scenes: attribute binding, spatial relation, numeracy, each in [0, 1].

Source: T2I-CompBench (Huang et al. 2023, arXiv:2307.06350; numeracy: T2I-CompBench++, 2024) and its evaluation code.
There networks look at the image (a BLIP that answers questions, the detector UniDet); here the detector of scenes does.
Where GenEval passes or fails an image, these are graded throughout, and prompts combine several objects.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from mmdit_jax.data.scenes.captions import examples
from mmdit_jax.data.scenes.compositions import COMPOSITIONS
from mmdit_jax.data.scenes.detector import Detection, detect
from mmdit_jax.data.scenes.layout import Box
from mmdit_jax.data.scenes.prompts import Prompt, Requirement
from mmdit_jax.data.scenes.scorer import shape_odds
from mmdit_jax.data.scenes.vocabulary import RELATIONS
from mmdit_jax.errors import UserError, unknown
from mmdit_jax.evaluation.geneval import CHANCE_SCENES, CHANCE_SEED, mean_interval, wilson

UNCLEAR: Final = 0.5
"""The most that an object is worth whose outline is none of the five shapes."""
SEEN: Final = 0.1
"""Worth less than this, an object counts as not detected."""
OVERLAP: Final = 0.1
"""Intersection over union of two boxes from which on a relation counts in part (the benchmark's ``iou_threshold``)."""
FLOOR: Final = 0.5
"""A spatial score below it is none (the benchmark's code)."""


def likeness(item: Detection, asked: Requirement) -> float:
    """How likely "is this a red circle?" would be answered with yes: shape times colour, in [0, 1].

    A clean object is the shape it is. Any other is at most ``UNCLEAR`` of a shape, by how well it fits the five.
    """
    if asked.colour is not None and item.colour != asked.colour:
        return 0.0
    return float(item.shape == asked.shape) if item.clean else UNCLEAR * shape_odds(item, asked.shape)


def position(first: Box, second: Box, relation: str) -> float:
    """How far ``first`` stands ``relation`` ``second``, in [0, 1]: T2I-CompBench's rule.

    1 if the centres differ in that direction, and more than across it, and the boxes hardly overlap; with an
    intersection over union of ``OVERLAP`` or more, ``OVERLAP`` over it; else 0.
    """
    dx = (first.left + first.right - second.left - second.right) / 2
    dy = (first.top + first.bottom - second.top - second.bottom) / 2
    x, y = RELATIONS[relation]
    along, across = dx * x + dy * y, abs(dx * y) + abs(dy * x)
    if along <= 0 or along <= across:
        return 0.0
    overlap = _overlap(first, second)
    return 1.0 if overlap < OVERLAP else OVERLAP / overlap


def _overlap(first: Box, second: Box) -> float:
    """Intersection over union."""
    width = min(first.right, second.right) - max(first.left, second.left)
    height = min(first.bottom, second.bottom) - max(first.top, second.top)
    both = max(width, 0.0) * max(height, 0.0)
    areas = sum((box.right - box.left) * (box.bottom - box.top) for box in (first, second))
    return both / (areas - both) if both else 0.0


def attribute_score(objects: Sequence[Detection], prompt: Prompt) -> float:
    """Product over the phrases of how likely each is seen, each by an object of its own.

    The benchmark multiplies BLIP's probability of "yes" over the noun phrases. There one object may answer for two.
    """
    likely = np.array([[likeness(item, asked) for item in objects] for asked in prompt.include])
    if len(objects) < len(prompt.include):
        return 0.0
    rows, columns = linear_sum_assignment(-np.log(np.maximum(likely, 1e-9)))
    return float(np.prod(likely[rows, columns]))


def spatial_score(objects: Sequence[Detection], prompt: Prompt) -> float:
    """A quarter for how surely each object is seen, a half for their ``position``; below ``FLOOR``, or with the
    relation wrong, 0. The best pair counts.

    The benchmark takes the detector's confidence and its most confident pair. A confidence is never 1 there, so that a
    wrong relation always ends below the floor; here it may be, and the relation has to be said.
    """
    reference, placed = prompt.include
    assert placed.position is not None
    best = 0.0
    first, second = ([likeness(item, asked) for item in objects] for asked in (placed, reference))
    for i, a in enumerate(objects):
        for j, b in enumerate(objects):
            if i != j and min(first[i], second[j]) >= SEEN:
                where = position(a.box, b.box, placed.position[0])
                found = (first[i] + second[j]) / 4 + where / 2
                best = max(best, found if where and found >= FLOOR else 0.0)
    return best


def numeracy_score(objects: Sequence[Detection], prompt: Prompt) -> float:
    """Mean over the kinds asked for: half for being there, half for being there in that number.

    Both as surely as the best of the kind is seen; an object is of the kind that its shape is most like.
    """
    total = 0.0
    for asked in prompt.include:
        seen = [value for item in objects if (value := likeness(item, asked)) >= SEEN and item.shape == asked.shape]
        total += max(seen, default=0.0) * (0.5 + 0.5 * (len(seen) == asked.count))
    return total / len(prompt.include)


SCORES: Final[dict[str, Callable[[Sequence[Detection], Prompt], float]]] = {
    "attribute": attribute_score,
    "spatial": spatial_score,
    "numeracy": numeracy_score,
}
"""By task, in the order of ``COMPOSITIONS``."""


def score_compositions(images: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """The score of each image against its prompt: float64 [P, K] in [0, 1].

    Args:
        images: uint8 or float in [0, 1], [P, K, H, W, 3]: K samples of each prompt.
        prompts: P prompts as ``compositions`` makes them.

    Raises:
        UserError: images of another shape, no prompt, or one of another task.
    """
    if images.ndim != 5 or not len(prompts) or len(images) != len(prompts):
        raise UserError(
            f"images.shape={images.shape}: expected [P, K, H, W, 3] with P={len(prompts)} prompts, 1 or more"
        )
    for prompt in prompts:
        if prompt.task not in SCORES:
            unknown("task", prompt.task, SCORES)
    count = images.shape[1]
    found = detect(images.reshape(-1, *images.shape[2:]))
    values = [SCORES[prompts[i // count].task](objects, prompts[i // count]) for i, objects in enumerate(found)]
    return np.array(values).reshape(len(prompts), count)


def compbench(images: np.ndarray, prompts: Sequence[Prompt], *, seed: int = 0) -> list[dict[str, Any]]:
    """One row a task in the order of ``COMPOSITIONS``, then "overall": the mean of the tasks' values.

    Args:
        images: as of ``score_compositions``.
        prompts: likewise.
        seed: of the scenes that chance is measured on.

    Returns:
        Rows with task, n (images), value, low, high (95 %, ``graded_interval``; of the mean, ``mean_interval``) and
        chance: what random scenes of the training distribution score.

    Raises:
        UserError: as ``score_compositions``.
    """
    values = score_compositions(images, prompts)
    by_chance = chance(prompts, images.shape[2], seed)
    rows: list[dict[str, Any]] = []
    for task in COMPOSITIONS:
        member = np.array([prompt.task == task for prompt in prompts])
        if member.any():
            low, high = graded_interval(values[member].mean(axis=1))
            row = {"task": task, "n": values[member].size, "value": float(values[member].mean())}
            rows.append({**row, "low": low, "high": high, "chance": float(by_chance[member].mean())})
    means = [row["value"] for row in rows]
    low, high = mean_interval(means, [(row["low"], row["high"]) for row in rows])
    overall = {"task": "overall", "n": values.size, "value": float(np.mean(means)), "low": low, "high": high}
    return [*rows, {**overall, "chance": float(np.mean([row["chance"] for row in rows]))}]


def graded_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of independent values in [0, 1]: Wilson's, on as many images as their spread is worth.

    Values that vary less than passes and failures would are worth more than as many of these, up to their number
    squared. Unlike a bootstrap it keeps its width where all values are 0, or 1: there each is worth one.
    """
    count, mean = len(values), float(values.mean())
    most = mean * (1 - mean)
    variance = float(values.var(ddof=1)) if count > 1 else most
    n = count * most / variance if variance > most / count else count**2 if most else count
    return wilson(mean * n, n)


def chance(prompts: Sequence[Prompt], resolution: int, seed: int = 0) -> np.ndarray:
    """Mean score of random training-like scenes against each prompt: float64 [P], by simulation."""
    table = _chance(frozenset(prompts), resolution, seed)
    return np.array([table[prompt] for prompt in prompts])


@functools.lru_cache(maxsize=8)
def _chance(prompts: frozenset[Prompt], resolution: int, seed: int) -> dict[Prompt, float]:
    images, _ = examples(CHANCE_SEED + seed, "validation", 0, CHANCE_SCENES, resolution)
    scenes = detect(images)
    return {prompt: float(np.mean([SCORES[prompt.task](objects, prompt) for objects in scenes])) for prompt in prompts}
