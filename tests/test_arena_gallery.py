"""What is found in a folder: trees, prompts, numbers, links; and how that goes with very many runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from arena_cases import WORD, make_study
from PIL import Image

from launch.arena.databases import Sqlite, shared_kind
from launch.arena.gallery import AGAIN, Gallery, Item, open_gallery
from launch.arena.pairs import Pairs
from launch.arena.store import prepare
from mmdit_jax.errors import UserError


def test_only_what_lies_in_the_samples_is_in_the_gallery(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = make_study(tmp_path / "study", runs=3, prompts=2)
    first, second, third = sorted(study.iterdir())
    outside = tmp_path / "outside.png"
    outside.write_bytes(next(first.rglob("*.png")).read_bytes())
    (first / "samples" / "00000" / "samples" / "0001.png").symlink_to(outside)
    (second / "samples" / "00000" / "samples" / "0001.png").symlink_to(second / "samples/00000/samples/0000.png")
    (third / "result.json").unlink()  # still being drawn
    elsewhere = make_study(tmp_path / "elsewhere", runs=1)
    (study / "linked").symlink_to(next(elsewhere.iterdir()))
    gallery = open_gallery(study)
    assert gallery.runs == (f"{WORD} 0", f"{WORD} 1")
    assert sorted(gallery.images[f"{WORD} 0"]) == [Item("prompt 0", 0), Item("prompt 1", 0)]
    assert Item("prompt 0", 1) in gallery.images[f"{WORD} 1"]  # a link within is as good as a file
    assert gallery.common(*gallery.runs) == [Item("prompt 0", 0), Item("prompt 1", 0)]
    assert sum("leads out" in message for message in caplog.messages) == 2
    assert sum("not done" in message for message in caplog.messages) == 1
    shown = first / "samples" / "00001" / "samples" / "0000.png"
    shown.unlink()
    shown.symlink_to(outside)  # since the start
    with pytest.raises(OSError, match="leads out"):
        gallery.png(f"{WORD} 0", Item("prompt 1", 0))


def test_roots_of_studies_and_bare_trees(tmp_path: Path) -> None:
    """Studies are told apart, runs of one name too, prompts that come twice as well; only common ones are paired."""
    for study in ("one", "two"):
        make_study(tmp_path / "root" / study, runs=2, prompts=2)
    twin = tmp_path / "root" / "two" / "twin"
    os.rename(tmp_path / "root" / "two" / f"{WORD}-1-0123abcd", twin)
    (twin / "config.json").write_text(json.dumps({"config": {"name": f"{WORD} 0"}}))
    assert open_gallery(tmp_path / "root").runs == (
        *(f"one/{WORD} 0", f"one/{WORD} 1"),
        *(f"two/{WORD} 0 ({WORD}-0-0123abcd)", f"two/{WORD} 0 (twin)"),
    )
    for name, prompts in {"a": ("x", "y", "x"), "b": ("x", "z", "x"), "c": ("w",)}.items():
        for number, prompt in enumerate(prompts):
            place = tmp_path / "trees" / name / f"{number:05d}"
            (place / "samples").mkdir(parents=True)
            (place / "metadata.jsonl").write_text(json.dumps({"prompt": prompt}))
            Image.new("RGB", (2, 2)).save(place / "samples" / "0000.png")
    gallery = open_gallery(tmp_path / "trees")
    assert gallery.runs == ("a", "b", "c")
    assert gallery.common("a", "b") == [Item("x", 0), Item("x", AGAIN)] and gallery.common("a", "c") == []
    (tmp_path / "trees" / "a" / "00000" / "metadata.jsonl").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_gallery(tmp_path / "trees")


def test_a_single_run_is_told_as_what_it_is(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", runs=1)
    with pytest.raises(UserError, match=f"expected two or more runs with samples, found only '{WORD} 0'"):
        open_gallery(study)
    (run,) = study.iterdir()
    with pytest.raises(UserError, match=f"is a single run; expected its study's folder, {study}"):
        open_gallery(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="found none"):
        open_gallery(tmp_path / "empty")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": ""}', "prompt=''; expected some words"),
        ('{"prompt": null}', "prompt=None; expected some words"),
        ('{"prompt": "a\\u0000b"}', "expected no '\\x00' in it"),
        ('{"prompt": "a\\rb"}', "expected no '\\r' in it"),
        ('{"prompt": "a\\ud800"}', "expected no '\\ud800' in it"),
        ('["prompt"]', "damaged"),
    ],
)
def test_prompts_that_votes_can_not_hold_are_told_at_the_start(tmp_path: Path, line: str, told: str) -> None:
    study = make_study(tmp_path / "study", runs=2)
    next(study.glob("*/samples/00001/metadata.jsonl")).write_text(line)
    with pytest.raises(UserError, match="metadata=") as error:
        open_gallery(study)
    assert told in str(error.value)


def test_prompts_of_any_language_and_more_lines_below(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", runs=2, prompts=1)
    prompt = 'ein "Café" 東京 🦊,\n=1+1'
    for path in study.glob("*/samples/*/metadata.jsonl"):
        path.write_text(json.dumps({"prompt": prompt}, ensure_ascii=False) + '\n{"more": 1}\n', encoding="utf-8")
    gallery = open_gallery(study)
    assert gallery.common(*gallery.runs) == [Item(prompt, 0)]


def test_numbers_that_would_run_into_the_next_prompt_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(tmp_path / "study", runs=2, prompts=1, samples=2)
    for path in study.glob("*/samples/*/samples/0001.png"):
        path.rename(path.with_name(f"{2**63}.png"))
    gallery = open_gallery(study)
    assert gallery.common(*gallery.runs) == [Item("prompt 0", 0)]
    assert sum("numbered below 10000" in message for message in caplog.messages) == 2


def test_pairs_of_very_many_runs_take_neither_time_nor_memory(tmp_path: Path) -> None:
    """240 runs on 553 prompts, 28,680 pairs: what two have in common is one list for all that drew the same."""
    items = [Item(f"prompt {number}", 0) for number in range(553)]
    images = {f"run {run:03d}": dict.fromkeys(items if run else items[:9], "") for run in range(240)}
    gallery = Gallery(tuple(images), images, {})
    database = Sqlite(tmp_path / "votes.sqlite")
    prepare(database)
    began = time.process_time()
    pairs = Pairs(gallery, database, ("aesthetics",))
    assert time.process_time() - began < 5  # a hundred times that where each pair has its own
    assert pairs.count == 28_680
    assert gallery.common("run 000", "run 009") == sorted(items[:9])
    assert gallery.common("run 001", "run 002") is gallery.common("run 239", "run 120")
    assert gallery.both("run 000", "run 001", items[8]) and not gallery.both("run 000", "run 001", items[9])
    assert not gallery.both("run 001", "gone", items[0]) and gallery.common("run 001", "gone") == []
    database.close()


def test_file_systems_that_hosts_share_are_known(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\ntmpfs /home/me/fast tmpfs rw 0 0\n"
        "10.0.0.1@tcp:/fs /scratch lustre rw 0 0\n"
    )
    found = {
        place: shared_kind(Path(place), mounts) for place in ("/home/me/v", "/homely/v", "/home/me/fast/v", "/scratch")
    }
    assert found == {"/home/me/v": "nfs4", "/homely/v": None, "/home/me/fast/v": None, "/scratch": "lustre"}
    assert shared_kind(Path("/home"), tmp_path / "none") is None
