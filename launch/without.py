"""Tables of what was drawn without some text encoders, from the image trees of a study's finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from launch.places import Places
from launch.settings import held_out
from mmdit_jax.config import Run
from mmdit_jax.evaluation.battles import write_battles
from mmdit_jax.evaluation.geneval import read_geneval_tree
from mmdit_jax.evaluation.grids import samples_png
from mmdit_jax.evaluation.judge import packaged_judge
from mmdit_jax.evaluation.realism import Realism
from mmdit_jax.evaluation.removal import ALL, Comparison, compare, label, tree
from mmdit_jax.files import write_atomic

BATTLES, SCORES, GRID = "without_battles.csv", "without.csv", "without.png"


def write_without_tables(finished: Sequence[tuple[Run, dict[str, Any]]], places: Places) -> None:
    """Write without.csv (GenEval-proxy by what was removed), without_battles.csv (image against image), and the first
    run's images with all encoders and without some in figures/without.png."""
    asked = [(run, result) for run, result in finished if run.evaluation.without]
    if not asked:
        return
    rows: list[dict[str, Any]] = []
    battles = []
    for run, result in asked:
        folder = places.run_dir(run)
        whole, prompts = read_geneval_tree(folder / "samples")
        images = {label(group): read_geneval_tree(tree(folder, group))[0] for group in run.evaluation.without}
        realism = Realism.fit(held_out(run.data, places.data, places.vae)[1])
        if run is asked[0][0]:
            samples_png({ALL: whole, **images}, prompts, places.study_dir / "figures" / GRID)
        battles += compare(result["name"], whole, images, prompts, packaged_judge(), realism)
        known = {"run_id": run.run_id, "name": result["name"], "dataset": run.data.name}
        rows += [{**known, "without": "", **row} for row in result["geneval"]]
        rows += [{**known, **row} for row in result["without"]]
    write_battles(battles, places.study_dir / BATTLES, Comparison)
    write_atomic(places.study_dir / SCORES, pd.DataFrame(rows).to_csv(index=False) if rows else "")
