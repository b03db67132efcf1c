"""GenEval's table for generated scenes: pass rates by task beside chance, and the image tree its scorer reads."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdit_jax.data.scenes import TASKS, Prompt, examples, score_all
from mmdit_jax.data.scenes.detector import detect
from mmdit_jax.data.scenes.scorer import judge
from mmdit_jax.errors import UserError, unknown
from mmdit_jax.files import write_atomic

DRAWS = 2000
"""Bootstrap draws over prompts."""
CHANCE_SCENES = 256
"""Random scenes that chance is measured on; every prompt is put to all of them."""
CHANCE_SEED = 2**20
"""Offset of their seed: scenes of the training distribution that no data set holds."""
FEWEST = 5
"""So many prompts with a pass, and as many with a failure, say how much the samples of one resemble each other."""
_Z = 1.959963984540054


def wilson(passed: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate of ``passed`` out of ``n``, either of which may be an effective number."""
    centre = (passed + _Z**2 / 2) / (n + _Z**2)
    half = _Z / (n + _Z**2) * math.sqrt(passed * (n - passed) / n + _Z**2 / 4)
    rate = passed / n  # which rounding would put outside, by a bit, where it is 0 or 1
    return max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate))


def rate_interval(passed: np.ndarray) -> tuple[float, float]:
    """95 % interval of the pass rate of one task: Wilson's on the effective number of images.

    Samples of one prompt resemble each other, so n images tell as much as n / deff independent ones, where deff is the
    variance of the prompts' means over what independent images would have, kept between 1 and K (Korn and Graubard's
    adjustment). Where fewer than FEWEST prompts have a pass, or a failure, they can't tell it, and it is K: a prompt's
    images then count as one.

    Args:
        passed: bool or 0/1 [P, K], K samples of each of P prompts.
    """
    samples = passed.shape[1]
    rate, of_prompts = float(passed.mean()), passed.mean(axis=1)
    deff = float(samples)
    if min((of_prompts > 0).sum(), (of_prompts < 1).sum()) >= FEWEST:
        independent = rate * (1 - rate) / samples
        deff = float(np.clip(of_prompts.var(ddof=1) / independent, 1, samples))
    n = passed.size / deff
    return wilson(rate * n, n)


