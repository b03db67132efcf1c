"""mmdit predict: what is refused before anything is written down, and what is told of what is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import ladder_small
from launch import cli
from launch.execute import describe
from launch.places import RESULT
from scaling.predictions import FILE

TOP = "d7 1000 steps s0"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """The ladder below its top, by a known law with 0.4 % of noise."""
    rng = np.random.default_rng(0)
    rows = []
    for run in ladder_small.study().runs[:-6]:
        row = describe(run)
        loss = (0.05 + 3 * row["params"] ** -0.3 + 20 * row["images"] ** -0.5) * np.exp(rng.normal(0, 0.004))
        rows.append({**row, "val_loss": loss, "val_loss_3": loss / 2})
    return pd.DataFrame(rows)


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["predict", "ladder_small", *words])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code, out, err = command(capsys, *words)
    assert code == 2 and not out and err.count("\n") == 1, err
    return err


def saved(table: pd.DataFrame, folder: Path) -> tuple[str, ...]:
    table.to_csv(folder / "t.csv", index=False)
    return "--root", str(folder), "--from", str(folder / "t.csv"), "--law", "data"


def test_a_row_of_the_runs_name_is_the_run(
    table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables from elsewhere may have no ids, or another id of it, as after a setting that moves no loss."""
    top = {**table.iloc[-1].to_dict(), "name": TOP, "run_id": "d7-1000-steps-s0-0123456789"}
    both = pd.concat([table, pd.DataFrame([top])])
    for rows in (both.drop(columns="run_id"), both):
        words = (*saved(rows, tmp_path), "--run", TOP)
        err = refused(capsys, *words)
        assert "is among the rows" in err and f"--where 'name!={TOP}'" in err
    assert not (tmp_path / "ladder_small" / FILE).exists()
    code, out, _ = command(capsys, *words, "--where", f"name!={TOP}", "--json")
    (record,) = json.loads(out)["records"]
    assert code == 0 and TOP not in record["fitted_to"] and record["rows"] == 30


def test_the_same_rows_in_another_order_foretell_no_second_time(
    table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--run", TOP)
    assert command(capsys, *saved(table, tmp_path), *words)[0] == 0
    shuffled = saved(table.sample(frac=1, random_state=1), tmp_path)
    assert "never replaced" in refused(capsys, *shuffled, *words, "--huber", "0.1")
    assert command(capsys, *saved(table[1:], tmp_path), *words)[0] == 0


def test_doubts_are_told_and_written_down(
    table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand: 1000 steps of 64 are 64,000 images, 6.4 passes over 10,000 and twice the rows' 32,000."""
    table = table.assign(formulation=["rf/lognorm(0.00,1.00)", "rf"] * 15)
    table = pd.concat([table, table[:1]])
    low = "d7 200 steps s0"  # 12,800 images: within, and 1.28 passes where the rows' runs made 3.2
    words = ("--set", "batch=64", "--set", "data.examples=10000", "--run", TOP, "--run", low)
    code, out, _ = command(capsys, *saved(table, tmp_path), *words)
    assert code == 0
    told = [line for line in out.splitlines() if line.startswith("before you rely on it: ")]
    (twice,) = (line for line in told if "1 rows repeat another's images, val_loss" in line)
    (mixed,) = (line for line in told if "formulation" in line)
    (batch,) = (line for line in told if "batch=64" in line)
    (far,) = (line for line in told if "D=64000 is 2 times beyond" in line)
    (passes,) = (line for line in told if "6.4 passes over the 10,000" in line)
    assert "--where" in mixed and "32" in batch and "at most 3.2" in passes
    assert all(f"it: {TOP}: " in line for line in (far, passes))  # of the other run they are not true
    assert not any(TOP in line for line in (twice, mixed, batch)) and len(told) == 5
    records = [json.loads(line) for line in (tmp_path / "ladder_small" / FILE).read_text().splitlines()]
    assert [len(record["doubts"]) for record in records] == [5, 3]


def test_a_run_like_the_rows_leaves_no_doubt(
    table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = command(capsys, *saved(table, tmp_path), "--run", TOP)
    assert code == 0 and "before you rely" not in out


def test_what_is_not_identifiable_is_told(
    table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sizes tell no exponent and no floor."""
    words = (*saved(table[table["depth"] > 4], tmp_path), "--law", "parameters", "--run", TOP)
    code, out, _ = command(capsys, *words)
    (record,) = (json.loads(line) for line in (tmp_path / "ladder_small" / FILE).read_text().splitlines())
    assert code == 0 and record["reasons"]
    assert [line for line in out.splitlines() if line.startswith("not identifiable: ")] == [
        f"not identifiable: {reason}" for reason in record["reasons"]
    ]
    assert "N=6.98549e+06 is 1.59 times beyond" in out


def test_losses_and_floors_are_told_apart(
    table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*saved(table, tmp_path), "--run", TOP)
    assert "loss" not in command(capsys, *words)[1].splitlines()[0].split()
    assert command(capsys, *words, "--no-floor")[0] == 0
    code, out, _ = command(capsys, *words, "--loss", "val_loss_3")
    assert code == 0 and out.splitlines()[0].split()[:3] == ["run", "loss", "law"]  # though all of these are of bin 3
    code, out, _ = command(capsys, "--root", str(tmp_path))
    head, *lines = out.splitlines()
    assert head.split()[:3] == ["run", "loss", "law"]
    cells = [line.removeprefix(TOP).split("  2")[0].split(maxsplit=1) for line in lines]
    assert cells == [["val_loss", "data"], ["val_loss", "data, no floor"], ["val_loss_3", "data"]]
    # What came is of each loss its own.
    top = ladder_small.study().find(TOP)
    (tmp_path / "ladder_small" / top.run_id).mkdir()
    levels = [0.1, 0.2, 0.3, 0.4]
    result = tmp_path / "ladder_small" / top.run_id / RESULT
    result.write_text(json.dumps({"val_loss": 0.25, "val_loss_levels": levels}))
    told = json.loads(command(capsys, "--root", str(tmp_path), "--json")[1])["predictions"]
    assert [row["actual"] for row in told] == [0.25, 0.25, 0.4]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--law", "joint"), "--law: nothing is fitted without --run"),
        (("--from", "t.csv", "--where", "depth=3"), "--from, --where: nothing is fitted"),
        (("--loss", "val_loss_3", "--tokens-per-image", "64"), "--tokens-per-image, --loss: nothing is fitted"),
        (("--no-floor",), "--floor: nothing is fitted"),
        (("--drop-highest", "1"), "--drop-highest: nothing is fitted"),
    ],
)
def test_options_of_a_fit_without_a_run_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert told in refused(capsys, "--root", str(tmp_path), *words)


def test_a_column_that_no_run_has(table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has it: what lacks it is the run."""
    renamed = table.rename(columns={"params": "Model Size", "images": "Tokens", "train_flops": "FLOP"})
    words = saved(renamed, tmp_path)[:-2]
    given = ("--n", "Model Size", "--d", "images", "--run", TOP)
    err = refused(capsys, *words, *given)
    assert "n='Model Size'" in err and "not in the table" not in err
    assert all(name in err for name in ("params", "images", "train_flops", "rename"))
    assert "c='FLOP'" in refused(capsys, *words, "--law", "power", "--c", "FLOP", "--run", TOP)
