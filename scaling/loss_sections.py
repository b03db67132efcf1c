"""The report's parts on losses: against compute, as a law, per level of t."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from scaling import figures, findings
from scaling.analysis import POOLED, Analysis, one_budget
from scaling.envelope import frontier
from scaling.laws import Law
from scaling.look import Look, baseline, save
from scaling.page import Section, formatted
from scaling.study import StudyTables, levels, values

QUARTERS = (0.25, 0.5, 0.75, 1.0)
"""Of a training, where its loss is told."""
NEAR = 0.05
"""Of a training: a loss is told for a quarter if it was measured no farther from there."""


def loss_section(tables: StudyTables, look: Look, folder: Path) -> Section:
    """Validation loss against steps and against FLOPs."""
    part = Section("Validation loss")
    if len(tables.results):
        part.findings.append(findings.depth_finding(tables.results))
    last = tables.curves.assign(val_loss=values(tables.curves, "val_loss")).dropna(subset=["val_loss"])
    if last.empty:
        part.missing.append(
            "curves.csv has no validation yet"
            if tables.curves.empty
            else "no val_loss in curves.csv is a finite number"
        )
        return part
    if tables.curves["depth"].nunique() > 1 and not one_budget(tables):
        part.findings.append(findings.compute_finding(tables.curves, frontier(tables.curves)))
    for x, caption in (("step", "against training steps"), ("train_flops", "against training compute")):
        png = save(figures.loss_curves(tables.curves, look, x), folder, f"loss_{x.removeprefix('train_')}")
        part.figures.append((png, f"Validation loss {caption}, a line a run, a point a validation{look.told_apart}"))
    part.tables.append(_on_the_way(tables, last))
    return part


def _on_the_way(tables: StudyTables, last: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The loss of each run at some of its validations ``last``, and a caption: at the same steps where all runs end at
    one, else at QUARTERS of each run's own length."""
    caption, steps = "Validation loss on the way", np.unique(last["step"])
    alike = last.groupby("name")["step"].max().nunique() == 1
    if not alike:
        caption += f"; a dash where there was no validation within {NEAR:.0%} of its steps from there"
    ends = tables.curves.groupby("name")["step"].max()
    if len(tables.results):
        ends = values(tables.results, "steps").groupby(tables.results["name"]).max().combine_first(ends)
    rows = []
    for name, run in last.groupby("name", sort=False):
        at = run.set_index("step")["val_loss"]
        if alike:
            shown = [int(steps[int(np.ceil(len(steps) * quarter)) - 1]) for quarter in QUARTERS]
            cells = {f"step {m:,}": f"{at[m]:.4f}" if m in at.index else "–" for m in shown}
        else:
            cells = dict(zip((f"{q:.0%} of its steps" for q in QUARTERS), near_quarters(at, ends[name]), strict=True))
        rows.append({"run": name, **cells})
    return pd.DataFrame(rows), caption


def near_quarters(at: pd.Series, length: float) -> list[str]:
    """Of losses by step the one nearest to each of QUARTERS of ``length`` steps; a dash where none is NEAR it."""
    cells = []
    for quarter in QUARTERS:
        far = np.abs(at.index.to_numpy(dtype=float) / length - quarter)
        cells.append(f"{at.iloc[far.argmin()]:.4f}" if far.min() <= NEAR + 1e-9 else "–")
    return cells


