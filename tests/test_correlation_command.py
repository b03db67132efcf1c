"""``mmdit correlate``: one object a pair, a row a pair of many, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from launch.cli import main
from scaling.correlation_pairs import percent
from scaling.groups import holm


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    """Six depths × three budgets × two seeds, whose scores follow loss; one task that nobody passes."""
    rng = np.random.default_rng(0)
    depth, budget, seed = (index.reshape(-1) for index in np.indices((6, 3, 2)))
    steps = np.array([200, 450, 1000])[budget]
    flops = 1e9 * (depth + 2.0) ** 3 * steps
    loss = 2 * flops**-0.1 * np.exp(0.05 * rng.normal(size=36))
    frame = pd.DataFrame(
        {
            "run_id": [f"run{row}" for row in range(36)],
            "formulation": "rf",
            "depth": depth + 2,
            "seed": seed,
            "steps": steps,
            "train_flops": flops,
            "val_loss": loss,
            **{f"val_loss_{k}": loss * (1.5 - k / 8) * np.exp(0.1 * rng.normal(size=36)) for k in range(8)},
            "geneval": 0.0,
            "geneval_colors": 1 - loss + 0.02 * rng.normal(size=36),
            "geneval_position": 0.5 - loss / 2 + 0.1 * rng.normal(size=36),
            "elo": 1000 - 500 * loss + 20 * rng.normal(size=36),
        }
    )
    frame.loc[3, "elo"] = np.nan
    frame.to_csv(tmp_path / "t.csv", index=False)
    return frame


def told(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["correlate", str(tmp_path / "t.csv"), *options]) == 0
    return capsys.readouterr().out


def test_one_pair_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str], table: pd.DataFrame) -> None:
    options = ("--x", "val_loss", "--y", "geneval_colors")
    found = json.loads(told(tmp_path, capsys, *options, "--json"))
    assert found["x"] == "val_loss" and found["y"] == "geneval_colors" and found["rows"] == 36
    for kind, known in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        assert set(found[kind]) == {"r", "low", "high", "p", "interval", "p_method"}
        assert found[kind]["r"] == pytest.approx(known(table["val_loss"], table["geneval_colors"]).statistic)
        assert found[kind]["low"] < found[kind]["r"] < found[kind]["high"] < 0
    assert "partial" not in found and "bins" not in found
    text = told(tmp_path, capsys, *options)
    assert f"Kendall  τ = {found['kendall']['r']:+.3f}" in text and "36 rows" in text


def test_groups_given_and_bins(tmp_path: Path, capsys: pytest.CaptureFixture[str], table: pd.DataFrame) -> None:
    options = ("--x", "val_loss", "--y", "elo", "--group", "formulation,depth", "--group", "seed")
    options += ("--given", "train_flops", "--within", "seed", "--bins")
    found = json.loads(told(tmp_path, capsys, *options, "--json"))
    assert found["rows"] == 35 and found["left_out"] == 1  # one has no rating
    assert found["groups"] == {"formulation and depth": 6, "seed": 2}
    assert "formulation and depth (6) × seed (2)" in found["pearson"]["interval"]
    rows = table.dropna()
    held = np.stack([np.ones(35), np.log(rows["train_flops"]), rows["seed"]], axis=1)
    left = [rows[c] - held @ np.linalg.lstsq(held, rows[c], rcond=None)[0] for c in ("val_loss", "elo")]
    partial = found["partial"]
    assert partial["held"] == "given log train_flops, within seed"
    assert partial["pearson"]["r"] == pytest.approx(np.corrcoef(left)[0, 1], abs=1e-9)
    assert partial["left_of_x"] == pytest.approx(left[0].var(ddof=0) / rows["val_loss"].var(ddof=0), abs=1e-9)
    assert [row["name"] for row in found["bins"]["pearson"]] == [f"val_loss_{k}" for k in range(8)]
    assert set(found["bins"]["r2_left_out"]) == {"mean", "control", *(f"val_loss_{k}" for k in range(8))}
    text = told(tmp_path, capsys, *options)
    assert "given log train_flops, within seed" in text and "--within seed" in text
    assert "35 rows, 1 left out for a blank" in text
    assert ("Of 8 bins of t" in text) or ("No bin of t" in text)


def test_many_pairs_are_adjusted_and_what_is_skipped_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: pd.DataFrame
) -> None:
    options = ("--x", "val_loss", "--y", "geneval*,elo", "--group", "depth", "--given", "log(steps)")
    found = json.loads(told(tmp_path, capsys, *options, "--json"))
    assert [pair["y"] for pair in found["pairs"]] == ["geneval_colors", "geneval_position", "elo"]
    assert found["skipped"] == [
        {"x": "val_loss", "y": "geneval", "why": "geneval=0 in every row: expected a column that changes"}
    ]
    for place in (lambda pair: pair, lambda pair: pair["partial"]):
        for kind in ("pearson", "spearman", "kendall"):
            coefficients = {pair["y"]: place(pair)[kind] for pair in found["pairs"]}
            if kind == "kendall" and "held" in place(found["pairs"][0]):
                # It isn't 0 where loss has no effect given the steps.
                assert {(c["p"], c["p_holm"], c["p_method"]) for c in coefficients.values()} == {
                    (None, None, "none: descriptive")
                }
                assert all(-1 < c["low"] < c["high"] < 1 for c in coefficients.values())
                continue
            known = holm({name: c["p"] for name, c in coefficients.items()})
            assert {name: c["p_holm"] for name, c in coefficients.items()} == pytest.approx(known)
    assert found["pairs"][0]["partial"]["held"] == "given log steps"
    text = told(tmp_path, capsys, *options)
    assert "Holm's rule over 3 pairs" in text and "skipped val_loss, geneval: geneval=0 in every row" in text
    assert "given log steps:" in text and "Kendall given columns is descriptive" in text
    lines = told(tmp_path, capsys, "--x", "val_loss", "--y", "elo", "--given", "log(steps)").splitlines()
    assert lines[6].startswith("Kendall") and lines[6].endswith("no p: descriptive")
    one = json.loads(told(tmp_path, capsys, "--x", "val_loss", "--y", "el*", "--json"))
    assert len(one["pairs"]) == 1 and "p_holm" not in one["pairs"][0]["pearson"]  # a pattern gives a list


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--x", "val_loss", "--y", "gen_eval"), "did you mean 'geneval'"),
        (("--x", "val_loss", "--y", "geneval"), "geneval=0 in every row"),
        (("--x", "val_loss", "--y", "clip*"), "column='clip*': like no column of numbers"),
        (("--x", "val_loss", "--y", "elo", "--group", "formulation"), "group='formulation': 'rf' in every row"),
        (("--x", "val_loss", "--y", "elo", "--group", "ladder"), "column='ladder': not in the table"),
        (("--x", "val_loss", "--y", "elo", "--given", "geneval"), "given='geneval': 0 in every row"),
        (("--x", "val_loss", "--y", "elo", "--given", "log(seed)"), "given='log(seed)': the column holds 0"),
        (("--x", "val_loss", "--y", "elo", "--given", "val_loss"), "val_loss: is held fixed"),
        (("--x", "val_loss", "--y", "elo", "--given-degree", "2"), "given-degree=2: of nothing"),
        (("--x", "elo", "--y", "val_loss", "--bins"), "has no elo_0, elo_1"),
        (("--x", "elo", "--y", "elo"), "the same as y"),
        (("--x", "run_id", "--y", "elo"), "run_id='run0' (row 1, and 35 more): expected a finite number"),
    ],
)
def test_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    table: pd.DataFrame,
    options: tuple[str, ...],
    expected: str,
) -> None:
    assert main(["correlate", str(tmp_path / "t.csv"), *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and expected in err and len(err.splitlines()) == 1


def test_a_bin_that_no_row_has_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: pd.DataFrame
) -> None:
    table.assign(val_loss_2=np.nan).to_csv(tmp_path / "t.csv", index=False)
    assert main(["correlate", str(tmp_path / "t.csv"), "--x", "val_loss", "--y", "elo", "--bins"]) == 2
    assert "(val_loss_2 has 0 of 36)" in capsys.readouterr().err


def test_shares_are_told_in_plain_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: pd.DataFrame
) -> None:
    """100 %, where what is held fixed takes nothing away, and not 1e+02 %."""
    assert [percent(share) for share in (1.0, 0.997, 0.0321, 0.0, 1.234e-5)] == [
        "100 %", "100 %", "3.2 %", "0 %", "0.0012 %",
    ]  # fmt: skip
    rng = np.random.default_rng(1)
    table.assign(val_loss=rng.normal(size=36)).to_csv(tmp_path / "t.csv", index=False)
    text = told(tmp_path, capsys, "--x", "val_loss", "--y", "elo", "--given", "seed")
    assert " % of val_loss's variance is left" in text and "e+" not in text


def test_no_p_is_told_as_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three groups of unequal size in full agreement; of another score p is Holm's over both."""
    frame = pd.DataFrame(
        {"depth": list("aabbbc"), "loss": [9, 8, 7, 6, 5, 4], "score": range(6), "z": [2, 4, 1, 3, 0, 2]}
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    group = ("--x", "loss", "--group", "depth", "--y")
    lines = told(tmp_path, capsys, *group, "score").splitlines()
    assert [line.endswith("no p") for line in lines[:3]] == [True] * 3
    found = json.loads(told(tmp_path, capsys, *group, "score,z", "--json"))["pairs"]
    assert found[0]["spearman"]["p"] is None and found[0]["spearman"]["p_holm"] is None
    assert found[1]["spearman"]["p_holm"] == pytest.approx(min(1, 2 * found[1]["spearman"]["p"]))
    row, other = told(tmp_path, capsys, *group, "score,z").splitlines()[1:3]
    assert row.split()[-1] == "–" and "nan" not in row and other.split()[-1] != "–"


def test_few_rows_are_called_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame({"a": [1, 2, 4, 3], "b": [4, 2, 1, 0], "c": [2, 3, 5, 9]}).to_csv(tmp_path / "t.csv", index=False)
    text = told(tmp_path, capsys, "--x", "a", "--y", "b", "--given", "c")
    assert "none: fewer than 5 rows" in text and "groups" not in text
