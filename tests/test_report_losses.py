"""The report's losses on the way: only where they were measured, and what is said where none is a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.look import Look
from scaling.loss_sections import NEAR, QUARTERS, level_section, loss_section, near_quarters
from scaling.study import StudyTables, load_study

RUN = {"formulation": "rf", "depth": 1, "dataset": "scenes"}


def study(folder: Path, validated: dict[str, list[int]], lengths: dict[str, int]) -> StudyTables:
    """Runs with the loss 1 / step at these steps, of these lengths."""
    curves = [
        {**RUN, "run_id": name, "name": name, "step": step, "train_flops": 1e9 * step, "val_loss": 1 / step}
        for name, steps in validated.items()
        for step in steps
    ]
    results = [
        {**RUN, "run_id": name, "name": name, "steps": steps, "val_loss": 1 / steps} for name, steps in lengths.items()
    ]
    pd.DataFrame(curves).to_csv(folder / "curves.csv", index=False)
    if results:
        pd.DataFrame(results).to_csv(folder / "results.csv", index=False)
    return load_study(folder)


def on_the_way(tables: StudyTables, folder: Path) -> tuple[pd.DataFrame, str]:
    frame, caption = loss_section(tables, Look.of(tables.runs), folder / "figures").tables[0]
    return frame.set_index("run"), caption


def test_a_quarter_without_a_validation_is_a_dash(tmp_path: Path) -> None:
    validated = {"half": [100, 200], "all": [100, 200, 300, 400], "uneven": [9, 24, 53, 74, 99], "broken": [200, 400]}
    lengths = {"half": 200, "all": 400, "uneven": 100, "broken": 800}
    frame, caption = on_the_way(study(tmp_path, validated, lengths), tmp_path)
    assert list(frame.columns) == [f"{quarter:.0%} of its steps" for quarter in QUARTERS]
    assert list(frame.loc["half"]) == ["–", f"{1 / 100:.4f}", "–", f"{1 / 200:.4f}"]
    assert list(frame.loc["all"]) == [f"{1 / step:.4f}" for step in (100, 200, 300, 400)]
    assert list(frame.loc["uneven"]) == [f"{1 / step:.4f}" for step in (24, 53, 74, 99)]
    assert list(frame.loc["broken"]) == [f"{1 / 200:.4f}", f"{1 / 400:.4f}", "–", "–"]  # it broke off half-way
    assert "a dash where there was no validation within 5%" in caption


def test_the_nearest_validation_is_told_and_only_if_near() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        length = int(rng.integers(20, 1000))
        steps = np.sort(rng.choice(np.arange(1, length + 1), size=rng.integers(1, 12), replace=False))
        at = pd.Series(rng.random(len(steps)), index=steps)
        for quarter, cell in zip(QUARTERS, near_quarters(at, length), strict=True):
            far = {float(abs(step - quarter * length)): loss for step, loss in at.items()}
            if min(far) > (NEAR + 1e-6) * length:
                assert cell == "–"
            elif min(far) < (NEAR - 1e-6) * length:
                ties = [loss for step, loss in at.items() if abs(abs(step - quarter * length) - min(far)) < 1e-6]
                assert cell in [f"{loss:.4f}" for loss in ties]


def test_runs_of_one_length_are_told_at_their_own_steps(tmp_path: Path) -> None:
    frame, caption = on_the_way(study(tmp_path, {"a": [100, 200], "b": [50, 200]}, {}), tmp_path)
    assert list(frame.columns) == ["step 50", "step 100", "step 200"] and "dash" not in caption
    assert list(frame.loc["a"]) == ["–", f"{1 / 100:.4f}", f"{1 / 200:.4f}"]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_losses_that_are_no_numbers(tmp_path: Path, broken: float) -> None:
    tables = study(tmp_path, {"a": [100, 200]}, {"a": 200})
    look, folder = Look.of(tables.runs), tmp_path / "figures"
    assert level_section(tables, look, folder).missing[0].startswith("no finished run has losses per level")
    curves = tables.curves.assign(val_loss=broken)
    results = tables.results.assign(val_loss=broken, val_loss_0=broken, val_loss_1=0.5)
    told = StudyTables(**{**vars(tables), "curves": curves, "results": results})
    part = loss_section(told, look, folder)
    assert part.missing == ["no val_loss in curves.csv is a finite number"] and not part.tables and not part.figures
    part = level_section(told, look, folder)
    assert part.missing[0].startswith("no finished run has finite losses at all levels") and not part.tables
    none = StudyTables(**{**vars(tables), "curves": pd.DataFrame(columns=tables.curves.columns)})
    assert loss_section(none, look, folder).missing == ["curves.csv has no validation yet"]
