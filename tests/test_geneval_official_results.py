"""Result files of GenEval's scorer read back: rates as its own summary has them, with intervals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.geneval import rate_interval
from mmdit_jax.evaluation.official.classes import TASKS
from mmdit_jax.evaluation.official.metadata import Clause, Question
from mmdit_jax.evaluation.official.provenance import fingerprint_of_files
from mmdit_jax.evaluation.official.results import begin_results, line, read_results, table
from mmdit_jax.evaluation.official.rules import Found, Verdict
from mmdit_jax.evaluation.official.tree import image_path, write_image

COLUMNS = [
    "run_id", "name", "task", "n", "rate", "low", "high", "graded", "graded_low", "graded_high", "chance",
    "chance_graded",
]  # fmt: skip


def official(path: Path, passed: dict[str, np.ndarray], order: np.random.Generator) -> None:
    """A file as the public scorer writes it: pandas' JSON lines (slashes escaped), folders in any order."""
    rows, number = [], 0
    for task, array in passed.items():
        for prompt in array:
            metadata = {"tag": task, "include": [{"class": "cat", "count": 1}], "prompt": f"photo {number}"}
            for sample, correct in enumerate(prompt):
                rows.append(
                    {
                        "filename": f"images/{number:05d}/samples/{sample:05d}.png", "tag": task,
                        "prompt": metadata["prompt"], "correct": bool(correct), "reason": "",
                        "metadata": json.dumps(metadata), "details": "{}",
                    }
                )  # fmt: skip
            number += 1
    frame = pd.DataFrame([rows[i] for i in order.permutation(len(rows))])
    frame.to_json(path, orient="records", lines=True)


@pytest.fixture
def passed() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = dict(zip(TASKS, (80, 99, 80, 94, 100, 100), strict=True))
    return {
        task: rng.random((size, 4)) < rng.beta(1, 1, (size, 1)) * rate
        for (task, size), rate in zip(sizes.items(), (1, 0.9, 0.6, 0.9, 0.2, 0.0), strict=True)
    }


