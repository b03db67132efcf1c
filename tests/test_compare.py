"""Groups of runs against one of them: paired differences against scipy, curves, and ``mmdit compare``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from launch.cli import main
from scaling.architecture_section import comparison_finding
from scaling.errors import TableError
from scaling.groups import Place, compare, curves, holm, interval
from scaling.report import write_report

MEANS = {"mmdit": 0.10, "mmdit3": 0.099, "crossdit": 0.11, "uvit": 0.12, "dit": 0.13}


def results(noise: float = 0.002, draw: int = 0, means: dict[str, float] = MEANS) -> pd.DataFrame:
    rng = np.random.default_rng(draw)
    luck = rng.normal(size=4) * 0.02  # of a seed, the same in all: pairs cancel it
    return pd.DataFrame(
        [
            {
                "run_id": f"{name}-{seed}",
                "architecture": name,
                "seed": seed,
                "params": 1000,
                "steps": 800 + seed,
                "train_flops": 5e12,
                "val_loss": mean + luck[seed] + noise * rng.normal(),
                "geneval_graded": 1 - mean + 0.01 * rng.normal(),
            }
            for name, mean in means.items()
            for seed in range(4)
        ]
    )


def test_seeds_are_paired() -> None:
    table = results()
    places = compare(table, "architecture", "val_loss", "mmdit")
    assert [place.name for place in places] == ["mmdit3", "mmdit", "crossdit", "uvit", "dit"]
    wide = table.pivot(index="seed", columns="architecture", values="val_loss")
    others = [name for name in MEANS if name != "mmdit"]
    tests = {name: stats.ttest_rel(wide[name], wide["mmdit"]) for name in others}
    adjusted = holm({name: test.pvalue for name, test in tests.items()})
    for place in places:
        if place.name == "mmdit":
            assert (place.difference, place.low, place.high, place.p) == (0, 0, 0, 1)
            continue
        oracle = tests[place.name].confidence_interval(0.95)
        assert (place.low, place.high) == pytest.approx((oracle.low, oracle.high))
        assert place.p == pytest.approx(adjusted[place.name]) and place.p >= tests[place.name].pvalue
        assert place.high - place.low < 0.02  # the seeds' own spread, 0.02, is not in it
    assert compare(table.sample(frac=1, random_state=1), "architecture", "val_loss", "mmdit") == places


def test_holm_keeps_the_chance_of_any_false_difference() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})
    equal = dict.fromkeys(MEANS, 0.1)
    wrong = sum(
        any(place.p < 0.05 for place in compare(results(0.002, draw, equal), "architecture", "val_loss", "mmdit"))
        for draw in range(600)
    )
    assert wrong / 600 < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 600)


def test_no_spread_is_no_proof() -> None:
    """Scores that are counts often differ by the same in every pair: two such pairs settle nothing."""
    table = pd.DataFrame(
        [{"k": name, "seed": seed, "y": seed + gap} for name, gap in (("a", 0), ("b", 1), ("c", 0)) for seed in (0, 1)]
    )
    found = {place.name: place for place in compare(table, "k", "y", "a")}
    assert found["b"].difference == 1 and found["a"].p == 1
    assert all(np.isnan([found[k].low, found[k].high, found[k].p]).all() for k in "bc")
    assert holm({"a": 0.04, "b": float("nan")})["a"] == pytest.approx(0.08)


def test_order_is_by_pairs() -> None:
    """A group with runs of lucky seeds that the baseline has not does not lead for it."""
    rows = [("a", 0, 1.0), ("a", 1, 1.1), ("b", 0, 1.05), ("b", 1, 1.2), ("b", 2, 0.1)]
    places = compare(pd.DataFrame(rows, columns=["k", "seed", "y"]), "k", "y", "a")
    assert [place.name for place in places] == ["a", "b"] and places[1].mean < places[0].mean
    assert [place.pairs for place in places] == [2, 2]


def test_what_can_not_be_compared_is_named() -> None:
    table = results()
    with pytest.raises(TableError, match="baseline='unet': no such architecture; the table has crossdit, dit"):
        compare(table, "architecture", "val_loss", "unet")
    with pytest.raises(TableError, match="architecture='mmdit': seed 0 is there twice"):
        compare(pd.concat([table, table[:1]]), "architecture", "val_loss", "mmdit")
    with pytest.raises(TableError, match="architecture='dit': 1 seeds in common with mmdit; expected 2 or more"):
        compare(table[:-3], "architecture", "val_loss", "mmdit")
    with pytest.raises(TableError, match="architecture='mmdit': the only one in the table"):
        compare(table[:4], "architecture", "val_loss", "mmdit")
    with pytest.raises(TableError, match="score='seed': is what runs are grouped or paired by"):
        compare(table, "architecture", "seed", "mmdit")


def curve_rows(table: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {**row, "train_flops": flops, "val_loss": row["val_loss"] + 1e11 / flops}
        for row in table.to_dict("records")
        for flops in (1e12, 2e12, 5e12)
    ]
    return pd.DataFrame(rows)


def test_curves_have_the_interval_of_their_seeds() -> None:
    table = results()
    found = curves(curve_rows(table), "architecture", "train_flops", "val_loss")
    own = table[table["architecture"] == "uvit"]["val_loss"].to_numpy()
    curve = found["uvit"]
    np.testing.assert_array_equal(curve.x, [1e12, 2e12, 5e12])
    assert curve.mean[2] == pytest.approx(own.mean() + 0.02)
    assert (curve.low[2], curve.high[2]) == pytest.approx(tuple(end + 0.02 for end in interval(own)))
    assert len(curve.runs) == 4
    with pytest.raises(TableError, match="architecture='mmdit': its runs have different train_flops"):
        curves(curve_rows(table)[1:], "architecture", "train_flops", "val_loss")
    with pytest.raises(TableError, match="run_id=blank"):
        curves(curve_rows(table).assign(run_id=None), "architecture", "train_flops", "val_loss")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = results()
    table.to_csv(tmp_path / "results.csv", index=False)
    curve_rows(table).to_csv(tmp_path / "curves.csv", index=False)
    return tmp_path


def test_command_prints_a_table_and_draws_the_same_figure_again(folder: Path, capsys) -> None:
    words = ["compare", str(folder / "results.csv"), "--by", "architecture", "--baseline", "mmdit"]
    drawn = [*words, "--curves", str(folder / "curves.csv"), "--out"]
    assert main([*drawn, str(folder / "a")]) == 0
    head, *rows, how = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == [
        "architecture",
        "params",
        "train_flops",
        "val_loss",
        "val_loss:",
    ]  # steps vary: left out
    assert [row.split()[0] for row in rows] == ["mmdit3", "mmdit", "crossdit", "uvit", "dit"]
    assert rows[1].count("(baseline)") == 2 and "−0." in rows[0] and "<.001" in rows[4]
    assert how == (
        "differences to mmdit of the same seed, 4 pairs; Student's t, each interval alone; "
        "p by Holm's rule for the 4 of a score"
    )
    first = (folder / "a" / "compare.png").read_bytes()
    assert main([*drawn, str(folder / "b")]) == 0 and (folder / "b" / "compare.png").read_bytes() == first
    capsys.readouterr()
    assert main([*words, "--json", "--up", "geneval_graded"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["rows"]][-1] == "dit" and {row["score"] for row in found["rows"]} == {
        "geneval_graded"
    }
    written = pd.read_csv(folder / "a" / "compare.csv")
    again = written[written["score"] == "geneval_graded"]
    assert list(again["low"]) == pytest.approx([row["low"] for row in found["rows"]])


def changed(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    for name in ("results.csv", "curves.csv"):
        change(pd.read_csv(folder / name)).to_csv(folder / name, index=False)


@pytest.fixture
def study(folder: Path) -> Path:
    """The same as a study's folder, the UViT's runs of another depth."""
    known = {"formulation": "rf", "dataset": "scenes"}
    changed(
        folder,
        lambda table: table.assign(
            name=table["run_id"],
            step=table["train_flops"] / 1e12,
            depth=np.where(table["architecture"] == "uvit", 2, 3),
            **known,
        ),
    )
    return folder


def test_report_compares_architectures_and_tells_them_apart(study: Path) -> None:
    folder = study
    page = write_report(folder, title="Study", draws=20).read_text()
    assert (folder / "figures" / "architectures.png").stat().st_size > 1000
    assert "Architectures</h2>" in page and "Holm" in page and "uvit rf" in page
    assert "dit above it by 0.03" in page and "none is shown for mmdit3, which may" in page
    assert "ten times the compute" not in page and "no law, since all runs have one budget" in page
    changed(folder, lambda table: table[table["architecture"] == "mmdit"])
    page = write_report(folder, title="Study", draws=20).read_text()
    assert "Architectures</h2>" not in page and "mmdit rf" not in page


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda t: t.assign(architecture=t["architecture"].where(t["architecture"] != "mmdit")),
            "Holm",
        ),  # blank: mmdit
        (lambda t: t.drop(columns=["params"], errors="ignore"), "Holm"),
        (lambda t: t.assign(params=np.nan), "Holm"),
        (lambda t: t.assign(seed=0), "no comparison seed by seed"),
        (lambda t: t.drop(columns=["val_loss", "geneval_graded"], errors="ignore").assign(val_loss=np.nan), "neither"),
        (lambda t: t.iloc[1:] if t["step"].nunique() > 1 else t, "no curves: "),
    ],
)
def test_report_of_a_thin_study_says_what_is_missing(
    study: Path, change: Callable[[pd.DataFrame], pd.DataFrame], told: str
) -> None:
    changed(study, change)
    assert told in write_report(study, title="Study", draws=20).read_text()


def test_runs_of_different_lengths_are_told_at_shares_of_them(study: Path) -> None:
    steps = {"mmdit": 1.0, "dit": 1.5}
    changed(study, lambda t: t.assign(step=t["step"] * t["architecture"].map(steps).fillna(1.0)))
    page = write_report(study, title="Study", draws=20).read_text()
    assert "50% of its steps" in page


def test_finding_says_no_more_than_is_shown() -> None:
    baseline = Place("a", 1.0, 0.0, 0.0, 0.0, 1.0, 4)
    below = Place("b", 0.8, -0.2, -0.3, -0.1, 0.01, 4)
    unsure = Place("c", 1.1, 0.1, -0.1, 0.3, 0.3, 4)
    assert comparison_finding([below, baseline], "y", "a") == "y against a's: b below it by 0.2."
    assert (
        comparison_finding([below, baseline, unsure], "y", "a")
        == "y against a's: b below it by 0.2; none is shown for c, which may still be up to 0.3."
    )
    constant = Place("d", 1.2, 0.2, float("nan"), float("nan"), float("nan"), 2)
    assert comparison_finding([baseline, constant], "y", "a") == "y against a's: no difference is shown."
    assert (
        comparison_finding([baseline, unsure], "y", "a")
        == "y against a's: no difference is shown, which may still be up to 0.3."
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere.csv", "--by", "architecture", "--baseline", "dit"], "no such file"),
        (["results.csv", "--by", "architectur", "--baseline", "dit"], "did you mean 'architecture'?"),
        (["results.csv", "--by", "architecture", "--baseline", "dot"], "no such architecture"),
        (["results.csv", "--by", "architecture", "--baseline", "dit", "--out", "curves.csv"], "is a file"),
        (["results.csv", "--by", "architecture", "--baseline", "dit", "--curves", "curves.csv"], "with --out"),
        (
            ["results.csv", "--by", "architecture", "--baseline", "dit", "--up", "val_loss", "--down", "val_loss"],
            "twice",
        ),
        (["results.csv", "--by", "val_loss", "--baseline", "dit"], "is what runs are grouped or paired by"),
        (["curves.csv", "--by", "architecture", "--baseline", "dit"], "is there twice"),
    ],
)
def test_bad_input_is_one_line(folder: Path, monkeypatch, capsys, words: list[str], told: str) -> None:
    monkeypatch.chdir(folder)
    assert main(["compare", *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
