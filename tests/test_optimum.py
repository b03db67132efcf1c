"""Optima of a learning rate and their drift: simulations with known answers, and ``mmdit optimum``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from scaling.errors import TableError
from scaling.optimum import drift, optima

RATES = 2.0 ** np.arange(-12, -3)
WIDTHS = (32, 64, 128, 256)


def sweep(slope: float, *, noise: float = 0.01, draw: int = 0, seeds: int = 2, skew: float = 0.0) -> pd.DataFrame:
    """log2 loss is a parabola about log2 x = -7 + slope log2(width / 32), 0.05 deep an octave; seeds have levels."""
    rng = np.random.default_rng(draw)
    rows = []
    for width in WIDTHS:
        best = -7.3 + slope * np.log2(width / 32)
        for seed in range(seeds):
            level = 0.1 * rng.normal()
            for rate in RATES:
                u = np.log2(rate) - best
                bend = 0.05 * u**2 + skew * u**3
                loss = 2 ** (-2 - 0.1 * np.log2(width) + level + bend + noise * rng.normal())
                rows.append({"width": width, "learning_rate": rate, "seed": seed, "val_loss": loss})
    return pd.DataFrame(rows)


def found_in(table: pd.DataFrame):
    return optima(table, "learning_rate", "val_loss", "width")


def test_without_noise_the_vertex_is_exact() -> None:
    for slope in (0.0, -0.5, -1.0):
        found = found_in(sweep(slope, noise=1e-9))
        np.testing.assert_allclose([item.size for item in found], WIDTHS)
        expected = [-7.3 + slope * np.log2(width / 32) for width in WIDTHS]
        np.testing.assert_allclose(np.log2([item.best for item in found]), expected, atol=1e-6)
        line = drift(found)
        assert line.slope == pytest.approx(slope, abs=1e-6) and line.sizes == 4
        assert line.low <= line.slope <= line.high


def test_curve_and_loss_are_those_of_the_mean_seed() -> None:
    table = sweep(-0.5, noise=1e-9)
    for item in found_in(table):
        u = np.log2(item.best)
        own = table[table["width"] == item.size]
        levels = own[own["learning_rate"] == RATES[4]]["val_loss"]
        at = np.polyval(item.curve[::-1], np.log2(RATES[4]))
        assert at == pytest.approx(np.log2(levels).mean(), abs=1e-6)
        assert np.polyval(item.curve[::-1], u) == pytest.approx(np.log2(item.loss), abs=1e-9)


def test_intervals_hold_what_they_promise() -> None:
    """Of 200 sweeps, those of each optimum and of the drift have the truth in them about 95 % of the time."""
    held, drifts, widths = [], [], []
    for draw in range(200):
        found = found_in(sweep(-0.6, noise=0.03, draw=draw))
        truth = [-7.3 - 0.6 * np.log2(width / 32) for width in WIDTHS]
        held += [item.low <= 2**best <= item.high for item, best in zip(found, truth, strict=True) if item.bounded]
        line = drift(found)
        drifts.append(line.low <= -0.6 <= line.high)
        widths.append(line.high - line.low)
    assert len(held) > 760
    assert 0.93 < np.mean(held) < 0.97
    assert 0.92 < np.mean(drifts) < 0.98
    assert np.median(widths) < 0.5  # and are of use


def test_a_flat_sweep_bounds_nothing() -> None:
    """Pure noise has no minimum: nearly all such optima are told to be at an edge or not bounded."""
    told = []
    for draw in range(60):
        rng = np.random.default_rng(draw)
        flat = sweep(0.0, draw=draw).assign(val_loss=lambda t, rng=rng: 2 ** (0.05 * rng.normal(size=len(t))))
        told += [item.bounded for item in found_in(flat)]
    # A parabola through the least of nine and its neighbours bends upwards by choice: hence above 2.5 %.
    assert np.mean(told) < 0.25


def test_an_optimum_at_the_end_of_the_grid_is_told() -> None:
    table = sweep(-1.0, noise=0.001)
    table = table[table["learning_rate"] >= 2**-9]
    found = found_in(table)
    assert [item.edge for item in found] == [False, False, True, True]  # of -7.3, -8.3, -9.3 and -10.3
    assert all(item.best == 2**-9 and not item.bounded for item in found[2:])
    line = drift(found)
    assert line.sizes == sum(item.bounded for item in found)


def test_runs_that_diverged_are_no_points() -> None:
    table = sweep(0.0, noise=0.001)
    whole = found_in(table)
    gone = table["learning_rate"] > 2**-5.5
    blank = table.assign(val_loss=table["val_loss"].where(~gone))
    for left in (blank, table[~gone], table.drop(index=table[gone & (table["seed"] == 1)].index)):
        for item, before in zip(found_in(left), whole, strict=True):
            assert item.best == pytest.approx(before.best, rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(val_loss=-1.0), r"val_loss=-1 \(row 1\): expected a number above 0"),
        (lambda t: pd.concat([t, t[:1]]), "width=32: learning_rate 0.000244141 of seed 0 is there twice"),
        (lambda t: t[t["learning_rate"] < 2**-10.5], "width=32: 2 learning_rates with all seeds; expected 3 or more"),
        (lambda t: t.assign(val_loss=np.nan), "val_loss: no row has one"),
        (lambda t: t.drop(columns="seed"), "column='seed': not in the table"),
        (lambda t: t.assign(width="wide"), "width='wide'"),
    ],
)
def test_what_will_not_do_is_named(change, message: str) -> None:
    with pytest.raises(TableError, match=message):
        found_in(change(sweep(0.0)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = pd.concat([sweep(-0.8).assign(parametrization="standard"), sweep(0.0, draw=1).assign(parametrization="mup")])
    both.to_csv(tmp_path / "results.csv", index=False)
    words = ["optimum", str(tmp_path / "results.csv"), "--by", "width", "--split", "parametrization"]
    assert main([*words, "--json", "--out", str(tmp_path / "figures")]) == 0
    told = json.loads(capsys.readouterr().out)
    slopes = {row["split"]: row for row in told["drift"]}
    assert slopes["standard"]["low"] < -0.8 < slopes["standard"]["high"] < 0
    assert slopes["mup"]["low"] < 0 < slopes["mup"]["high"]
    assert len(told["optima"]) == 8 and {row["width"] for row in told["optima"]} == set(WIDTHS)
    for name in ("optimum.png", "optimum.pdf", "optimum.csv"):
        assert (tmp_path / "figures" / name).stat().st_size > 0
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "standard: best learning_rate ∝ width^(-0.7" in text and "through 4 optima" in text
    assert main([*words, "--where", "parametrization=mup", "--reach", "0"]) == 2
    assert "reach=0: expected 1 or more" in capsys.readouterr().err
