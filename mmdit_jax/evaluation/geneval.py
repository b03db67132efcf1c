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
from mmdit_jax.errors import UserError
from mmdit_jax.files import write_atomic

DRAWS = 2000
"""Bootstrap draws over prompts."""
CHANCE_SCENES = 16
"""Random scenes that chance is measured on, for each prompt."""
CHANCE_SEED = 2**20
"""Offset of their seed: scenes of the training distribution that no data set holds."""
_Z = 1.959963984540054


def wilson(passed: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate of ``passed`` out of ``n``."""
    centre = (passed + _Z**2 / 2) / (n + _Z**2)
    half = _Z / (n + _Z**2) * math.sqrt(passed * (n - passed) / n + _Z**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def geneval(images: np.ndarray, prompts: Sequence[Prompt], *, seed: int = 0) -> list[dict[str, Any]]:
    """One row a task, and "overall", the mean of the tasks' rates.

    Intervals are 95 %: Wilson's for a task's rate (a prompt that comes again with other noise counts as another
    question), a bootstrap over prompts, task by task, for graded means and for the overall.

    Args:
        images: uint8 [P, K, H, W, 3], K samples of each prompt.
        prompts: P prompts.

    Returns:
        Rows with task, n (images), rate, low, high, graded, graded_low, graded_high, chance, chance_graded.

    Raises:
        UserError: not as many prompts as rows of images.
    """
    if len(images) != len(prompts):
        raise UserError(f"prompts={len(prompts)}: expected one for each of the {len(images)} rows of images")
    count = images.shape[1]
    found = score_all(images.reshape(-1, *images.shape[2:]), [prompt for prompt in prompts for _ in range(count)])
    passed = np.array([item.passed for item in found], float).reshape(len(prompts), count)
    graded = np.array([item.graded for item in found], float).reshape(len(prompts), count)
    chances = chance(tuple(prompts), images.shape[2], seed)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    resampled: list[np.ndarray] = []
    for task in [task for task in TASKS if any(prompt.task == task for prompt in prompts)]:
        member = np.array([prompt.task == task for prompt in prompts])
        both = np.stack([passed[member].mean(axis=1), graded[member].mean(axis=1)])
        draws = both[:, rng.integers(both.shape[1], size=(DRAWS, both.shape[1]))].mean(axis=2)
        resampled.append(draws)
        n = int(member.sum()) * count
        low, high = wilson(int(passed[member].sum()), n)
        by_chance = chances[member].mean(axis=0)
        rows.append(_row(task, n, both.mean(axis=1), (low, high), np.quantile(draws[1], (0.025, 0.975)), by_chance))
    overall = np.mean(resampled, axis=0)
    means = {key: float(np.mean([row[key] for row in rows])) for key in ("rate", "graded", "chance", "chance_graded")}
    rate_low, rate_high = np.quantile(overall[0], (0.025, 0.975))
    if means["rate"] in (0.0, 1.0):  # a bootstrap of equal outcomes says nothing: Wilson's bound on all of them does
        n = sum(row["n"] for row in rows)
        rate_low, rate_high = wilson(round(means["rate"] * n), n)
    rows.append(
        _row(
            "overall",
            sum(row["n"] for row in rows),
            np.array([means["rate"], means["graded"]]),
            (float(rate_low), float(rate_high)),
            np.quantile(overall[1], (0.025, 0.975)),
            np.array([means["chance"], means["chance_graded"]]),
        )
    )
    return rows


@functools.lru_cache(maxsize=8)
def chance(prompts: tuple[Prompt, ...], resolution: int, seed: int = 0) -> np.ndarray:
    """(pass rate, graded mean) of random training-like scenes against each prompt: float64 [P, 2], by simulation."""
    images, _ = examples(CHANCE_SEED + seed, "validation", 0, CHANCE_SCENES * len(prompts), resolution)
    found = score_all(images, [prompt for prompt in prompts for _ in range(CHANCE_SCENES)])
    values = np.array([(item.passed, item.graded) for item in found], float)
    return values.reshape(len(prompts), CHANCE_SCENES, 2).mean(axis=1)


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
    task: str, n: int, mean: np.ndarray, rate: tuple[float, float], graded: np.ndarray, by_chance: np.ndarray
) -> dict[str, Any]:
    return {
        "task": task,
        "n": n,
        "rate": float(mean[0]),
        "low": rate[0],
        "high": rate[1],
        "graded": float(mean[1]),
        "graded_low": float(graded[0]),
        "graded_high": float(graded[1]),
        "chance": float(by_chance[0]),
        "chance_graded": float(by_chance[1]),
    }
