"""The report of many formulations at one depth: what is told apart, what is grey, and what is not claimed."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import Page

from mmdit_jax.diffusion import STUDY_61
from scaling.figures import loss_curves
from scaling.look import HUES, MOST_KINDS, OTHER, Look, baseline
from scaling.report import write_report
from scaling.study import load_study

NAMES = ["rf", *(kind for kind in STUDY_61 if kind != "rf")]
"""Worst first, as ``many`` has them."""


def many(folder: Path, kinds: int) -> Path:
    """The first ``kinds`` of NAMES on emoji and on scenes at one depth, two seeds, each better than the one before."""
    runs, scores, battles = [], [], []
    names = NAMES[:kinds]
    for dataset in ("emoji", "scenes"):
        for place, kind in enumerate(reversed(names)):
            for seed in (0, 1):
                name = f"{dataset} {kind} s{seed}"
                known = {"run_id": name, "name": name, "formulation": kind, "depth": 2, "dataset": dataset}
                for step in (100, 200, 400):
                    loss = 2 * (1 + 0.02 * place + 0.001 * seed) * step**-0.2
                    levels = {f"val_loss_{i}": loss * (1 + 0.01 * (i - 1) * place) for i in range(3)}
                    runs.append({**known, "step": step, "train_flops": 1e9 * step, "val_loss": loss, **levels})
                if dataset == "scenes":
                    rates = {"rate": 0.0, "low": 0.0, "high": 0.1, "chance": 0.05}
                    graded = {"graded": 0.4, "graded_low": 0.3, "graded_high": 0.5, "chance_graded": 0.3}
                    scores += [{"name": name, "task": task, "n": 9, **rates, **graded} for task in ("a", "overall")]
    curves = pd.DataFrame(runs)
    results = curves[curves["step"] == 400].assign(steps=400, seed=[0, 1] * (2 * kinds))
    fighters = list(results.loc[results["dataset"] == "scenes", "name"])
    for prompt in range(5):
        for first, second in itertools.pairwise(fighters):
            battles.append({"prompt": prompt, "left": first, "right": second, "outcome": ("left", "right")[prompt % 2]})
    (folder / "figures").mkdir(parents=True)
    tables = {"results": results, "curves": curves, "geneval": pd.DataFrame(scores), "battles": pd.DataFrame(battles)}
    for stem, frame in tables.items():
        frame.to_csv(folder / f"{stem}.csv", index=False)
    return folder


@pytest.mark.parametrize("kinds", [20, 61])
def test_a_report_of_many_formulations_can_be_read(tmp_path: Path, kinds: int) -> None:
    folder = many(tmp_path / "s", kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # as of a figure that is all legend
        page = Page(write_report(folder, title="t", draws=20).read_text(encoding="utf-8"))
    assert load_study(folder).dataset == "scenes"  # as many runs as emoji, but theirs fought
    assert f"baseline among them; {kinds - MOST_KINDS} in grey" in page.texts["validation-loss"]
    assert "depth 2 gives the lowest loss" not in page.texts["validation-loss"]
    law = page.texts["power-law-over-compute"]
    assert "no law, since all runs have depth 2 and one length" in law and "follows C" not in law
    level = page.texts["loss-per-t-bin"]
    assert f"Loss per level against rf's, of {kinds - 1} other formulations: at t = 0.17 " in level
    assert f"at t = 0.83 {NAMES[kinds - 1]} is lowest" in level and f"and {NAMES[1]} highest" in level
    tasks = page.texts["geneval-proxy"]
    assert "Graded per task" in tasks and "Share passed per task, with 95 % interval" not in tasks.split("chance")[-1]
    assert "row against column" not in page.texts["elo-proxy"] and "Elo with 95 % interval" in page.texts["elo-proxy"]
    assert len(page.texts["in-short"]) < 2000


def test_the_look_of_many(tmp_path: Path) -> None:
    tables = load_study(many(tmp_path / "s", 20))
    look = Look.of(tables.runs, tables.results)
    best = NAMES[20 - MOST_KINDS + 1 : 20]
    assert set(look.formulations) == {"rf", *best} and look.others == 13  # the baseline is always shown
    hidden = next(kind for kind in tables.results["formulation"] if kind not in look.formulations)
    assert look.colour(2, hidden) == OTHER and look.order(hidden) < look.order("rf")
    assert len({look.colour(2, kind) for kind in look.formulations}) == MOST_KINDS == len(HUES)
    figure = loss_curves(tables.curves, look, "step")
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours.count(OTHER) == 2 * 13 and len(colours) == 40
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*look.formulations, "13 others"]
    few = Look.of(tables.runs[tables.runs["formulation"].isin(best[:2])])
    assert few.others == 0 and few.told_apart == "" and len(few.formulations) == 2
    assert baseline(["v/cos", "eps/cos"]) == "eps/cos"


def test_one_depth_of_several_lengths_still_has_a_law(tmp_path: Path) -> None:
    folder = many(tmp_path / "s", 2)
    curves, results = pd.read_csv(folder / "curves.csv"), pd.read_csv(folder / "results.csv")
    short = results["name"].str.endswith("s1")
    results.assign(steps=np.where(short, 200, 400)).to_csv(folder / "results.csv", index=False)
    curves[~((curves["step"] > 200) & curves["name"].str.endswith("s1"))].to_csv(folder / "curves.csv", index=False)
    page = Page(write_report(folder, title="t", draws=20).read_text(encoding="utf-8"))
    assert "no law, since" not in page.texts["power-law-over-compute"]
