"""Fold a study's run directories into tables, battles and the sample grids that the report reads."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pandas as pd

from launch.battle_table import battle_table
from launch.execute import describe
from launch.hold import locked
from launch.places import Places
from launch.seeds import finished_of, unique_names, with_seeds
from launch.settings import real_scores, score_table
from launch.without import write_without_tables
from mmdit_jax.config import Run, Study
from mmdit_jax.evaluation.geneval import read_geneval_tree
from mmdit_jax.evaluation.grids import samples_png
from mmdit_jax.files import write_atomic
from mmdit_jax.training.events import read_events
from scaling.goodput import COUNTS, goodput, goodput_table

PROXIES = {
    "compbench": ("task", "n", "value", "low", "high", "chance"),
    "typography": (
        *("reader", "task", "n", "rate", "low", "high", "chance"),
        *("graded", "graded_low", "graded_high", "chance_graded"),
    ),
}
"""Tables of scores that some runs have, and their columns beside those that name the run."""
CURVE_COLUMNS = (
    *("run_id", "name", "formulation", "architecture", "depth", "dataset", "seed", "params"),
    *("text_encoders", "parametrization", "learning_rate", "batch"),
)
"""What curves.csv tells of the run of each row: what it is, its size, and what a law's runs have to have in common."""


def collect(study: Study, places: Places) -> pd.DataFrame:
    """Write results.csv, curves.csv, geneval.csv, battles.csv and figures/samples*.png of the finished runs.

    Of runs with ``evaluation.settings`` also scores.csv and, with its bootstrap over prompts, scores.parquet, and
    real.csv, what real images score; of runs with ``evaluation.without`` without.csv and without_battles.csv; of runs
    with ``evaluation.compbench_prompts`` compbench.csv; of runs on signs typography.csv.

    Of all runs that have begun goodput.csv: where their wall time went.

    Runs that differ by seed alone stand beside each other, whichever of their studies is given: ``with_seeds``.

    Returns the results, one row a finished run, in the study's order.
    """
    folder = places.study_dir
    runs = with_seeds(study, places)
    finished = finished_of(runs, places)
    results = [_result_row(run, result) for run, result in finished]
    curves = [row for run, result in finished for row in curve_rows(run, result)]
    scores = _rows(finished, "geneval")
    # A run on latents may have been finished without an autoencoder.
    drawn = [(run, result) for run, result in finished if result["judge_match"] is not None]
    trees = {result["name"]: read_geneval_tree(places.run_dir(run) / "samples") for run, result in drawn}
    rated = battle_table(drawn, trees, places)
    for column in dict.fromkeys(column for found in rated.values() for column in found):
        for row in results:
            row[column] = rated.get(row["name"], {}).get(column)
    for name, rows in (("results", results), ("curves", curves), ("geneval", scores)):
        write_atomic(folder / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False) if rows else "")
    for name, columns in PROXIES.items():  # not every study has these
        if rows := _rows(finished, name):
            write_atomic(folder / f"{name}.csv", pd.DataFrame(rows)[["run_id", "name", *columns]].to_csv(index=False))
    _score_tables(score_table(study, finished, {run.run_id: places.run_dir(run) for run, _ in finished}), folder)
    real = real_scores(study, places.data, places.vae)
    if len(real):
        write_atomic(folder / "real.csv", real.to_csv(index=False))
    write_without_tables(drawn, places)
    _grids(drawn, trees, folder)
    folders = [places.run_dir(run) for run in runs]
    held, now = locked(folders), time.time()  # those that are under way spend until now
    found = [goodput(list(read_events(path)), now if path in held else None) for path in folders]
    spent = [(run.run_id, name, good) for run, name, good in zip(runs, unique_names(runs), found, strict=True)]
    told = pd.DataFrame(goodput_table(spent))
    told = told.astype(dict.fromkeys(COUNTS, "Int64"))  # whole, though some may be missing
    write_atomic(folder / "goodput.csv", told.to_csv(index=False))
    return pd.DataFrame(results)


def _result_row(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    row = {key: value for key, value in result.items() if not isinstance(value, (list, dict))}
    # What results from before there were these columns do not tell.
    told = describe(run)
    row |= {key: told[key] for key in ("architecture", "text_encoders", "parametrization", "learning_rate", "width")}
    row |= {f"val_loss_{i}": value for i, value in enumerate(result["val_loss_levels"])}
    for item in result["geneval"]:
        name = "geneval" if item["task"] == "overall" else f"geneval_{item['task']}"
        row[name] = item["rate"]
        if item["task"] == "overall":
            row["geneval_graded"] = item["graded"]
    for item in result.get("compbench", ()):
        row["compbench" if item["task"] == "overall" else f"compbench_{item['task']}"] = item["value"]
    for item in result.get("typography", ()):
        name = "typography" if item["reader"] == "template" else f"typography_{item['reader']}"
        row[name if item["task"] == "overall" else f"{name}_{item['task']}"] = item["graded"]
        if item["task"] == "overall":
            row[f"{name}_exact"] = item["rate"]
    return row


def _rows(finished: list[tuple[Run, dict[str, Any]]], table: str) -> list[dict[str, Any]]:
    """A result's rows of that name, with the run before them."""
    return [
        {"run_id": result["run_id"], "name": result["name"], **row}
        for _, result in finished
        for row in result.get(table, ())
    ]


def curve_rows(run: Run, result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a validation of a finished run: CURVE_COLUMNS, what it had spent by then, its losses."""
    told = {**describe(run), "name": result["name"]}
    known = {key: told[key] for key in CURVE_COLUMNS}
    return [
        {
            **known,
            "step": point["step"],
            "images": point["step"] * run.batch,
            "train_flops": run.train_flops(point["step"]),
            "train_flops_6nd": run.train_flops_6nd(point["step"]),
            "val_loss": point["loss"],
            **{f"val_loss_{i}": value for i, value in enumerate(point["levels"])},
        }
        for point in result["curve"]
    ]


def _score_tables(scores: pd.DataFrame, folder: Path) -> None:
    if scores.empty:
        return
    write_atomic(folder / "scores.csv", scores[scores["draw"] == 0].drop(columns="draw").to_csv(index=False))
    buffer = io.BytesIO()
    scores.to_parquet(buffer, index=False)
    write_atomic(folder / "scores.parquet", buffer.getvalue())


def _grids(finished: list[Any], trees: dict[str, Any], folder: Path) -> None:
    """One grid a data set: a row a run, the same prompts and the same noise in every row."""
    for dataset in dict.fromkeys(run.data.name for run, _ in finished):
        names = [result["name"] for run, result in finished if run.data.name == dataset]
        prompts = trees[names[0]][1]
        names = [name for name in names if trees[name][1] == prompts]
        path = folder / "figures" / ("samples.png" if dataset == "scenes" else f"samples_{dataset}.png")
        samples_png({name: trees[name][0] for name in names}, prompts, path)
