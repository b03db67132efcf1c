"""mmdit fit with approaches 1 and 2, ladders, and forms compared: what is printed is what the functions find."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import ladder_small
from launch import cli
from launch.collect import CURVE_COLUMNS, curve_rows
from launch.doubts import RECIPE
from scaling.errors import TableError


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


def test_envelope_of_the_curves_that_studies_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for run in ladder_small.study().runs:
        steps = [run.steps * part // 8 for part in range(1, 9)]
        losses = [float(loss(np.array(run.model.num_params()), np.array(run.batch * step))) for step in steps]
        curve = [{"step": step, "loss": value, "levels": []} for step, value in zip(steps, losses, strict=True)]
        rows += curve_rows(run, {"name": run.name, "curve": curve})
    pd.DataFrame(rows).to_csv(tmp_path / "curves.csv", index=False)
    assert set(RECIPE) < set(CURVE_COLUMNS)  # what tells that runs of several recipes share a law
    found = told(capsys, str(tmp_path / "curves.csv"), "--law", "envelope", "--group", "run_id")
    assert "N_opt = k_n·C^a" in found and "share a law" not in found


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


def test_ladders_of_few_runs_are_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three runs a ladder fix no exponent: neither it nor the scale far from the rows has an end, in text and JSON."""
    n = np.tile([1e5, 1e6, 1e7], 2)
    d = n * np.repeat([20.0, 2.0], 3)
    noise = np.exp(np.array([0.3, -0.4, 0.2, -0.3, 0.4, -0.2]))
    frame = pd.DataFrame({"params": n, "images": d, "train_flops": 6 * n * d, "val_loss": loss(n, d) * noise})
    frame.to_csv(tmp_path / "few.csv", index=False)
    text = told(capsys, str(tmp_path / "few.csv"), "--law", "ladders", "--at", "C=1e16")
    assert "[open, open]" in text and "inf" not in text and "e+9" not in text
    for ladder in json.loads(told(capsys, str(tmp_path / "few.csv"), "--law", "ladders", "--json"))["ladders"]:
        assert ladder["law"]["intervals"]["b"] == [None, None]
        assert ladder["law"]["intervals"]["a"] == [0, None]


