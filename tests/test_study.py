"""A whole study through the console script: train, evaluate, report; again; status; a second look at its tables."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image


@pytest.mark.slow
def test_study_end_to_end(mmdit) -> None:
    first = mmdit("study", "run", "tiny.py", "--quiet")
    assert first.returncode == 0, first.stderr
    report = mmdit.folder / first.stdout.strip().splitlines()[-1]
    assert report.name == "report.html" and report.stat().st_size > 50_000
    folder = report.parent

    results, curves, geneval = (pd.read_csv(folder / f"{name}.csv") for name in ("results", "curves", "geneval"))
    assert list(results["name"]) == ["rf", "log normal"]
    assert results["elo"].mean() == pytest.approx(1000)
    assert list(curves["step"]) == [10, 20, 30, 40] * 2
    last = curves[curves["step"] == 40].set_index("name")["val_loss"]
    assert list(last) == list(results["val_loss"])
    levels = [f"val_loss_{i}" for i in range(8)]
    assert results["val_loss"].to_numpy() == pytest.approx(results[levels].mean(axis=1).to_numpy())
    assert set(geneval["task"]) == {
        "single_object", "two_object", "counting", "colors", "position", "color_attr", "overall"
    }  # fmt: skip
    grid = np.asarray(Image.open(folder / "figures" / "samples.png"))
    assert grid.ndim == 3 and grid.std() > 5

    # Same prompts, same noise: the two runs differ in their weights only, and their captions are the same.
    trees = [folder / name / "samples" for name in sorted(p.name for p in folder.iterdir() if (p / "samples").is_dir())]
    assert len(trees) == 2
    assert len({(tree / "00000" / "metadata.jsonl").read_text() for tree in trees}) == 1

    before = {path: path.read_bytes() for path in folder.rglob("result.json")}
    second = mmdit("study", "run", "tiny.py", "--quiet")
    assert second.returncode == 0 and "2 of 2 runs were done already" in second.stderr
    assert {path: path.read_bytes() for path in folder.rglob("result.json")} == before

    status = json.loads(mmdit("study", "status", "tiny.py", "--json").stdout)
    assert [(row["state"], row["step"], row["steps"]) for row in status["runs"]] == [("done", 40, 40)] * 2

    scored = mmdit("evaluate", "tiny.py", "--run", "rf", "--drop", "tower", "--out", "again", "--json")
    assert scored.returncode == 0, scored.stderr
    assert len(json.loads(scored.stdout)["geneval"]) == 7
    drawn = mmdit("sample", "tiny.py", "--run", "rf", "a red circle", "two blue stars", "--count", "2", "--out", "mine")
    assert drawn.returncode == 0, drawn.stderr
    shapes = [np.asarray(Image.open(mmdit.folder / line)).shape for line in drawn.stdout.splitlines()]
    assert shapes == [(32, 32, 3)] * 4

    shutil.rmtree(next(folder.glob("log-normal-*")))
    partial = mmdit("study", "report", "tiny.py")
    assert partial.returncode == 0, partial.stderr
    assert list(pd.read_csv(folder / "results.csv")["name"]) == ["rf"]


@pytest.mark.slow
def test_eight_devices_agree_with_one(mmdit) -> None:
    """The same run sharded over 4 x 2 fake devices, data and parameters, ends at the same losses."""
    losses = []
    for devices, root in ((1, "one"), (8, "eight")):
        done = mmdit(
            "train", "tiny.py", "--run", "rf", "--quiet", "--root", root, "--data-dir", "data",
            "--set", f"hardware.fsdp={2 if devices == 8 else 1}", devices=devices,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result = json.loads((next((mmdit.folder / root / "tiny").glob("rf-*")) / "result.json").read_text())
        losses.append([point["levels"] for point in result["curve"]])
    assert np.asarray(losses[1]) == pytest.approx(np.asarray(losses[0]), rel=2e-4)
