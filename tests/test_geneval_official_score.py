"""`mmdit geneval score` and `read` where results are not what they are taken for.

The detector sees bright and dark; networks are in tests/parity.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.cli import main
from mmdit_jax.evaluation.official.prompts import generate
from mmdit_jax.evaluation.official.rules import Detections
from mmdit_jax.evaluation.official.tree import image_path, write_image

QUESTIONS = generate((2, 2, 2, 2, 2, 2), seed=1)


def bright(images: Sequence[np.ndarray], least: Sequence[float]) -> list[Detections]:
    """In a bright image one of each object that anybody asks for, in a dark one nothing."""
    names = tuple({clause.name for question in QUESTIONS for clause in question.include})
    boxes = np.tile(np.float32([2, 2, 9, 9]), (len(names), 1))
    some = Detections(boxes, np.full(len(names), 0.95, np.float32), names)
    return [some if image.mean() > 127 else Detections(boxes[:0], some.scores[:0], ()) for image in images]


def write_tree(folder: Path, seed: int, samples: Sequence[int] = (0, 1)) -> Path:
    """Images of noise, bright or dark; those of a seed, prompt and sample are the same wherever they lie."""
    for number, question in enumerate(QUESTIONS):
        for sample in samples:
            rng = np.random.default_rng((seed, number, sample))
            image = rng.integers(0, 200, (16, 16, 3)) + 55 * rng.integers(2)
            write_image(image_path(folder, number, sample), image.astype(np.uint8))
        (folder / f"{number:05d}" / "metadata.jsonl").write_text(question.to_json() + "\n")
    return folder


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What follows the tree and the file of results."""
    official = "mmdit_jax.evaluation.official"
    monkeypatch.setattr(f"{official}.detector.load_detector", lambda *_: bright)
    monkeypatch.setattr(f"{official}.colours.load_clip", lambda *_: lambda _, name, found: ["red"] * len(found))
    monkeypatch.setattr("mmdit_jax.evaluation.rewards.torch_files.need", lambda *_: None)
    monkeypatch.setattr("mmdit_jax.evaluation.rewards.torch_files.choose_device", lambda *_: "cpu")
    for name in ("detector", "another", "clip"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    return ["--detector", str(tmp_path / "detector"), "--clip", str(tmp_path / "clip")]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that is refused: its one line."""

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(["geneval", *words]) == 2
        shown, error = capsys.readouterr()
        assert not shown and error.count("\n") == 1
        return error

    return run


def score(tree: Path, out: Path, *more: str) -> list[str]:
    return ["geneval", "score", str(tree), "--out", str(out), *more]


def test_results_are_of_one_trees_images(command: list[str], told: Any, tmp_path: Path) -> None:
    """Two trees of one name, that nothing says the origin of: a file of one is not the other's."""
    ours, theirs, out = (tmp_path / name for name in ("sd3/images", "flux/images", "results.jsonl"))
    write_tree(ours, 0)
    write_tree(theirs, 1)
    assert main([*score(ours, out), *command]) == 0
    written = out.read_bytes()
    refused = f"results={out}: 24 of 24 are not of this tree's images, as 00000/samples/0000.png"
    assert refused in told(*score(theirs, out, *command)[1:])
    # One image in the place of another, one that is gone: no result is left to be taken for theirs.
    shutil.copy(image_path(theirs, 3, 1), image_path(ours, 3, 1))
    out.write_bytes(written[:-9])  # nor is the file touched
    assert "1 of 23 are not of this tree's images, as 00003/samples/0001.png" in told(*score(ours, out, *command)[1:])
    assert out.read_bytes() == written[:-9]
    out.write_bytes(written)
    shutil.rmtree(ours / "00011")
    assert "3 of 24 are not" in told(*score(ours, out, *command)[1:])


def test_a_tree_may_grow_and_be_moved(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, place = tmp_path / "results.jsonl", write_tree(tmp_path / "a" / "tree", 0, samples=(0,))
    assert main([*score(place, out), *command]) == 0
    first = out.read_text()
    moved = tmp_path / "b" / "tree"
    shutil.move(place, moved)
    write_tree(moved, 0)  # of each prompt another image, and those of before drawn again with the same bits
    assert main([*score(moved, out, "--json"), *command]) == 0
    whole = out.read_text()
    assert whole.startswith(first) and len(whole.splitlines()) == 24 == len(set(whole.splitlines()))
    rates = [row["rate"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]]
    assert 0 < rates[0] < 1


def test_results_that_this_command_never_began_are_not_its_own(command: list[str], told: Any, tmp_path: Path) -> None:
    tree, out = write_tree(tmp_path / "tree", 0), tmp_path / "results.jsonl"
    assert main([*score(tree, out), *command]) == 0
    official = tmp_path / "official.jsonl"
    official.write_bytes(out.read_bytes())
    assert f"results={official}: not begun by this command; give another --out" in told(
        *score(tree, official, *command)[1:]
    )
    assert not (tmp_path / "official.by.json").exists() and official.read_bytes() == out.read_bytes()
    empty = tmp_path / "empty.jsonl"
    empty.touch()  # as mktemp makes it
    assert main([*score(tree, empty), *command]) == 0 and empty.read_bytes() == out.read_bytes()


def test_parts_are_of_one_scorer(
    command: list[str], told: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = write_tree(tmp_path / "tree", 0)
    parts = [tmp_path / f"part{number}.jsonl" for number in (1, 2, 3)]
    for number, part in enumerate(parts[:2], start=1):
        assert main([*score(tree, part, "--part", f"{number}/2"), *command]) == 0
    other = [*command[2:], "--detector", str(tmp_path / "another")]
    assert main([*score(tree, parts[2], "--part", "2/2"), *other]) == 0
    mixed = told("read", f"m={parts[0]}", f"m={parts[2]}")
    assert f"results of m: {parts[0]} has detector=['detector', " in mixed and "['another', " in mixed
    assert main(["geneval", "read", f"m={parts[0]}", f"m={parts[1]}"]) == 0
    assert main(["geneval", "read", f"a={parts[0]}", f"b={parts[2]}"]) == 0  # as two models: whoever asks knows
    elsewhere = tmp_path / "official.jsonl"
    elsewhere.write_bytes(parts[2].read_bytes())
    assert main(["geneval", "read", f"m={parts[0]}", f"m={elsewhere}"]) == 0  # nothing says whose it is
    strict = [*score(write_tree(tmp_path / "next", 1), parts[2].with_name("part4.jsonl")), "--part", "2/2"]
    assert main([*strict, *command]) == 0
    assert "tree='tree'" in told("read", f"m={parts[0]}", f"m={tmp_path / 'part4.jsonl'}")
