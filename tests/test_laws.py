"""Power laws: against scipy on the same objective, against known laws, and told honestly where data are thin."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from launch.fit import add_parsers
from scaling.descent import huber
from scaling.errors import TableError
from scaling.laws import fit_power_law
from scaling.tables import labels, numbers, read_table, require, where

TRUE = {"a": 30.0, "b": 0.15, "floor": 0.05}


def losses(compute: np.ndarray, noise: np.ndarray, floor: float = 0.0) -> np.ndarray:
    return (floor + TRUE["a"] * compute ** -TRUE["b"]) * np.exp(noise)


def ladder(sizes: int, seeds: int, decades: float = 3.0) -> np.ndarray:
    return np.repeat(np.logspace(15, 15 + decades, sizes), seeds)


@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("delta", [1e-3, 0.05])
def test_optimum_is_scipys(floor: bool, delta: float) -> None:
    rng = np.random.default_rng(4)
    compute = ladder(8, 3)
    loss = losses(compute, rng.normal(0, 0.02, 24), TRUE["floor"])
    law = fit_power_law(compute, loss, floor=floor, huber=delta, draws=0)

    def objective(theta: np.ndarray) -> float:
        fitted = theta[0] - theta[1] * (np.log(compute) - np.log(compute).mean())
        fitted = np.logaddexp(fitted, theta[2]) if floor else fitted
        return float(huber(fitted - np.log(loss), delta).sum())

    best = np.inf
    for slope in (0.1, 0.3):
        for share in (0.3, 0.8):
            start = [np.log(loss.mean() * (1 - share * floor)), slope, np.log(loss.min() * share)][: 3 if floor else 2]
            options = {"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000, "maxfev": 4000}
            best = min(best, optimize.minimize(objective, start, method="Nelder-Mead", options=options).fun)
    assert law.objective <= best * (1 + 1e-6)
    predicted = law.predict(compute)
    assert law.objective == pytest.approx(huber(np.log(predicted) - np.log(loss), delta).sum(), rel=1e-9)
    by_hand = law.params["floor"] + law.params["a"] * compute ** -law.params["b"]
    np.testing.assert_allclose(predicted, by_hand, rtol=1e-9)


def test_noiseless_laws_come_back() -> None:
    compute = ladder(8, 1)
    for floor in (0.0, 0.05):
        law = fit_power_law(compute, losses(compute, np.zeros(8), floor), floor=floor > 0, draws=50)
        assert law.params == pytest.approx({**TRUE, "floor": floor}, rel=1e-3, abs=1e-6)
        assert law.identifiable, law.reasons


def test_outliers_pull_less_than_least_squares() -> None:
    compute = ladder(8, 2)
    noise = np.random.default_rng(0).normal(0, 0.003, 16)
    noise[[0, 15]] = 0.4, -0.4
    loss = losses(compute, noise)
    squares = -np.polyfit(np.log(compute), np.log(loss), 1)[0]
    law = fit_power_law(compute, loss, draws=0)
    assert abs(law.params["b"] - TRUE["b"]) < 0.1 * abs(squares - TRUE["b"])
    dropped = fit_power_law(compute, loss, draws=0, drop_highest=1)
    assert dropped.dropped == (int(np.argmax(loss)),) and dropped.rows == 15


# Nominal 95 %: 60 studies give a standard error of 2.8 points, so these bounds are about three of them wide.
@pytest.mark.parametrize(
    ("runs", "points", "method"), [(24, 1, "groups"), (6, 1, "residuals"), (12, 6, "groups"), (3, 8, "residuals")]
)
def test_intervals_cover(runs: int, points: int, method: str) -> None:
    studies, hits, band_hits = 60, 0, 0
    for study in range(studies):
        rng = np.random.default_rng(study)
        group = np.repeat(np.arange(runs), points)
        start = np.tile(np.linspace(0, 1, points), runs) if points > 1 else np.zeros(runs)
        compute = 10 ** (14 + start + 2 * group / (runs - 1))
        noise = rng.normal(0, 0.003, runs * points) + rng.normal(0, 0.01, runs)[group]
        law = fit_power_law(compute, losses(compute, noise), groups=group, draws=150, seed=study)
        assert law.bootstrap == method
        hits += law.intervals["b"][0] <= TRUE["b"] <= law.intervals["b"][1]
        ahead = np.array([compute.max() * 3])
        low, high = law.band(ahead)
        band_hits += bool(low[0] <= losses(ahead, np.zeros(1))[0] <= high[0])
    assert hits / studies >= 0.86
    assert band_hits / studies >= 0.84


def test_three_sizes_do_not_show_a_floor() -> None:
    rng = np.random.default_rng(1)
    compute = ladder(3, 4, decades=1.5)
    law = fit_power_law(compute, losses(compute, rng.normal(0, 0.01, 12), 0.05), floor=True, draws=100)
    assert not law.identifiable and "3 different values" in law.reasons[0]
    flat = fit_power_law(ladder(6, 2), np.exp(rng.normal(0, 0.05, 12)), draws=200)
    assert not flat.identifiable and "holds zero" in flat.reasons[0]
    wide = ladder(8, 3, decades=4)
    assert fit_power_law(wide, losses(wide, rng.normal(0, 0.003, 24), 0.05), floor=True, draws=200).identifiable


def test_same_seed_same_interval_and_thin_data_are_refused() -> None:
    compute = ladder(5, 1)
    loss = losses(compute, np.random.default_rng(0).normal(0, 0.01, 5))
    one, two = (fit_power_law(compute, loss, seed=7, draws=50) for _ in range(2))
    assert one.to_json() == two.to_json()
    with pytest.raises(TableError, match="rows=2: too few"):
        fit_power_law(compute[:2], loss[:2])
    with pytest.raises(TableError, match="in every row"):
        fit_power_law(np.full(5, 1e15), loss)


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers())
    args = parser.parse_args(list(arguments))
    return args.run(args)


def test_fit_command_prints_one_object(tmp_path, capsys) -> None:
    compute = ladder(6, 2)
    table = pd.DataFrame({"c": compute, "L": losses(compute, np.random.default_rng(0).normal(0, 0.01, 12), 0.05)})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    shared = ["--law", "power", "--c", "c", "--loss", "L", "--bootstrap", "20", "--floor"]
    assert command("fit", str(tmp_path / "t.csv"), *shared, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"law", "params", "intervals", "objective", "rows", "identifiable"} <= set(found)
    assert set(found["params"]) == {"a", "b", "floor"} and found["rows"] == 12
    assert found["fixed"] == []
    assert command("fit", str(tmp_path / "t.csv"), *shared[:-1], "--json") == 0
    without = json.loads(capsys.readouterr().out)
    assert without["fixed"] == ["floor"] and without["params"]["floor"] == 0
    assert command("fit", str(tmp_path / "t.parquet"), *shared, "--json") == 0
    assert json.loads(capsys.readouterr().out) == found
    assert command("fit", str(tmp_path / "t.csv"), *shared) == 0
    assert "95 % interval" in capsys.readouterr().out


def test_bad_tables_are_told_in_one_line(tmp_path) -> None:
    def complaint(call) -> str:
        with pytest.raises(TableError) as caught:
            call()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in complaint(lambda: read_table(tmp_path / "none.csv"))
    (tmp_path / "empty.csv").write_text("")
    assert "empty file" in complaint(lambda: read_table(tmp_path / "empty.csv"))
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    assert "not a readable" in complaint(lambda: read_table(tmp_path / "broken.parquet"))
    (tmp_path / "t.csv").write_text("name,val_loss,c\nNA,0.1,1e12\nb,oops,0\nc,,3e12\n")
    table = read_table(tmp_path / "t.csv")
    assert "did you mean 'val_loss'" in complaint(lambda: require(table, ["vall_loss"]))
    assert complaint(lambda: numbers(table, "val_loss")).startswith("val_loss='oops' (row 2, and 1 more)")
    assert "c='0.0' (row 2): expected a finite number above 0" in complaint(lambda: numbers(table, "c", positive=True))
    assert complaint(lambda: where(table, ["name=z"])) == "where='name=z': no such row; the column holds 'NA', 'b', 'c'"
    assert list(where(table, ["name=b"])["c"]) == [0.0]
    counted = pd.DataFrame({"steps": [1, 5, 10], "name": ["a", "b", "a"]})
    for condition, kept in {"steps>=5": [5, 10], "steps<5": [1], "steps!=5.0": [1, 10], "name!=a": [5]}.items():
        assert list(where(counted, [condition])["steps"]) == kept, condition
    assert list(where(counted, ["steps>1", "name=a"])["steps"]) == [10]
    assert "is no number" in complaint(lambda: where(counted, ["steps>=many"]))
    assert list(labels(table, "name")) == ["NA", "b", "c"]  # a run may be called NA
