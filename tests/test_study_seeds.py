"""Seeds of a study beside each other in its tables, and the commands that a report advises for more of them."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import launch.study as study_module
from launch.arena.gallery import open_gallery
from launch.cli import main
from launch.execute import describe
from launch.places import CONFIG, RESULT, Places
from launch.predict import done_runs
from launch.seeds import has_seeds, with_seeds
from launch.studies import load_study
from mmdit_jax.config import Run, Study
from mmdit_jax.config_values import to_dict
from mmdit_jax.evaluation.evaluate import nothing_drawn
from mmdit_jax.evaluation.rewards.trees import find_trees
from mmdit_jax.files import write_json
from mmdit_jax.seed_names import names_of, seed_names
from scaling.analysis import Analysis
from scaling.first_screen import first_screen
from scaling.next_steps import Names
from scaling.study import load_study as tables_of


def finish(run: Run, places: Places, loss: float = 1.0) -> Path:
    """A run that is done, of which nothing was drawn."""
    folder = places.run_dir(run)
    folder.mkdir(parents=True)
    write_json(folder / CONFIG, {"run_id": run.run_id, "config": to_dict(run)})
    curve = [{"step": run.steps, "loss": loss, "levels": [loss] * 8}]
    known = {"val_loss": loss, "val_loss_levels": [loss] * 8, "curve": curve}
    write_json(folder / RESULT, {**describe(run), **known, **nothing_drawn()})
    return folder


@pytest.fixture
def tiny(tiny_study: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Places]:
    """The tiny study, two runs of seed 0, of which nothing is done; its folder is where commands run."""
    monkeypatch.chdir(tiny_study.parent)
    return load_study(tiny_study.name), Places(Path("studies"), "tiny", Path("studies/_data"))


def seeded(study: Study, seed: int) -> Sequence[Run]:
    return [replace(run, seed=seed) for run in study.runs]


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


@pytest.mark.parametrize("action", ["collect", "report"])
def test_without_a_finished_run_nothing_is_replaced(
    tiny: tuple[Study, Places], capsys: pytest.CaptureFixture[str], action: str
) -> None:
    study, places = tiny
    for _ in range(2):
        assert main(["study", action, "tiny_study.py", "--set", "seed=1"]) == 2
        told = capsys.readouterr().err
        assert told == "mmdit: study='tiny': no finished run under studies; `mmdit study run` first\n"
        if not places.study_dir.exists():  # then with a study that has tables
            for run in study.runs:
                finish(run, places)
            assert main(["study", "collect", "tiny_study.py"]) == 0
            before = tables(places.study_dir)
            assert len(before) > 3
            capsys.readouterr()
    assert tables(places.study_dir) == before


def test_seeds_stand_beside_each_other_whichever_is_asked_for(tiny: tuple[Study, Places]) -> None:
    study, places = tiny
    for seed in (2, 0, 1):
        for run in seeded(study, seed)[: 1 if seed == 1 else 2]:
            finish(run, places, 1 + seed)
    finish(replace(study.runs[0], seed=3, steps=20), places)  # a try
    finish(replace(study.runs[0], name="another", seed=3), places)
    (places.study_dir / "damaged").mkdir()
    (places.study_dir / "damaged" / CONFIG).write_text("{")
    (places.study_dir / "damaged" / RESULT).write_text("{}")
    found = []
    for options in ([], ["--set", "seed=1"], ["--set", "seed=2"]):
        assert main(["study", "collect", "tiny_study.py", *options]) == 0
        found.append(tables(places.study_dir))
    results, curves = (pd.read_csv(places.study_dir / f"{name}.csv") for name in ("results", "curves"))
    names = ["rf", "rf seed=1", "rf seed=2", "log normal", "log normal seed=2"]
    assert list(results["name"]) == list(curves["name"]) == names
    assert list(results["seed"]) == [0, 1, 2, 0, 2] and list(results["val_loss"]) == [1, 2, 3, 1, 3]
    assert all((places.study_dir / run_id / RESULT).exists() for run_id in results["run_id"])
    assert found[0] == found[2]
    # Of seed 1 there is a run that is not done: goodput has it, nothing else differs.
    assert {name for name, content in found[0].items() if content != found[1][name]} == {"goodput.csv"}
    assert main(["study", "collect", "tiny_study.py", "--set", "steps=20", "--set", "seed=3"]) == 0
    tried = pd.read_csv(places.study_dir / "results.csv")
    assert list(tried["name"]) == ["rf"] and list(tried["steps"]) == [20]  # mixed with nothing


def test_a_grid_with_seeds_of_its_own_counts_no_run_twice(tiny: tuple[Study, Places]) -> None:
    study, places = tiny
    first = study.runs[0]
    own = Study("tiny", tuple(replace(first, name=f"rf s{seed}", seed=seed) for seed in (0, 1)))
    for run in (*own.runs, *seeded(own, 2)):
        finish(run, places)
    assert [(run.name, run.seed) for run in with_seeds(own, places)] == [("rf s0", 0), ("rf s0", 2), ("rf s1", 1)]
    assert has_seeds(own) and not has_seeds(study)
    assert has_seeds(load_study("ladder_small")) and not has_seeds(load_study("quickstart"))


def test_names_that_seeds_share() -> None:
    assert seed_names([("a", 1), ("a", 0), ("b", 4)]) == ["a seed=1", "a", "b"]
    assert seed_names([("a", 0), ("a", 1), ("a seed=1", 0)]) == ["a", "a seed=1*", "a seed=1"]
    one, two = {"name": "a", "seed": 3, "steps": 5}, {"name": "a", "seed": 4, "steps": 5}
    assert names_of([one, two]) == ["a", "a seed=4"]
    assert names_of([one, {**two, "steps": 6}]) == names_of([one, one]) == ["a", "a"]


def test_battles_and_the_arena_call_them_as_tables_do(tiny: tuple[Study, Places]) -> None:
    study, places = tiny
    for run in (*study.runs, *seeded(study, 1)):
        tree = finish(run, places) / "samples" / "00000"
        (tree / "samples").mkdir(parents=True)
        (tree / "metadata.jsonl").write_text(json.dumps({"prompt": "a red circle"}))
        (tree / "samples" / "0000.png").write_bytes(b"")
    names = ["log normal", "log normal seed=1", "rf", "rf seed=1"]
    assert sorted(tree.name for tree in find_trees([places.study_dir])) == names
    assert list(open_gallery(places.study_dir).runs) == names
    finish(replace(study.runs[0], steps=20), places)
    (tree,) = (tree for tree in find_trees([places.study_dir]) if tree.name == "rf")
    assert places.run_dir(study.runs[0]) == tree.folder.parent  # the try has drawn nothing
    assert set(done_runs(with_seeds(study, places), places)["seed"]) == {0, 1}


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``write_report`` was called with, which writes next to nothing here."""
    calls: list[dict[str, Any]] = []

    def write(folder: Path, **told: Any) -> Path:
        calls.append(told)
        (folder / "tables").mkdir(exist_ok=True)
        (folder / "report.html").write_text("")
        return folder / "report.html"

    monkeypatch.setattr(study_module, "write_report", write)
    return calls