def law_section(tables: StudyTables, analysis: Analysis, look: Look, folder: Path) -> Section:
    """The power law over FLOPs, with and without floor."""
    part = Section("Power law over compute")
    part.missing += [
        why if name == "law" else f"{name.removeprefix('law ')}: {why}"
        for name, why in analysis.why.items()
        if name.startswith("law")
    ]
    if not analysis.fits:
        if "law" not in analysis.why:
            part.missing.append("a law needs at least three points on the frontier")
        return part
    part.findings.append(findings.law_finding(analysis.fits, POOLED))
    png = save(figures.law_figure(tables.curves, analysis.fits, look, POOLED), folder, "power_law")
    part.figures.append(
        (png, f"Frontier points, fitted laws without floor, and 95 % bands of the laws{look.told_apart}")
    )
    rows = []
    for kind, (law, _) in analysis.fits.items():
        for fitted in (law, analysis.floors.get(kind)):
            if fitted is None:
                continue
            with_floor = fitted is not law
            name = f"{kind}, {'with' if with_floor else 'without'} floor"
            exponent, scale, floor = (_with_interval(fitted, key) for key in ("b", "a", "floor"))
            part.notes += [f"{name} is not identifiable: {reason}." for reason in fitted.reasons]
            rows.append(
                {
                    "fitted to": name,
                    "exponent b": exponent,
                    "a": scale,
                    "floor": floor if with_floor else "none",
                    "points": str(fitted.rows),
                    "runs": str(fitted.groups),
                    "resampled": fitted.bootstrap,
                    "identifiable": "yes" if fitted.identifiable else "no",
                }
            )
    part.tables.append((pd.DataFrame(rows), "L = floor + a·C^(−b), C in FLOPs (per-stream count), with 95 % intervals"))
    return part


def _with_interval(law: Law, name: str) -> str:
    def show(value: float) -> str:
        if name == "a":
            return f"{value:.3g}" if 0.01 <= value < 1e4 else findings.scientific(value)
        return f"{value:.4f}" if name == "floor" else f"{value:.3f}"

    low, high = law.intervals[name]
    return f"{show(law.params[name])}\n{show(low)} to {show(high)}"


def level_section(tables: StudyTables, look: Look, folder: Path) -> Section:
    """Loss per level of t, and its ratio to the baseline's at the same depth."""
    part = Section("Loss per t bin")
    columns = levels(tables.results)
    known = tables.results.assign(**{column: values(tables.results, column) for column in columns})
    complete = known.dropna(subset=columns) if columns else pd.DataFrame()
    if complete.empty:
        part.missing.append(
            "no finished run has finite losses at all levels (val_loss_0, val_loss_1, …)"
            if columns
            else "no finished run has losses per level (val_loss_0, val_loss_1, …)"
        )
        return part
    plain = baseline(list(complete["formulation"]))
    ratios = level_ratios(complete, plain)
    per_setting = complete.groupby(["formulation", "depth"]).size().min()
    part.findings.append(findings.level_finding(ratios, plain, int(per_setting)))
    png = save(figures.level_losses(complete, look), folder, "loss_per_level")
    part.figures.append((png, f"Final validation loss at each level of t{look.told_apart}"))
    if len(ratios):
        png = save(figures.level_ratios(ratios, plain, look), folder, "loss_per_level_ratio")
        part.figures.append(
            (png, f"The same, divided by {plain}'s at the same depth: below 1 is better{look.told_apart}")
        )
    centres = (np.arange(len(columns)) + 0.5) / len(columns)
    frame = complete[["name", *columns]].copy()
    frame.columns = ["run", *(f"t = {t:.3f}" for t in centres)]
    for column in frame.columns[1:]:
        frame[column] = formatted(frame[column], "{:.4f}")
    part.tables.append((frame, "Final validation loss per level"))
    return part


def level_ratios(results: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """formulation, depth, t, ratio of mean loss (over seeds) to ``baseline``'s at that depth and level."""
    columns = levels(results)
    centres = (np.arange(len(columns)) + 0.5) / len(columns)
    mean = results.groupby(["formulation", "depth"])[columns].mean()
    rows = []
    for kind, depth in mean.index:
        if kind == baseline or (baseline, depth) not in mean.index:
            continue
        ratio = (mean.loc[(kind, depth)] / mean.loc[(baseline, depth)]).to_numpy(dtype=float)
        rows += [{"formulation": kind, "depth": depth, "t": t, "ratio": r} for t, r in zip(centres, ratio, strict=True)]
    return pd.DataFrame(rows, columns=["formulation", "depth", "t", "ratio"])