def mean_interval(rates: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """95 % interval of the mean of independent rates, from the interval of each.

    The method of variance estimates recovery (Zou and Donner 2008): distances to the limits add up in squares. Unlike
    a bootstrap it keeps its width where a task has no pass, or nothing but passes.
    """
    mean = float(np.mean(rates))
    below = math.sqrt(sum((rate - low) ** 2 for rate, (low, _) in zip(rates, intervals, strict=True)))
    above = math.sqrt(sum((high - rate) ** 2 for rate, (_, high) in zip(rates, intervals, strict=True)))
    return max(0.0, mean - below / len(rates)), min(1.0, mean + above / len(rates))


def geneval(images: np.ndarray, prompts: Sequence[Prompt], *, seed: int = 0) -> list[dict[str, Any]]:
    """One row a task in the order of ``TASKS``, then "overall": the mean of the tasks' values.

    Intervals are 95 %: ``rate_interval`` and ``mean_interval`` for rates; for graded means a bootstrap over prompts,
    task by task, with a fixed seed. A prompt that comes twice in the list counts as two.

    Args:
        images: uint8 or float in [0, 1], [P, K, H, W, 3]: K samples of each prompt.
        prompts: P prompts.
        seed: of the bootstrap and of the scenes that chance is measured on.

    Returns:
        Rows with task, n (images), rate, low, high, graded, graded_low, graded_high, chance, chance_graded.

    Raises:
        UserError: images of another shape, no prompt, or a prompt of a task that GenEval does not have.
    """
    if images.ndim != 5 or not len(prompts) or len(images) != len(prompts):
        raise UserError(
            f"images.shape={images.shape}: expected [P, K, H, W, 3] with P={len(prompts)} prompts, 1 or more"
        )
    for prompt in prompts:
        if prompt.task not in TASKS:
            unknown("task", prompt.task, TASKS)
    count = images.shape[1]
    found = score_all(images.reshape(-1, *images.shape[2:]), [prompt for prompt in prompts for _ in range(count)])
    passed = np.array([item.passed for item in found], float).reshape(len(prompts), count)
    graded = np.array([item.graded for item in found], float).reshape(len(prompts), count)
    by_chance = chance(prompts, images.shape[2], seed)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    resampled: list[np.ndarray] = []
    for task in [task for task in TASKS if any(prompt.task == task for prompt in prompts)]:
        member = np.array([prompt.task == task for prompt in prompts])
        means = graded[member].mean(axis=1)
        resampled.append(means[rng.integers(len(means), size=(DRAWS, len(means)))].mean(axis=1))
        rate = float(passed[member].mean())
        rows.append(
            _row(
                task, passed[member].size, rate, rate_interval(passed[member]), means, resampled[-1], by_chance[member]
            )
        )
    rates = [row["rate"] for row in rows]
    interval = mean_interval(rates, [(row["low"], row["high"]) for row in rows])
    graded_means = np.array([row["graded"] for row in rows])
    chances = np.array([(row["chance"], row["chance_graded"]) for row in rows])
    draws = np.mean(resampled, axis=0)
    rows.append(_row("overall", passed.size, float(np.mean(rates)), interval, graded_means, draws, chances))
    return rows


def chance(prompts: Sequence[Prompt], resolution: int, seed: int = 0) -> np.ndarray:
    """(pass rate, graded mean) of random training-like scenes against each prompt: float64 [P, 2], by simulation."""
    table = _chance(frozenset(prompts), resolution, seed)
    return np.array([table[prompt] for prompt in prompts])


@functools.lru_cache(maxsize=8)
def _chance(prompts: frozenset[Prompt], resolution: int, seed: int) -> dict[Prompt, tuple[float, float]]:
    images, _ = examples(CHANCE_SEED + seed, "validation", 0, CHANCE_SCENES, resolution)
    scenes = detect(images)
    table = {}
    for prompt in prompts:
        found = [judge(objects, prompt) for objects in scenes]
        table[prompt] = (float(np.mean([x.passed for x in found])), float(np.mean([x.graded for x in found])))
    return table


def write_geneval_tree(images: np.ndarray, prompts: Sequence[Prompt], folder: Path) -> None:
    """Write NNNNN/metadata.jsonl and NNNNN/samples/NNNN.png for images uint8 [P, K, H, W, 3]."""
    for number, (row, prompt) in enumerate(zip(images, prompts, strict=True)):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        write_atomic(place / "metadata.jsonl", prompt.to_json() + "\n")
        for sample, image in enumerate(row):
            Image.fromarray(image).save(place / "samples" / f"{sample:04d}.png")


def read_geneval_tree(folder: Path) -> tuple[np.ndarray, list[Prompt]]:
    """What ``write_geneval_tree`` wrote: images uint8 [P, K, H, W, 3] and the prompts.

    Raises:
        UserError: no such tree, or an image that can't be read.
    """
    places = sorted(place for place in folder.glob("[0-9]*") if place.is_dir())
    if not places:
        raise UserError(f"samples={folder}: no image tree there; evaluate the run first")
    prompts, images = [], []
    for place in places:
        try:
            prompts.append(Prompt.from_json((place / "metadata.jsonl").read_text()))
            images.append([np.asarray(Image.open(path)) for path in sorted((place / "samples").glob("*.png"))])
        except (OSError, SyntaxError) as error:
            raise UserError(f"samples={place}: can't be read ({error}); delete result.json to sample again") from error
    return np.array(images), prompts


def _row(
    task: str,
    n: int,
    rate: float,
    interval: tuple[float, float],
    graded: np.ndarray,
    draws: np.ndarray,
    by_chance: np.ndarray,
) -> dict[str, Any]:
    low, high = np.quantile(draws, (0.025, 0.975))
    chance_rate, chance_graded = by_chance.mean(axis=0)
    return {
        "task": task,
        "n": n,
        "rate": rate,
        "low": interval[0],
        "high": interval[1],
        "graded": float(graded.mean()),
        "graded_low": float(low),
        "graded_high": float(high),
        "chance": float(chance_rate),
        "chance_graded": float(chance_graded),
    }
