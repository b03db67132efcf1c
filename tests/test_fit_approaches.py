"""mmdit fit with approaches 1 and 2, ladders, and forms compared: what is printed is what the functions find."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch import cli


def loss(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 0.05 + 3 * n**-0.3 + 40 * d**-0.4


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Budgets of seven sizes (isoflop), and a grid of two ratios (ladders)."""
    folder = tmp_path_factory.mktemp("grids")
    rng = np.random.default_rng(0)
    rows = []
    for budget in np.geomspace(1e15, 1e18, 5):
        best = (0.3 * 3 / (0.4 * 40)) ** (1 / 0.7) * (budget / 6) ** (0.4 / 0.7)
        rows += [(n, budget / 6 / n, budget) for n in best * np.exp(np.linspace(-1, 1, 7))]
    n, d, c = np.array(rows).T
    noise = np.exp(rng.normal(0, 0.001, len(n)))
    pd.DataFrame({"params": n, "images": d, "train_flops": c, "val_loss": loss(n, d) * noise}).to_csv(
        folder / "isoflop.csv", index=False
    )
    n = np.tile(np.geomspace(1e5, 1e7, 6), 4)
    d = n * np.repeat([20.0, 20.0, 2.0, 2.0], 6)
    noise = np.exp(rng.normal(0, 0.002, len(n)))
    pd.DataFrame({"params": n, "images": d, "train_flops": 6 * n * d, "val_loss": loss(n, d) * noise}).to_csv(
        folder / "ladders.csv", index=False
    )
    curves = [
        {"run_id": str(size), "params": size, "images": at, "train_flops": 6 * size * at, "val_loss": loss(size, at)}
        for size in np.geomspace(1e5, 1e7, 9)
        for at in np.geomspace(1e5, 1e8, 25)
    ]
    pd.DataFrame(curves).to_csv(folder / "curves.csv", index=False)
    return folder


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = cli.main(["fit", *words, "--bootstrap", "100"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_isoflop(grids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (str(grids / "isoflop.csv"), "--law", "isoflop")
    found = json.loads(told(capsys, *words, "--json"))
    assert found["law"] == "isoflop" and len(found["budgets"]) == 5
    low, high = found["allocation"]["intervals"]["a"]
    assert low <= 0.4 / 0.7 <= high and found["allocation"]["params"]["a"] == pytest.approx(0.4 / 0.7, abs=0.03)
    text = told(capsys, *words)
    assert "the method's own bias" in text and "95 % interval" in text and "C: training FLOPs" in text


def test_envelope(grids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (str(grids / "curves.csv"), "--law", "envelope", "--group", "run_id")
    found = json.loads(told(capsys, *words, "--json"))
    assert found["allocation"]["params"]["a"] == pytest.approx(0.4 / 0.7, abs=0.06)
    assert found["frontier"]["law"] == "power" and found["columns"]["N"]["unit"] == "parameters"
    assert "N_opt = k_n·C^a, D_opt = k_d·C^b" in told(capsys, *words)


def test_ladders(grids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (str(grids / "ladders.csv"), "--law", "ladders", "--at", "C=1e16")
    found = json.loads(told(capsys, *words, "--json"))
    assert [round(ladder["ratio"], 3) for ladder in found["ladders"]] == [2.0, 20.0]
    (at,) = found["at"]
    for row in at["ladders"]:
        n = np.sqrt(1e16 / 6 / row["ratio"])
        assert row["low"] <= loss(n, n * row["ratio"]) <= row["high"]
    lowest = min((2, 20), key=lambda ratio: loss(np.sqrt(1e16 / 6 / ratio), np.sqrt(1e16 / 6 * ratio)))
    assert at["ladders"][0]["ratio"] == pytest.approx(lowest) and at["ladders"][0]["certainty"] > 0.9
    tokens = json.loads(told(capsys, *words, "--tokens-per-image", "64", "--json"))
    assert [round(ladder["ratio"]) for ladder in tokens["ladders"]] == [128, 1280]
    assert "D/N = 20" in told(capsys, *words)


def test_compare(grids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (str(grids / "isoflop.csv"), "--law", "joint", "--compare")
    found = json.loads(told(capsys, *words, "--json"))
    assert found["law"] == "joint" and found["compare"]["rows"][0]["name"].startswith("joint")
    text = told(capsys, *words)
    assert "foretold from the rest" in text and "joint, floor" in text


def test_several_losses_are_refused(grids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["fit", str(grids / "isoflop.csv"), "--law", "isoflop", "--loss", "val_loss,images"])
    assert code == 2 and "expected one column" in capsys.readouterr().err