def test_rates_are_those_of_the_official_summary(passed: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    official(path, passed, np.random.default_rng(1))
    assert "\\/samples\\/" in path.read_text()
    rows = table(read_results(path), "d24", "id")
    assert [list(row) for row in rows] == [COLUMNS] * 7 and [row["task"] for row in rows] == [*TASKS, "overall"]
    summary = pd.read_json(path, orient="records", lines=True)  # as its summary_scores.py has it
    scores = summary.groupby("tag", sort=False)["correct"].mean()
    for row in rows[:-1]:
        assert row["rate"] == pytest.approx(scores[row["task"]]) and row["n"] == passed[row["task"]].size
        assert (row["low"], row["high"]) == pytest.approx(rate_interval(passed[row["task"]].astype(float)))
    assert rows[-1]["rate"] == pytest.approx(np.mean(scores)) and rows[-1]["n"] == 2212
    assert rows[-1]["low"] < rows[-1]["rate"] < rows[-1]["high"]
    assert {row["name"] for row in rows} == {"d24"} and {row["run_id"] for row in rows} == {"id"}


def test_intervals_know_that_images_of_a_prompt_are_alike(tmp_path: Path) -> None:
    """All four the same: as many images as prompts count."""
    alike = np.repeat(np.arange(100) % 2 == 0, 4).reshape(100, 4)
    mixed = np.tile([True, False, True, False], (100, 1))
    widths = {}
    for name, array in {"alike": alike, "mixed": mixed}.items():
        path = tmp_path / f"{name}.jsonl"
        official(path, {"position": array}, np.random.default_rng(0))
        row = table(read_results(path), name)[0]
        assert row["rate"] == 0.5
        widths[name] = row["high"] - row["low"]
    assert widths["alike"] / widths["mixed"] == pytest.approx(2, rel=0.03)


def test_the_command(passed: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two models, one of them in two parts; the CSV has the columns that a report reads."""
    whole, half = tmp_path / "whole.jsonl", tmp_path / "half.jsonl"
    official(whole, passed, np.random.default_rng(1))
    lines = whole.read_text().splitlines(keepends=True)
    whole.write_text("".join(lines[:1000]))
    half.write_text("".join(lines[1000:]))
    other = tmp_path / "other.jsonl"
    official(other, {"counting": ~passed["counting"]}, np.random.default_rng(2))
    out = tmp_path / "tables" / "geneval.csv"
    given = [f"d24={whole}", f"d24={half}", f"small one={other}"]
    assert main(["geneval", "read", *given, "--out", str(out)]) == 0
    shown, warned = capsys.readouterr()
    assert shown.split("\n")[0].split() == [
        "name", "images", "overall", "single", "two", "counting", "colours", "position", "attribution",
    ]  # fmt: skip
    assert "small one: no images of single_object" in warned
    frame = pd.read_csv(out)
    assert list(frame.columns) == COLUMNS and len(frame) == 7 + 2
    rate = frame.set_index(["name", "task"])["rate"]
    assert rate["d24", "counting"] + rate["small one", "counting"] == pytest.approx(1)
    assert main(["geneval", "read", *given, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 9
    assert main(["geneval", "read", str(other)]) == 0
    assert capsys.readouterr().out.split("\n")[1].startswith("other")


def test_names_of_models_and_prompts_that_nobody_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of one name in two folders are two models, to be told apart; a part that is missing is told."""
    paths = [tmp_path / folder / "results.jsonl" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        official(path, {"counting": np.ones((4, 1))}, np.random.default_rng(0))
    assert main(["geneval", "read", *map(str, paths)]) == 2
    told = f"results={paths[1]}: called 'results', as {paths[0]} is; give each as NAME={paths[1]}"
    assert told in capsys.readouterr().err
    assert main(["geneval", "read", f"={paths[0]}"]) == 2
    assert "no name before '='" in capsys.readouterr().err
    assert main(["geneval", "read", *(f"{path.parent.name}={path}" for path in paths)]) == 0
    assert "not there" not in capsys.readouterr().err
    kept = [text for text in paths[0].read_text().splitlines(keepends=True) if "00001" not in text]
    paths[0].write_text("".join(kept))
    assert main(["geneval", "read", str(paths[0])]) == 0
    assert "results: 1 of 4 prompts are not there (00001), and not in the score" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"tag": ' + "9" * 5000 + "}", "line 2: not JSON"),
        ('{"tag": "counting"}', "line 2: expected filename, tag and metadata"),
        ('{"filename": "a", "tag": "count", "metadata": "", "correct": true}', "line 2: tag='count'"),
        ('{"filename": "a", "tag": "counting", "metadata": "", "correct": 0.5}', "line 2: expected"),
    ],
)
def test_a_broken_line_is_told(broken: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    official(path, {"counting": np.ones((1, 1))}, np.random.default_rng(0))
    path.write_text(path.read_text() + broken + "\n")
    with pytest.raises(UserError, match=told):
        read_results(path)


def test_results_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    official(path, {"counting": np.ones((3, 2))}, np.random.default_rng(0))
    results = read_results(path)
    with pytest.raises(UserError, match="comes twice"):
        table([*results, results[0]], "d24")
    with pytest.raises(UserError, match=r"1 of 3 prompts lack images.*with 1 of 2"):
        table(results[1:], "d24")


def test_lines_of_ours_are_the_official_ones(tmp_path: Path) -> None:
    question = Question("single_object", (Clause("cat"),), "a photo of a cat")
    found = {"cat": [Found(np.float32([1, 2, 3, 4]), np.float32(0.5), None)]}
    path = tmp_path / "results.jsonl"
    image = image_path(tmp_path / "tree", 0, 0)
    write_image(image, np.zeros((4, 4, 3), np.uint8))
    path.write_text(line(image, question, Verdict(True, ""), found, fingerprint_of_files(image)))
    entry = json.loads(path.read_text())
    assert list(entry) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details", "fingerprint"]
    assert entry["filename"] == str(image) and entry["correct"] is True
    assert json.loads(entry["metadata"]) == question.to_dict()
    assert json.loads(entry["details"]) == {"cat": [[1, 2, 3, 4, 0.5]]}
    # A killed scorer leaves half a line: it is cut off, and the image scored again.
    path.write_text(path.read_text() + '{"filename": "tree/00000/sam')
    images = {"00000/samples/0000.png": image, "00000/samples/0001.png": tmp_path / "not scored yet"}
    assert begin_results(path, images) == {"00000/samples/0000.png"}
    assert path.read_text().endswith("}\n") and len(read_results(path)) == 1


def small_tree(folder: Path, name: str = "cat") -> Path:
    question = Question("single_object", (Clause(name),), f"a photo of a {name}")
    write_image(image_path(folder, 0, 0), np.zeros((4, 4, 3), np.uint8))
    (folder / "00000" / "metadata.jsonl").write_text(question.to_json())
    return folder


def test_what_the_scorer_refuses_before_it_loads_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, shapes = small_tree(tmp_path / "tree"), small_tree(tmp_path / "shapes", "circle")
    models = ["--detector", str(tmp_path / "none"), "--clip", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for words, told in (
        ([str(tmp_path / "nowhere")], "tree=.*nowhere: no folders 00000"),
        ([str(shapes)], "shapes: asks for circle: not among GenEval's 80"),
        ([str(tree), "--batch", "0"], "batch=0: expected 1 or more"),
        ([str(tree), "--threshold", "2"], "threshold=2: expected 0 to 1"),
        ([str(tree), "--part", "2/1"], "part='2/1'"),
        ([str(tree)], r"needs torch, transformers; pip install 'mmdit-jax\[judges\]'"),
    ):
        assert main(["geneval", "score", *words, *models]) == 2
        assert re.search(told, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "out").exists()
