"""``mmdit battles``: from trees of images to ratings, twice, killed, added to; and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.cli import main
from mmdit_jax.data.scenes import examples, prompts
from mmdit_jax.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED
from mmdit_jax.evaluation.battles import battles
from mmdit_jax.evaluation.geneval import write_geneval_tree
from mmdit_jax.evaluation.judge import packaged_judge

ASKED = prompts(3)
SAMPLES = 2


def write_run(folder: Path, seed: int) -> np.ndarray:
    """A tree of random scenes, uint8 [P, K, 32, 32, 3]."""
    images, _ = examples(seed, "validation", 0, len(ASKED) * SAMPLES, 32)
    images = np.asarray(images).reshape(len(ASKED), SAMPLES, 32, 32, 3)
    if images.dtype != np.uint8:
        images = np.round(images * 255).astype(np.uint8)
    write_geneval_tree(images, ASKED, folder)
    return images


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    root = tmp_path_factory.mktemp("trees")
    return {name: (root / name, write_run(root / name, seed)) for seed, name in enumerate(("low", "mid", "top"))}


def outcomes(rows: Iterable[Mapping[str, Any]]) -> Counter[tuple[Any, ...]]:
    """Who won what, whoever stood where."""
    counted: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        winner = None if row["outcome"] == "tie" else row[row["outcome"]]
        counted[row["judge"], row["prompt"], str(row["seed"]), frozenset((row["left"], row["right"])), winner] += 1
    return counted


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def told(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


BOTH = ("--judge", "scorer", "--judge", "contrastive", "--quiet")


def test_rows_are_those_of_a_study(trees: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same judges over arrays in memory, as a study's own battles.csv is made."""
    folders = [folder for folder, _ in trees.values()]
    out = tmp_path / "battles.csv"
    result = told(capsys, "battles", *folders, *BOTH, "--out", out)
    expected = battles({name: images for name, (_, images) in trees.items()}, ASKED, packaged_judge())
    assert outcomes(read(out)) == outcomes(map(vars, expected))
    assert result["battles"] == len(expected) == 2 * 3 * len(ASKED) * SAMPLES
    assert [judge["scored"] for judge in result["judges"]] == [3 * len(ASKED) * SAMPLES] * 2
    ratings = told(capsys, "elo", out, "--where", "judge=scorer", "--bootstrap", "0")["ratings"]
    assert {rating["name"] for rating in ratings} == set(trees)


def test_another_run_is_added_and_votes_are_kept(trees: Any, tmp_path: Path, capsys: Any) -> None:
    (low, _), (mid, _), (top, _) = trees.values()
    out = tmp_path / "battles.csv"
    human = "a vote,low,mid,left,aesthetics,human,0,ann\n"
    out.write_text("prompt,left,right,outcome,question,judge,seed,voter\n" + human)
    first = told(capsys, "battles", low, mid, *BOTH, "--out", out, "--append")
    each = len(ASKED) * SAMPLES
    assert (first["kept"], first["battles"]) == (1, 2 * each)
    second = told(capsys, "battles", low, mid, top, *BOTH, "--out", out, "--append")
    assert [(judge["scored"], judge["known"]) for judge in second["judges"]] == [(each, 2 * each)] * 2
    assert (second["kept"], second["battles"]) == (1, 6 * each)
    assert out.read_text().splitlines()[1] + "\n" == human and len(read(out)) == 1 + 6 * each
    fresh = tmp_path / "fresh.csv"
    told(capsys, "battles", low, mid, top, *BOTH, "--out", fresh)
    assert outcomes(read(fresh)) == outcomes(read(out)[1:])
    assert main(["battles", str(low), str(mid), *BOTH, "--out", str(out)]) == EXIT_BAD_INPUT
    assert "is there already; --append" in capsys.readouterr().err


SLOW = """
import sys, time
from launch.cli import main
from mmdit_jax.evaluation.rewards import local
graded, local._BATCH = local._graded, 2
def slowly(images, pictures):
    time.sleep(0.1)
    return graded(images, pictures)
local._graded = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_while_it_scores(number: int, trees: Any, tmp_path: Path, capsys: Any) -> None:
    words = ["battles", *(str(folder) for folder, _ in trees.values()), "--judge", "scorer", "--out"]
    out, scores = tmp_path / "battles.csv", tmp_path / "battles_scores.csv"
    command = [sys.executable, "-c", SLOW, *words, str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if scores.exists() and len(scores.read_bytes().splitlines()) > 8:
            os.kill(process.pid, number)
            break
        time.sleep(0.01)
    _, error = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert process.returncode == EXIT_PREEMPTED and "images scored by scorer and kept in" in error
    else:
        assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    (judge,) = told(capsys, *words, out)["judges"]
    assert judge["known"] >= 8 and judge["scored"] == 3 * len(ASKED) * SAMPLES - judge["known"]
    told(capsys, *words, tmp_path / "untouched.csv")
    assert out.read_bytes() == (tmp_path / "untouched.csv").read_bytes()
    assert scores.read_bytes() == (tmp_path / "untouched_scores.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--judge", "pickscore=/no/such/folder"), "pickscore=/no/such/folder: no"),
        (
            ("--judge", "hpsv2=/no/such/folder"),
            "hpsv2=/no/such/folder: no such folder; expected HPS_v2.1",
        ),
        (("--judge", "imagereward=/no/such"), "imagereward=/no/such: no such folder; expected ImageReward.pt"),
        (("--judge", "scorer", "--tie", "0.5"), "tie=0.5: expected 0 or more, below 0.5"),
        (("--judge", "scorer", "--batch", "0"), "batch=0: expected 1 or more"),
        (("--judge", "scorer", "--judge", "scorer"), "judge=scorer: given twice"),
        (("--judge", "scorer", "--names", "a,b,c"), "names=a,b,c: 3 for 2 trees"),
    ],
)
def test_refused_in_a_line(words: tuple[str, ...], line: str, trees: Any, tmp_path: Path, capsys: Any) -> None:
    folders = [str(folder) for folder, _ in list(trees.values())[:2]]
    assert main(["battles", *folders, *words, "--out", str(tmp_path / "b.csv")]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and (line in error or "pip install 'mmdit-jax[judges]'" in error)


def test_what_trees_do_not_share(trees: Any, tmp_path: Path, capsys: Any) -> None:
    """Only images with a partner are scored; a prompt of another kind is none of the scorer's."""
    folder = tmp_path / "other"
    write_geneval_tree(np.zeros((2, 1, 32, 32, 3), np.uint8), ASKED[:2], folder)
    (folder / "00001" / "metadata.jsonl").write_text(json.dumps({"prompt": "nothing of theirs"}))
    low, out = trees["low"][0], tmp_path / "b.csv"
    result = told(capsys, "battles", low, folder, "--judge", "contrastive", "--quiet", "--out", out)
    assert (result["battles"], result["judges"][0]["scored"]) == (1, 2)
    assert result["unpaired"] == len(ASKED) * SAMPLES + 2 - 2
    (folder / "00000" / "metadata.jsonl").write_text(json.dumps({"prompt": "nor this"}))
    words = ["battles", str(folder), "--judge", "scorer", "--quiet", "--append", "--out", str(out)]
    assert main([*words, str(low)]) == EXIT_BAD_INPUT
    assert "no two share a prompt and a sample's number" in capsys.readouterr().err
    assert main([*words, str(folder), "--names", "a,b"]) == EXIT_BAD_INPUT
    assert "judge=scorer: can't judge any prompt that two trees share" in capsys.readouterr().err