def test_a_report_is_made_again_where_a_seed_has_come(
    tiny: tuple[Study, Places], reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, places = tiny
    pushed: list[str] = []
    monkeypatch.setattr(study_module, "push_all", lambda folder: pushed.append(folder.name))
    for run in study.runs:
        finish(run, places)

    def made(*options: str) -> int:
        assert main(["study", "run", "tiny_study.py", *options]) == 0
        return len(reports)

    assert [made(), made()] == [1, 1]
    finish(seeded(study, 1)[0], places)
    assert [made(), made()] == [2, 2]
    assert main(["study", "report", "tiny_study.py", "--set", "seed=1"]) == 0
    finish(seeded(study, 1)[1], places)
    assert made("--set", "seed=1") == 4
    assert [call["missing"] for call in reports] == [[], [], ["log normal seed=1 (not begun)"], []]
    assert made() == 5  # the same tables, and other commands
    assert [call["options"] for call in reports] == ["", "", "--set seed=1", "--set seed=1", ""]
    assert {(call["file"], call["own_seeds"]) for call in reports} == {("tiny_study.py", False)}
    assert "tables" in pushed  # the page says to paste them


def test_commands_of_more_seeds() -> None:
    names = Names("my study.py", "s", "--root 'a b' --set seed=1 --set steps=20 --vae none")
    assert names.with_seed(4) == "mmdit study run 'my study.py' --root 'a b' --set steps=20 --vae none --set seed=4"
    assert Names("mine", "s").with_seed(1) == "mmdit study run mine --set seed=1"


@pytest.mark.parametrize("own", [False, True])
def test_where_the_grid_has_seeds_of_its_own_its_file_is_named(tiny: tuple[Study, Places], own: bool) -> None:
    study, places = tiny
    for seed in (0, 3):
        for i, run in enumerate(seeded(study, seed)):
            finish(run, places, 1 + i * (0.03 if seed else 0.01))
    assert main(["study", "collect", "tiny_study.py"]) == 0
    names = Names("my.py", str(places.study_dir), "--root r", "my.py", own)
    (step, *_) = first_screen(tables_of(places.study_dir), Analysis(), None, names).steps
    assert step.text.startswith("3 more seeds of rf and rf/lognorm(0.00,1.00): ±")
    if own:
        assert step.text.endswith(". Add them to my.py, then:") and step.command == "mmdit study run my.py --root r"
    else:
        run = "mmdit study run my.py --root r --set seed="
        assert step.command.splitlines() == [f"{run}{seed}" for seed in (4, 5, 6)]  # beside 0 and 3


def steps_of(report: Path) -> list[tuple[str, list[str]]]:
    """What a page advises: words, and commands."""
    lead = report.read_text(encoding="utf-8").split("What to run next")[1].split("</section>")[0]
    parts = re.findall(r"(?:<dd>|</code>|<br>)([^<]+)(?:<code>([^<]*)</code>)?", lead)
    return [(html.unescape(text), html.unescape(code).splitlines()) for text, code in parts]


@pytest.mark.slow
def test_the_advised_seed_is_trained_as_it_is_pasted(mmdit: Callable[..., Any]) -> None:
    """Of two recipes with a run each."""
    path = mmdit.study
    short = [
        ("steps=40", "steps=2"),
        ("validate_every=10", "validate_every=1"),
        ("prompts_per_task=2", "prompts_per_task=1"),
    ]
    text = path.read_text()
    for old, new in short:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    study, places = load_study(str(path)), Places(mmdit.folder / "studies", "tiny", mmdit.folder / "data")
    for i, run in enumerate(study.runs):
        finish(run, places, 1 + 0.01 * i)
    options = ["--root", str(places.root), "--data-dir", str(places.data)]
    assert main(["study", "report", str(path), *options]) == 0
    report = places.study_dir / "report.html"
    advised, commands = steps_of(report)[0]
    assert advised.startswith("Two more seeds of ") and [command.split()[-1] for command in commands] == [
        "seed=1",
        "seed=2",
    ]
    done = mmdit(*shlex.split(commands[0])[1:], "--quiet")
    assert done.returncode == 0 and "done already" not in done.stderr, done.stderr
    assert len(list(places.study_dir.glob("*/checkpoints"))) == 2
    results = pd.read_csv(places.study_dir / "results.csv").set_index("name")
    assert list(results["seed"]) == [0, 1, 0, 1] and list(results.index)[:2] == ["rf", "rf seed=1"]
    assert "rf seed=1" in report.read_text()
    met = pd.read_csv(places.study_dir / "battles.csv")
    assert set(met["left"]) | set(met["right"]) == {"rf seed=1", "log normal seed=1"}  # nothing of the others was drawn
    assert results.loc["rf seed=1", "elo"] + results.loc["log normal seed=1", "elo"] == pytest.approx(2000)