def test_compare(grids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (str(grids / "isoflop.csv"), "--law", "joint", "--compare")
    found = json.loads(told(capsys, *words, "--json"))
    assert found["law"] == "joint" and found["compare"]["rows"][0]["name"].startswith("joint")
    text = told(capsys, *words)
    assert "foretold from the rest" in text and "joint, floor" in text


def test_several_losses_are_refused(grids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["fit", str(grids / "isoflop.csv"), "--law", "isoflop", "--loss", "val_loss,images"])
    assert code == 2 and "expected one column" in capsys.readouterr().err


def test_the_highest_losses_are_dropped(grids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As if they had not been in the table, whichever approach."""
    for name, law, count in (("isoflop", "isoflop", 3), ("ladders", "ladders", 3), ("curves", "envelope", 120)):
        table = pd.read_csv(grids / f"{name}.csv")
        highest = table["val_loss"].nlargest(count)
        table.drop(highest.index).to_csv(grids / "fewer.csv", index=False)
        words = ("--law", law, "--json")
        dropped = json.loads(told(capsys, str(grids / f"{name}.csv"), *words, "--drop-highest", str(count)))
        fewer = json.loads(told(capsys, str(grids / "fewer.csv"), *words))
        whole = json.loads(told(capsys, str(grids / f"{name}.csv"), *words))
        assert dropped.pop("dropped") == sorted(highest.index) and fewer.pop("dropped") == [] == whole.pop("dropped")
        assert dropped == fewer != whole
    text = told(capsys, str(grids / "isoflop.csv"), "--law", "isoflop", "--drop-highest", "1")
    assert "left out as outliers (highest losses): rows" in text


def test_forms_are_compared_without_the_highest(grids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, np.ndarray]] = []

    def asked(columns: dict[str, np.ndarray], **_: object) -> None:
        given.append(columns)
        raise TableError("enough")

    monkeypatch.setattr("scaling.hold_out.leave_largest_out", asked)
    words = ["fit", str(grids / "isoflop.csv"), "--compare", "--bootstrap", "0", "--drop-highest", "4"]
    assert cli.main(words) == 2
    table = pd.read_csv(grids / "isoflop.csv")
    kept = table.drop(table["val_loss"].nlargest(4).index)
    for name, column in (("loss", "val_loss"), ("N", "params"), ("D", "images"), ("C", "train_flops")):
        np.testing.assert_array_equal(given[0][name], kept[column])


@pytest.mark.parametrize(
    ("words", "told_of"),
    [
        (("isoflop", "--out", "figures"), "out: --law isoflop takes no --out"),
        (("isoflop", "--compare"), "compare: "),
        (("isoflop", "--at", "C=1e16"), "at: "),
        (("isoflop", "--huber", "0.1"), "huber: "),
        (("isoflop", "--floor"), "floor: "),
        (("isoflop", "--tolerance", "0"), "tolerance=0: expected"),
        (("isoflop", "--d", "tokens", "--tokens-per-image", "4"), "'tokens': not in the table"),
        (("isoflop", "--drop-highest", "35"), "of 35 losses none is left"),
        (("isoflop", "--drop-highest", "-1"), "expected 0 or more"),
        (("envelope", "--tolerance", "0.1"), "tolerance: "),
        (("envelope", "--starts", "10"), "starts: "),
        (("ladders", "--resample", "runs"), "resample: "),
        (("ladders", "--at", "N=1e7,D=1e6"), "C is missing"),
        (("power", "--tolerance", "0.1"), "--law power takes no --tolerance"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    grids: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told_of: str
) -> None:
    code = cli.main(["fit", str(grids / "isoflop.csv"), "--law", *words])
    out, err = capsys.readouterr()
    assert code == 2 and told_of in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize("count", ["0", "nan", "-1", "inf", "few"])
def test_tokens_are_counted_by_a_number_above_0(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["fit", "t.csv", "--tokens-per-image", count])
    assert caught.value.code == 2 and f"'{count}': expected a number above 0" in capsys.readouterr().err


def test_doubts_of_the_rows(grids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recipes that share a law, runs that are there twice, intervals by a handful of resamples."""
    table = pd.read_csv(grids / "isoflop.csv")
    table.assign(formulation=["rf", "eps"] * 17 + ["rf"]).to_csv(grids / "mixed.csv", index=False)
    pd.concat([table, table[:2]]).to_csv(grids / "twice.csv", index=False)
    for law in ("power", "isoflop"):
        assert "formulation (rf, eps) share a law" in told(capsys, str(grids / "mixed.csv"), "--law", law)
        found = json.loads(told(capsys, str(grids / "mixed.csv"), "--law", law, "--json"))
        assert any("formulation (rf, eps) share a law" in doubt for doubt in found["doubts"])
        assert "share a law" not in told(capsys, str(grids / "isoflop.csv"), "--law", law)
        assert "2 rows repeat another's" in told(capsys, str(grids / "twice.csv"), "--law", law)
        words = ["fit", str(grids / "isoflop.csv"), "--law", law, "--group", "train_flops"]
        assert cli.main([*words, "--bootstrap", "3"]) == 0
        assert "3 bootstraps: what they tell" in capsys.readouterr().out
        assert cli.main([*words, "--bootstrap", "0"]) == 0
        assert "bootstraps:" not in capsys.readouterr().out


def test_what_was_not_fitted_has_no_number(grids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "floor = none fitted" in told(capsys, str(grids / "isoflop.csv"), "--law", "power")
    assert "none fitted" not in told(capsys, str(grids / "isoflop.csv"), "--law", "power", "--floor")
    assert "E = none fitted" in told(capsys, str(grids / "isoflop.csv"), "--law", "parameters", "--no-floor")
    table = pd.read_csv(grids / "isoflop.csv")
    table.assign(val_loss=table["params"] ** -0.1).to_csv(grids / "falling.csv", index=False)
    text = told(capsys, str(grids / "falling.csv"), "--law", "isoflop")
    assert "through 0 optima" in text and "0 budgets with a vertex" in text and "nan" not in text
    found = json.loads(told(capsys, str(grids / "falling.csv"), "--law", "isoflop", "--json"))
    assert found["allocation"]["points"] == 0 and found["allocation"]["params"]["a"] is None
