"""Figure 8 in the report: panels that are there or say why not, and what pointing at a run tells; no name is markup."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_report import Page, study

from scaling.analysis import Analysis
from scaling.envelope import fit_frontier
from scaling.figure8 import contents, figure8, figure8_section
from scaling.interactive import MOST_IMAGES, MOST_OF_A_RUN, SIDE, run_facts, samples
from scaling.look import Look, run_mark
from scaling.page import Section, render
from scaling.score_correlations import score_correlations
from scaling.study import StudyTables, load_study

EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


def tree(run: Path, prompts: int = 8, size: int = 32) -> None:
    """Images in GenEval's layout, of two tasks."""
    for number in range(prompts):
        folder = run / "samples" / f"{number:05d}"
        (folder / "samples").mkdir(parents=True)
        told = {"tag": ("a", "b")[number % 2], "prompt": f"prompt {number}" if number else EVIL, "include": []}
        (folder / "metadata.jsonl").write_text(json.dumps(told))
        pixels = np.random.default_rng(number).integers(0, 255, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "samples" / "0000.png")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyTables, Analysis]:
    """Six runs with GenEval and CompBench proxies, one of them with a name that is markup; no battles."""
    folder = study(tmp_path_factory.mktemp("study") / "s")
    results = pd.read_csv(folder / "results.csv")
    rng = np.random.default_rng(0)
    results["compbench"] = 0.5 - results["val_loss"] / 2 + 0.01 * rng.normal(size=len(results))
    results.to_csv(folder / "results.csv", index=False)
    for name in ("results", "curves", "geneval"):
        frame = pd.read_csv(folder / f"{name}.csv")
        frame["name"] = frame["name"].replace("d3-rf", EVIL)
        frame.to_csv(folder / f"{name}.csv", index=False)
    (folder / "battles.csv").unlink()
    tables = load_study(folder)
    for run in tables.runs["run_id"].iloc[[0, 5]]:
        tree(folder / run)
    correlations, why = score_correlations(tables, {})
    kinds = tables.curves.groupby("formulation")
    fits = {str(kind): fit_frontier(part, draws=20) for kind, part in kinds}
    return folder, tables, Analysis(fits=fits, correlations=correlations, uncorrelated=why)


@pytest.fixture(scope="module")
def text(whole: tuple[Path, StudyTables, Analysis]) -> str:
    return page(*whole)


def page(folder: Path, tables: StudyTables, analysis: Analysis) -> str:
    look = Look.of(tables.runs, tables.results)
    part = figure8_section(tables, analysis, look, folder / "figures")
    return render("t", "", [part], facts=run_facts(tables, folder))


def test_panels_that_are_there_and_those_that_are_not(whole: tuple[Path, StudyTables, Analysis], text: str) -> None:
    folder, tables, analysis = whole
    assert text.count("<svg") == 5
    assert "<b>Loss against Elo</b>: no battles between three runs or more in battles.csv" in text
    for name in ("png", "pdf"):
        assert (folder / "figures" / f"figure8.{name}").stat().st_size > 10_000
    look = Look.of(tables.runs, tables.results)
    axes = figure8(contents(tables, analysis, look), look).axes
    assert [a.get_xlabel() for a in axes[:3]] == [
        "training steps",
        "training compute (FLOPs)",
        "training compute (FLOPs)",
    ]
    assert [len([line for line in a.lines if line.get_gid()]) for a in axes[:2]] == [6, 6]
    r = analysis.correlations["CompBench proxy"].found.pearson.r
    assert f"r = {r:.2f} [".replace("-", "−") in axes[5].get_title()
    legend = axes[2].get_legend()
    assert legend is not None and "C^{-" in legend.get_texts()[0].get_text()
    assert "battles.csv" in axes[4].texts[0].get_text()


def test_a_study_with_next_to_nothing_has_six_reasons(tmp_path: Path) -> None:
    study(tmp_path / "s")
    for name in ("curves", "geneval", "battles"):
        (tmp_path / "s" / f"{name}.csv").unlink()
    results = pd.read_csv(tmp_path / "s" / "results.csv")
    results[results["name"] == "d1-rf"].drop(columns=["geneval", "geneval_graded"]).to_csv(
        tmp_path / "s" / "results.csv", index=False
    )
    tables = load_study(tmp_path / "s")
    text = page(tmp_path / "s", tables, Analysis())
    assert "<svg" not in text and text.count('class="empty"') == 6 and "evaluation.compbench_prompts" in text


