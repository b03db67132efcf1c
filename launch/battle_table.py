"""battles.csv of a study: its finished runs against each other, set by set, and their ratings question by question."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import mmdit_jax.data.pipeline as pipeline
from launch.places import Places
from mmdit_jax.config import DataConfig, Run
from mmdit_jax.data.scenes.prompts import Prompt
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.aesthetics import Aesthetics
from mmdit_jax.evaluation.battles import QUESTION, Battle, battles, write_battles
from mmdit_jax.evaluation.judge import packaged_judge
from mmdit_jax.evaluation.meetings import MOST
from scaling.elo import rate

SETS = ("scenes", "signs", "signs_fixed")
"""Those whose prompts a judge understands."""


def battle_table(
    drawn: Sequence[tuple[Run, dict[str, Any]]], trees: dict[str, tuple[np.ndarray, list[Prompt]]], places: Places
) -> dict[str, dict[str, float]]:
    """Write battles.csv among the runs on each of ``SETS``, where two or more were asked the same.

    Runs are called by the ``name`` of their results. Returns by it the columns that results have of it: elo, elo_low,
    elo_high of prompt following, and elo_aesthetics…, elo_typography… of the other questions. A set whose real images
    are not at hand (tables collected elsewhere) is not asked for aesthetics.
    """
    rows: list[Battle] = []
    rated: dict[str, dict[str, float]] = {}
    for name in SETS:
        runs = [(run, result["name"]) for run, result in drawn if run.data.name == name]
        prompts = trees[runs[0][1]][1] if runs else []
        images = {label: trees[label][0] for _, label in runs if trees[label][1] == prompts}
        if len(images) > 1:
            _tell(name, len(images), images[runs[0][1]].shape)
            own = battles(images, prompts, packaged_judge(), _aesthetics(runs[0][0].data, places.data))
            for run_name, found in _ratings(own).items():
                rated.setdefault(run_name, {}).update(found)
            rows += own
    if rows:
        write_battles(rows, places.study_dir / "battles.csv")
    return rated


def _tell(name: str, runs: int, shape: tuple[int, ...]) -> None:
    """A line on stderr where not all runs meet on all images ``[P, K, …]``."""
    if (every := runs * (runs - 1) // 2 * shape[0] * shape[1]) > MOST:
        print(
            f"battles.csv, {name}: {every:,} battles a judge if all {runs} runs met on all images; each meets some "
            f"others on each image, by chance, {MOST:,} battles or the fewest that connect all",
            file=sys.stderr,
        )


def _ratings(rows: Sequence[Battle]) -> dict[str, dict[str, float]]:
    """By run, the columns of its ratings in every question."""
    rated: dict[str, dict[str, float]] = {}
    for question, part in pd.DataFrame([vars(row) for row in rows]).groupby("question", sort=False):
        column = "elo" if question == QUESTION else f"elo_{question}"
        for found in rate(part).ratings:
            values = {column: found.elo, f"{column}_low": found.low, f"{column}_high": found.high}
            rated.setdefault(found.name, {}).update(values)
    return rated


def _aesthetics(config: DataConfig, data_dir: Path) -> Aesthetics | None:
    try:
        data = pipeline.load(config.name, data_dir, resolution=config.resolution, examples=config.examples)
        return Aesthetics.fit(data.split("validation").images, packaged_judge())
    except UserError:
        return None
