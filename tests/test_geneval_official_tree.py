"""GenEval's image tree: drawn by a run and by a checkpoint, in parts, after kills; what the official scorer walks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY_STUDY, Mmdit
from PIL import Image
from tiny_pipeline import write_pipeline

from launch.cli import main
from launch.geneval_tree import Tree, draw_run, fingerprint, tell_new_words
from launch.studies import load_study
from mmdit_jax.config import Run
from mmdit_jax.data import pipeline as data_pipeline
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.official.metadata import Question
from mmdit_jax.evaluation.official.prompts import generate
from mmdit_jax.evaluation.official.provenance import claim, fingerprint_of_files
from mmdit_jax.evaluation.official.tree import (
    Part,
    gaps,
    image_path,
    noise_indices,
    read_image,
    walk,
    wanted,
    write_image,
)
from mmdit_jax.models import init_params

QUESTIONS = generate((2, 2, 2, 1, 1, 1), seed=0)
COUNT = 3
ALL = Part()


@pytest.fixture
def run(tiny_study: Path) -> Run:
    return load_study(str(tiny_study), ()).runs[0]


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("study") / "tiny.py"
    path.write_text(TINY_STUDY)
    config = load_study(str(path), ()).runs[0].model
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [0.25 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


def tree(folder: Path, count: int = COUNT, part: Part = ALL, questions: list[Question] = QUESTIONS) -> Tree:
    return Tree(folder, questions, count, part, wanted(folder, len(questions), count, part))


def images(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def official_walk(folder: Path) -> dict[str, int]:
    """Images of each prompt's words, as the public scorer finds them."""
    found = {}
    for subfolder in os.listdir(folder):
        place = folder / subfolder
        if not place.is_dir() or not subfolder.isdigit():
            continue
        metadata = json.loads((place / "metadata.jsonl").read_text())
        names = [n for n in os.listdir(place / "samples") if (place / "samples" / n).is_file()]
        found[metadata["prompt"]] = sum(re.match(r"\d+\.png", name) is not None for name in names)
    return found


def test_what_is_wanted(tmp_path: Path) -> None:
    assert wanted(tmp_path, 2, 2, Part()) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    write_image(image_path(tmp_path, 0, 1), np.zeros((4, 4, 3), np.uint8))
    assert wanted(tmp_path, 2, 2, Part()) == [(0, 0), (1, 0), (1, 1)]
    assert len(wanted(tmp_path, 2, 2, Part(), only_missing=False)) == 4
    parts = [wanted(tmp_path, 10, 1, Part(number, 3), only_missing=False) for number in (1, 2, 3)]
    assert sorted(image for part in parts for image in part) == [(n, 0) for n in range(10)]
    assert [len(part) for part in parts] == [4, 3, 3]
    assert Part.parse("2/8") == Part(2, 8)
    for text in ("0/8", "9/8", "2", "a/b"):
        with pytest.raises(UserError, match=f"part='{text}': expected NUMBER/OF"):
            Part.parse(text)
    with pytest.raises(UserError, match="count=0"):
        wanted(tmp_path, 2, 0, Part())


def test_noise_of_an_image_is_its_own() -> None:
    """Whatever the number of samples, no two images of a tree share theirs."""
    four, two = ([(n, k) for n in range(50) for k in range(count)] for count in (4, 2))
    of_four = dict(zip(four, noise_indices(four).tolist(), strict=True))
    assert len(set(of_four.values())) == 200
    assert all(of_four[image] == index for image, index in zip(two, noise_indices(two).tolist(), strict=True))


def test_a_tree_of_a_run(run: Run, params: dict, tmp_path: Path) -> None:
    """Whole; in parts; with images lost and more asked for later: the same bits."""
    whole = tmp_path / "whole"
    draw_run(tree(whole), run, params, None, ())
    assert official_walk(whole) == {question.prompt: COUNT for question in QUESTIONS}
    expected = images(whole)
    assert len(expected) == len(set(expected.values())) == 9 * COUNT
    assert Image.open(whole / "00000/samples/0000.png").size == (32, 32)
    assert (whole / "00003" / "metadata.jsonl").read_text() == QUESTIONS[3].to_json() + "\n"

    parts = tmp_path / "parts"
    for number in (2, 1):
        draw_run(tree(parts, part=Part(number, 2)), run, params, None, ())
    assert images(parts) == expected
    for name in ("00004/samples/0001.png", "00007/samples/0000.png"):
        (parts / name).unlink()
    missing = tree(parts)
    assert missing.images == [(4, 1), (7, 0)]
    draw_run(missing, run, params, None, ())
    assert images(parts) == expected
    assert [len(asked.images) for asked in walk(parts, Part())] == [COUNT] * 9
    assert not [path for path in parts.rglob("*") if path.name.endswith(".tmp")]

    # The noise of an image is not another one's, however many there are.
    fewer = tmp_path / "fewer"
    draw_run(tree(fewer, count=1, questions=QUESTIONS[:3]), run, params, None, ())
    for name, data in images(fewer).items():
        ours, theirs = (np.asarray(Image.open(folder / name), int) for folder in (fewer, whole))
        assert np.abs(ours - theirs).max() <= 1 and data