def test_every_run_can_be_reached_in_every_panel(whole: tuple[Path, StudyTables, Analysis], text: str) -> None:
    marks = {run_mark(name) for name in whole[1].runs["name"]}
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.S):
        found = re.findall(r'<g class="run" data-run="([^"]+)" tabindex="(-?\d)" role="button"', svg)
        assert {mark for mark, _ in found} <= marks and len(found) >= 3
        assert [reach for _, reach in found] == ["0"] + ["-1"] * (len(found) - 1)  # one stop of the tab key
    assert len(re.findall(r'class="run" data-run="' + run_mark("d1-rf"), text)) == 5
    assert 'id="run-' not in text  # ids are unique in a page


def test_names_and_prompts_are_never_markup(text: str) -> None:
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "<img src=x" not in text
    (island,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', text, flags=re.S)
    told = json.loads(island)
    assert told["runs"][run_mark(EVIL)]["name"] == EVIL and EVIL in told["prompts"]
    assert "innerHTML" not in text and "eval(" not in text
    assert not Page(text).open


def test_nothing_is_loaded(text: str) -> None:
    found = Page(text)
    assert all(address.startswith(("#", "data:")) for address in found.loads)
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert all(address.startswith("#") for address in re.findall(r'xlink:href="([^"]*)"', text))


def test_facts_are_the_tables(whole: tuple[Path, StudyTables, Analysis]) -> None:
    folder, tables, _ = whole
    told = run_facts(tables, folder)["runs"]
    row = tables.results[tables.results["name"] == "d2-lognorm"].iloc[0]
    facts = dict(told[run_mark("d2-lognorm")]["facts"])
    assert facts["validation loss"] == f"{row['val_loss']:.4f}" and facts["FLOPs"] == f"{row['train_flops']:.2e}"
    assert (facts["depth"], facts["seed"], facts["parameters"]) == ("2", "0", "8,000")
    curve = tables.curves[tables.curves["name"] == "d2-lognorm"].sort_values("step")
    assert told[run_mark("d2-lognorm")]["points"] == [
        [float(step), round(loss, 5)] for step, loss in zip(curve["step"], curve["val_loss"], strict=True)
    ]
    assert told[run_mark("d2-lognorm")]["samples"] == []


def test_samples_of_a_run(whole: tuple[Path, StudyTables, Analysis], tmp_path: Path) -> None:
    folder, tables, _ = whole
    first = folder / tables.runs["run_id"].iloc[0]
    found = samples(first / "samples", 12)
    assert [prompt for prompt, _ in found] == [EVIL, "prompt 2", "prompt 1", "prompt 3"]  # two of each task
    image = Image.open(io.BytesIO(base64.b64decode(found[1][1].split(",")[1])))
    assert np.array_equal(np.asarray(image), np.random.default_rng(2).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    tree(tmp_path / "large", prompts=2, size=512)
    ((_, address), *_) = samples(tmp_path / "large" / "samples", 1)
    assert address.startswith("data:image/jpeg") and len(address) < 8_000
    assert Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).size == (SIDE, SIDE)
    (tmp_path / "large" / "samples" / "00000" / "metadata.jsonl").write_text("{")  # being written
    assert len(samples(tmp_path / "large" / "samples", 5)) == 1
    assert samples(tmp_path / "none", 5) == [] and samples(first / "samples", 0) == []


def test_a_page_of_forty_runs_stays_small(tmp_path: Path) -> None:
    """The most images of noise, which nothing compresses: the bound on what pointing at runs adds to a page."""
    tree(tmp_path, prompts=24, size=32)
    one = sum(len(address) for _, address in samples(tmp_path / "samples", MOST_OF_A_RUN))
    per_image = one / len(samples(tmp_path / "samples", MOST_OF_A_RUN))
    assert MOST_IMAGES * per_image < 2e6


def test_without_facts_there_is_no_script() -> None:
    assert "<script" not in render("t", "", [Section("a", findings=["b"])])
