"""The parts of a study's report: each draws its figures, says what they mean, or says what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scaling import figures, findings
from scaling.analysis import Analysis
from scaling.envelope import BURN_IN
from scaling.law_bootstrap import MIN_GROUPS
from scaling.look import Look, save
from scaling.page import Section, formatted
from scaling.study import StudyTables, levels, values

MOST_PAIRS = 16
"""Of more runs than this, the table of expected scores of each pair is left out: it has a column a run."""


def runs_section(tables: StudyTables, analysis: Analysis) -> Section:
    """The table of runs: size, compute by both counts, loss and every score."""
    part = Section("Runs")
    if tables.results.empty:
        part.missing.append(f"no run has finished; {len(tables.runs)} have validations")
        return part
    part.tables.append(
        (
            _run_table(tables.results, analysis),
            "Every finished run of the main data set, best validation loss first; FLOPs of the whole training",
        )
    )
    waiting = sorted(set(tables.runs["name"]) - set(tables.results["name"]))
    if waiting:
        part.missing.append(f"not finished: {', '.join(waiting)}")
    return part


def _run_table(results: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    ratings = {r.name: r.elo for r in next(iter(analysis.elo.values())).ratings} if analysis.elo else {}
    elo = results["name"].map(ratings).astype(float) if ratings else values(results, "elo")
    order = values(results, "val_loss").sort_values(kind="stable").index
    frame = pd.DataFrame(
        {
            "run": results["name"],
            "formulation": results["formulation"],
            "depth": [f"{d:g}" for d in results["depth"]],
            "seed": _column(results, "seed", "{:g}"),
            "loss": _column(results, "val_loss", "{:.4f}"),
            "GenEval": _column(results, "geneval", "{:.3f}"),
            "graded": _column(results, "geneval_graded", "{:.3f}"),
            "Elo": formatted(elo, "{:.0f}"),
            "parameters": _column(results, "params", "{:,.0f}"),
            "steps": _column(results, "steps", "{:,.0f}"),
            "images": _column(results, "images", "{:,.0f}"),
            "FLOPs": [findings.scientific(v, 2) for v in values(results, "train_flops")],
            "FLOPs, 6ND": [findings.scientific(v, 2) for v in values(results, "train_flops_6nd")],
        }
    )
    return frame.loc[order]


def task_section(tables: StudyTables, look: Look, folder: Path) -> Section:
    """Pass rates and graded scores per task, chance beside each."""
    part = Section("GenEval proxy")
    if tables.geneval.empty:
        part.missing.append("geneval.csv: no run has been scored yet")
        return part
    geneval = tables.geneval
    part.findings.append(findings.task_finding(geneval))
    strict = ("rate", "low", "high", "chance")
    png = save(figures.task_scores(geneval, tables.runs, look, strict, "share of images that pass"), folder, "geneval")
    part.figures.append((png, "Share passed per task, with 95 % intervals; the red bar is a random scene's chance"))
    if values(geneval, "graded").notna().any():
        part.findings.append(findings.graded_finding(geneval))
        graded = ("graded", "graded_low", "graded_high", "chance_graded")
        png = save(
            figures.task_scores(geneval, tables.runs, look, graded, "graded score (0 to 1)"), folder, "geneval_graded"
        )
        part.figures.append(
            (png, "Graded score per task: matched objects, colours, counts and relations count in part")
        )
    for columns, caption in (
        (strict, "Share passed"),
        (("graded", "graded_low", "graded_high", "chance_graded"), "Graded"),
    ):
        # Where no run passes anything, a table of noughts is no help.
        if (values(geneval, columns[0]) > 0).any():
            part.tables.append((_task_table(geneval, *columns), f"{caption} per task, with 95 % interval"))
    return part


def _task_table(geneval: pd.DataFrame, value: str, low: str, high: str, chance: str) -> pd.DataFrame:
    tasks = list(dict.fromkeys(geneval["task"]))
    rows = []
    for name, run in geneval.groupby("name", sort=False):
        cells = {}
        for task in tasks:
            found = run[run["task"] == task]
            numbers = [values(found, column).mean() for column in (value, low, high)]
            text = f"{numbers[0]:.3f}\n{numbers[1]:.3f} to {numbers[2]:.3f}"
            cells[task.replace("_", " ")] = text if np.isfinite(numbers[0]) else "–"
        rows.append({"run": name, **cells})
    expected = {t.replace("_", " "): values(geneval[geneval["task"] == t], chance).mean() for t in tasks}
    if any(np.isfinite(v) for v in expected.values()):
        rows.append({"run": "chance", **{t: f"{v:.3f}" if np.isfinite(v) else "–" for t, v in expected.items()}})
    return pd.DataFrame(rows)


def elo_section(tables: StudyTables, analysis: Analysis, folder: Path) -> Section:
    """Elo with intervals, per judge, and expected scores of each pair."""
    part = Section("Elo proxy")
    if not analysis.elo:
        part.missing.append(analysis.why.get("elo", "battles.csv: no battles between runs of this data set yet"))
        return part
    table = next(iter(analysis.elo.values()))
    part.findings.append(findings.elo_finding(table))
    png = save(figures.elo_figure(analysis.elo), folder, "elo")
    part.figures.append(
        (png, f"Elo with 95 % intervals from {len(table.samples)} bootstraps over {table.prompts} prompts")
    )
    rows = []
    for rating in table.ratings:
        row = {"run": rating.name, "battles": f"{rating.battles:,}"}
        for judge, judged in analysis.elo.items():
            found = next((r for r in judged.ratings if r.name == rating.name), None)
            row[judge] = f"{found.elo:.0f}\n{found.low:.0f} to {found.high:.0f}" if found else "–"
        rows.append(row)
    part.tables.append((pd.DataFrame(rows), "Elo with 95 % interval, by judge"))
    if len(table.ratings) > MOST_PAIRS:
        return part
    expected = table.win_rates()
    frame = expected.map(lambda v: f"{v * 100:.0f} %" if np.isfinite(v) else "–").reset_index(
        names="row against column"
    )
    part.tables.append((frame, "Expected score of the row's run against the column's, ties as half"))
    return part


def samples_section(tables: StudyTables) -> Section:
    """The grid of samples, at its natural size."""
    part = Section("Samples")
    if tables.samples is None:
        part.missing.append("figures/samples.png has not been made yet")
        return part
    part.wide.append((tables.samples.read_bytes(), "Same prompts and same noise in every run; nothing was picked"))
    return part


def others_section(tables: StudyTables, folder: Path) -> list[Section]:
    """Runs of other data sets, apart, since their losses and scores are not comparable with the rest."""
    if tables.others.empty and tables.other_curves.empty:
        return []
    part = Section("Other data sets")
    frame = tables.others
    if len(frame):
        table = _run_table(frame, Analysis())
        table.insert(1, "data set", frame["dataset"].loc[table.index])
        keep = [column for column in table.columns if (table[column] != "–").any()]
        part.tables.append((table[keep], "Finished runs"))
    if len(tables.other_curves):
        look = Look.of(tables.other_curves, tables.others)
        for dataset, curves in tables.other_curves.groupby("dataset", sort=True):
            png = save(figures.loss_curves(curves, look, "step"), folder, f"loss_step_{dataset}")
            part.figures.append((png, f"Validation loss on {dataset}{look.told_apart}"))
    for dataset, path in tables.other_samples.items():
        part.wide.append((path.read_bytes(), f"Samples on {dataset}: same noise in every run; nothing was picked"))
    part.notes.append(
        f"A loss on one data set says nothing about another: none of these is compared with {tables.dataset}."
    )
    return [part]


def method_section(tables: StudyTables, analysis: Analysis, notes: Sequence[str], draws: int) -> Section:
    """How the numbers were made, so that a reader can distrust the right ones."""
    part = Section("How these numbers were made")
    say = part.findings.append
    count = len(levels(tables.results) or levels(tables.curves))
    say(
        f"Validation loss is the mean squared velocity error on held-out examples with fixed noise, at {count} levels "
        "equally spaced in t (0 data, 1 noise), on the averaged (EMA) weights; the mean of the levels is shown."
    )
    say(
        "FLOPs are counted per stream with attention, forward and backward; the 6ND convention, which counts every "
        "parameter for every token, stands beside it in the table of runs. Figures and laws use the per-stream count."
    )
    say(
        "A law is fitted to the compute frontier: the validations, at any checkpoint, that no run of its formulation "
        f"beats at their compute, the first {BURN_IN:.0%} of each run left out. Huber loss (delta 1e-3) on log "
        f"residuals, many starts; {draws} bootstraps, of whole runs where there are {MIN_GROUPS} or more, else of "
        "residuals, a run's moving together and taken from the law fitted without it. Bands are for the law, not for "
        "one new run. A checkpoint stands for a run of its length: that holds for a constant learning rate and "
        "averaged weights."
    )
    sizes = values(tables.geneval, "n").dropna() if len(tables.geneval) else pd.Series(dtype=float)
    sizes = sizes[tables.geneval.loc[sizes.index, "task"] != "overall"] if len(sizes) else sizes
    if len(sizes):
        images = f"{sizes.min():.0f} to {sizes.max():.0f}" if sizes.nunique() > 1 else f"{sizes.max():.0f}"
        say(
            f"The GenEval proxy has {images} images a task; intervals of pass rates are Wilson's; "
            "overall is the mean of the tasks; chance is what a random scene scores on a random prompt."
        )
    if analysis.elo:
        table = next(iter(analysis.elo.values()))
        say(
            f"Elo is Bradley–Terry with ties (Davidson) by maximum likelihood over {table.battles:,} battles on "
            f"{table.prompts} prompts; a prompt's battles are resampled together, {len(table.samples)} times."
        )
    if analysis.correlations:
        rows = max(score.found.rows for score in analysis.correlations.values())
        say(f"Correlations are over {rows} runs of one data set; intervals and p-values by the methods in the table.")
    part.findings += list(notes)
    return part


def _column(frame: pd.DataFrame, name: str, pattern: str) -> list[str]:
    return formatted(values(frame, name), pattern)
