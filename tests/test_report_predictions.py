"""Predictions in the report: truth within and without the interval, not done yet, and a file that was changed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.law_kinds import POWER
from scaling.laws import fit_law
from scaling.prediction_section import prediction_figure, prediction_section
from scaling.predictions import FILE, added, prediction, read_predictions, with_truth

RUNS = {"far": 4e14, "near": 2e14, "waiting": 8e14}


@pytest.fixture(scope="module")
def records() -> list[dict[str, object]]:
    compute = np.repeat(np.logspace(12, 14, 8), 2)
    loss = 30 * compute**-0.15 * np.exp(np.random.default_rng(0).normal(0, 0.01, 16))
    law = fit_law(POWER, [compute], loss, floor=False, draws=50)
    return [
        {
            "name": name,
            "run_id": name,
            "registered": "2026-01-02",
            "loss_column": "val_loss",
            "table_sha256": "0",
            **prediction(law, {"C": c}),
        }
        for name, c in RUNS.items()
    ]


@pytest.fixture
def study(tmp_path: Path, records: list[dict[str, object]]) -> Path:
    (tmp_path / FILE).write_text(added("", records))
    return tmp_path


def results(**losses: float) -> pd.DataFrame:
    return pd.DataFrame({"run_id": list(losses), "val_loss": list(losses.values())})


def test_truth_beside_predictions(study: Path, records: list[dict[str, object]]) -> None:
    far, near = (float(str(record["loss"])) for record in records[:2])
    (part,) = prediction_section(study, results(far=1.3 * far, near=1.001 * near), study / "figures")
    assert (
        "1 of 2 predictions (1 more wait for their run) have the loss that came within their 95 % interval"
        in part.findings[0]
    )
    assert "at worst far's, 23.1 % too low" in part.findings[0]
    (table, _), *_ = part.tables
    assert list(table["in the interval"]) == ["no", "yes", "–"] and list(table["came"])[2] == "not done"
    assert table["came"][0] == f"{1.3 * far:.4f}" and table["predicted over actual"][0] == "−23.1 %"
    assert (study / "figures" / "predictions.pdf").read_bytes().startswith(b"%PDF") and len(part.broad) == 1


def test_one_and_none_yet(study: Path, records: list[dict[str, object]]) -> None:
    far = float(str(records[0]["loss"]))
    (part,) = prediction_section(study, results(far=far), study / "figures")
    assert f"The loss that came, {far:.4f} of far, lies within" in part.findings[0]
    (part,) = prediction_section(study, pd.DataFrame(), study / "figures")
    assert part.findings[0] == "3 losses were predicted; no such run is done yet."


def test_no_predictions_no_section(tmp_path: Path) -> None:
    assert prediction_section(tmp_path, results(far=1.0), tmp_path) == []


def test_a_changed_file_is_told(study: Path) -> None:
    lines = (study / FILE).read_text().splitlines()
    told = json.loads(lines[0])
    lines[0] = json.dumps({**told, "loss": told["loss"] * 1.3}, sort_keys=True)
    (study / FILE).write_text("\n".join(lines) + "\n")
    (part,) = prediction_section(study, results(far=1.0), study / "figures")
    assert not part.findings and not part.tables
    assert "not to be relied on" in part.missing[0] and "line 1 was changed" in part.missing[0]


def test_losses_and_floors_are_told_apart(tmp_path: Path, records: list[dict[str, object]]) -> None:
    """Two losses of one run, and one power law with a floor and without."""
    far = records[0]
    loss = float(str(far["loss"]))
    several = [far, {**far, "floor": True}, {**far, "loss_column": "val_loss_3", "table_sha256": "1"}]
    (tmp_path / FILE).write_text(added("", several))
    came = results(far=loss).assign(val_loss_3=2 * loss)
    (part,) = prediction_section(tmp_path, came, tmp_path / "figures")
    (table, _), *_ = part.tables
    assert list(table["law"]) == ["power, no floor", "power", "power, no floor"]
    assert list(table["loss"]) == ["val_loss", "val_loss", "val_loss_3"]
    assert "at worst far's val_loss_3, 50.0 % too low" in part.findings[0]
    figure = prediction_figure(with_truth(read_predictions(tmp_path), came), 0.95)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["far (val_loss, power, no floor)", "far (val_loss, power)", "far (val_loss_3, power, no floor)"]


def test_the_loss_has_no_column_where_it_is_one(study: Path) -> None:
    (part,) = prediction_section(study, pd.DataFrame(), study / "figures")
    (table, _), *_ = part.tables
    assert "loss" not in table.columns


def test_the_note_says_what_digests_tell(study: Path) -> None:
    (part,) = prediction_section(study, pd.DataFrame(), study / "figures")
    assert "that the last ones were deleted" in part.notes[0] and "only added to" not in part.notes[0]
    assert "changed unseen" not in part.notes[0]
    lines = (study / FILE).read_text().splitlines()
    (study / FILE).write_text(re.sub(r', "digest": "[0-9a-f]+"', "", lines[0]) + "\n")  # as the first files were
    (part,) = prediction_section(study, pd.DataFrame(), study / "figures")
    assert "The last line, written without its own, could have been changed unseen." in part.notes[0]