def test_a_tree_is_not_gone_on_with_by_others(run: Run, params: dict, tmp_path: Path) -> None:
    draw_run(tree(tmp_path, count=1), run, params, None, ())
    before = images(tmp_path)
    other = jax.tree.map(lambda leaf: leaf * 1.001, params)
    assert fingerprint(params) == fingerprint(params) != fingerprint(other)
    with pytest.raises(UserError, match=r"tree=.*begun with weights="):
        draw_run(tree(tmp_path, count=2), run, other, None, ())
    seeded = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, seed=5))
    with pytest.raises(UserError, match="begun with seed=0, now 5"):
        draw_run(tree(tmp_path, count=2), seeded, params, None, ())
    with pytest.raises(UserError, match=r"there is 'a photo of .*give another --out"):
        draw_run(tree(tmp_path, questions=QUESTIONS[::-1]), run, params, None, ())
    assert images(tmp_path) == before
    draw_run(tree(tmp_path, count=2), run, params, None, ())
    assert len(images(tmp_path)) == 18


def test_words_that_the_run_has_never_seen(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"resolution": run.data.resolution, "examples": run.data.examples}
    tell_new_words(run, tmp_path, ["a zebra"])  # no captions at hand: nothing to say
    data_pipeline.prepare("scenes", tmp_path, **options)
    tell_new_words(run, tmp_path, ["a red circle"])
    assert not caplog.records
    tell_new_words(run, tmp_path, ["a red zebra", "a red circle", "a zebra and a giraffe"])
    (record,) = caplog.records
    assert "2 of 3 prompts have words that no caption of scenes has (giraffe, zebra)" in record.message


def test_a_tree_that_lacks_something(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    with pytest.raises(UserError, match=r"tree=.*no folders 00000"):
        walk(folder, Part())
    for number, question in enumerate(QUESTIONS[:2]):
        for sample in range(2 - number):
            write_image(image_path(folder, number, sample), np.zeros((4, 4, 3), np.uint8))
        (folder / f"{number:05d}" / "metadata.jsonl").write_text(question.to_json())
    with pytest.raises(UserError, match="1 of 2 prompts lack images, as 00001 with 1 of 2"):
        walk(folder, Part())
    write_image(image_path(folder, 1, 1), np.zeros((4, 4, 3), np.uint8))
    assert [(asked.number, asked.question) for asked in walk(folder, Part(2, 2))] == [(1, QUESTIONS[1])]
    (folder / "00001" / "metadata.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"metadata=.*00001.*not JSON"):
        walk(folder, Part())


def test_a_part_needs_nothing_of_the_others(tmp_path: Path) -> None:
    """One host scores what it has drawn, while another draws; prompts that nobody drew are found by their numbers."""
    for number in (0, 2):
        write_image(image_path(tmp_path, number, 0), np.zeros((4, 4, 3), np.uint8))
        (tmp_path / f"{number:05d}" / "metadata.jsonl").write_text(QUESTIONS[number].to_json())
    (tmp_path / "00001" / "samples").mkdir(parents=True)
    assert [asked.number for asked in walk(tmp_path, Part(1, 2))] == [0, 2]
    with pytest.raises(UserError, match=r"metadata=.*00001.*can't be read"):
        walk(tmp_path, Part(2, 2))
    with pytest.raises(UserError, match=r"part=4/4: .* has no prompt of this part"):
        walk(tmp_path, Part(4, 4))
    assert gaps([0, 2, 5], Part()) == [1, 3, 4]
    assert gaps([1, 7], Part(2, 3)) == [4]
    assert gaps([], Part()) == []


def test_images_are_turned_as_they_say(tmp_path: Path) -> None:
    """As the official scorer turns them: orientation 6 is a quarter to the left."""
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    write_image(tmp_path / "plain.png", pixels)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))
    assert np.array_equal(read_image(tmp_path / "plain.png"), pixels)


def test_provenance(tmp_path: Path) -> None:
    path = tmp_path / "by.json"
    claim(path, {"a": (1, 2), "b": None}, "tree")
    claim(path, {"a": (1, 2), "b": None}, "tree")
    for told in ({"a": (1, 3), "b": None}, {"a": (1, 2)}, {"a": (1, 2), "b": None, "c": 1}):
        if told == {"a": (1, 2)}:
            claim(path, told, "tree")  # what isn't told is none
            continue
        with pytest.raises(UserError, match="begun with"):
            claim(path, told, "tree")
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        claim(path, {}, "tree")
    file = tmp_path / "weights" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(bytes(3 * 2**20))
    before = fingerprint_of_files(file.parent)
    file.write_bytes(bytes(3 * 2**20 - 1) + b"\1")
    after = fingerprint_of_files(file.parent)
    assert after != before
    notes = file.parent / ".cache" / "model.metadata"  # of a download, another on each host
    notes.parent.mkdir()
    notes.write_text("1795790000.1")
    assert fingerprint_of_files(file.parent) == after


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--part", "1/2", "a cat"], "--part: expected --geneval"),
        (["--no-only-missing", "a cat"], "--no-only-missing: expected --geneval"),
        (["--geneval", "nowhere.jsonl"], "geneval=nowhere.jsonl: can't be read"),
        (["--geneval", "{metadata}", "a cat"], "prompt='a cat': expected none with --geneval"),
        (["--geneval", "{metadata}", "--part", "3/2"], "part='3/2'"),
        (["--geneval", "{metadata}", "--count", "0"], "count=0"),
        ([], "prompt: none after STUDY="),
        (["a cat", "--count", "0"], "count=0: expected 1 or more"),
    ],
)
def test_bad_input(
    wrong: list[str], told: str, tiny_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text("".join(f"{question.to_json()}\n" for question in QUESTIONS))
    words = [word.replace("{metadata}", str(metadata)) for word in wrong]
    out = ["--out", str(tmp_path / "out"), "--root", str(tmp_path)]
    assert main(["sample", str(tiny_study), "--run", "rf", *words, *out]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def write_metadata(folder: Path, questions: list[Question]) -> str:
    path = folder / "metadata.jsonl"
    path.write_text("".join(f"{question.to_json()}\n" for question in questions))
    return str(path)


@pytest.mark.slow
def test_a_killed_checkpoint_goes_on(mmdit: Mmdit, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL while images are written: every PNG that counts is whole; what goes on ends with the same bits."""
    checkpoint = write_pipeline(mmdit.folder / "sd3")
    command = ["sample", "--checkpoint", str(checkpoint), "--steps", "1", "--height", "64", "--width", "64"]
    command += ["--batch", "4", "--drop", "t5", "--geneval", write_metadata(mmdit.folder, generate((5,) * 6, seed=0))]
    places = [["--root", str(mmdit.folder), "--out", str(mmdit.folder / name)] for name in ("whole", "killed")]
    assert main([*command, *places[0], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"tree": str(mmdit.folder / "whole"), "images": 120, "drawn": 120}
    expected = images(mmdit.folder / "whole")
    assert len(expected) == 120
    killed = mmdit.folder / "killed"
    process = mmdit.start(*command, *places[1])
    while process.poll() is None and len(list(killed.rglob("[0-9]*.png"))) < 10:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    there = images(killed)
    assert 10 <= len(there) < 120 and all(expected[name] == data for name, data in there.items())
    assert main([*command, *places[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["drawn"] == 120 - len(there)
    assert images(killed) == expected
    assert main([*command, *places[1]]) == 0  # nothing left to draw
    assert capsys.readouterr().out == f"{killed}\n"
    assert main([*command, *places[1], "--guidance", "2"]) == 2
    assert "begun with sampler=" in capsys.readouterr().err
    assert main([*command, *places[1], "--tile", "64"]) == 2
    assert "begun with tile=None" in capsys.readouterr().err
    (checkpoint / "text_encoder" / "notes.txt").write_text("another encoder, for all that can be told")
    assert main([*command, *places[1]]) == 2
    assert "begun with encoders=" in capsys.readouterr().err


def test_the_command_for_a_run(
    params: dict, mmdit: Mmdit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but its training: the weights are given."""
    monkeypatch.setattr("launch.runs.restore_ema", lambda run, folder: params)
    out = mmdit.folder / "tree"
    command = ["sample", str(mmdit.study), "--run", "rf", "--geneval", write_metadata(mmdit.folder, QUESTIONS)]
    command += ["--out", str(out), "--root", str(mmdit.folder)]
    assert main([*command, "--part", "2/3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"tree": str(out), "images": 12, "drawn": 12}
    assert main(command) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert official_walk(out) == {question.prompt: 4 for question in QUESTIONS}
    assert json.loads((out / "drawn_by.json").read_text())["run"] == "rf"
