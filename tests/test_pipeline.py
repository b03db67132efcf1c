"""Batches as a pure function of the global step; data sets that are whole or absent, whoever is killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mmdit_jax.data import order, store
from mmdit_jax.data.batches import batches
from mmdit_jax.data.order import batch_indices
from mmdit_jax.data.pipeline import Split, load, prepare
from mmdit_jax.errors import UserError

SIZES: dict[str, Any] = {"resolution": 24, "examples": 700, "validation_examples": 40, "seed": 3}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("data")
    prepare("scenes", folder, **SIZES)
    return folder


@pytest.mark.parametrize(("n", "batch"), [(1, 3), (2, 2), (17, 5), (700, 64), (4096, 96)])
def test_every_epoch_has_every_example_once(n: int, batch: int) -> None:
    epochs = 3
    stream = np.concatenate([batch_indices(n, batch, 5, step) for step in range(-(-epochs * n // batch))])
    rounds = stream[: epochs * n].reshape(epochs, n)
    assert all(np.array_equal(np.sort(row), np.arange(n)) for row in rounds)
    if n > 100:
        assert not any(np.array_equal(a, b) for a, b in itertools.combinations(rounds, 2))


def test_order_is_random_enough() -> None:
    """Where an example lands is uniform over epochs, and neighbours in one epoch are strangers in the next."""
    n, epochs = 50, 2000
    key = np.arange(epochs, dtype=np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
    where = order.permute(np.broadcast_to(np.arange(n), (epochs, n)), n, key)
    for column in (0, 7, 49):
        assert stats.chisquare(np.bincount(where[:, column], minlength=n)).pvalue > 1e-4
    after = (where[:, 1] - where[:, 0]) % n
    assert stats.chisquare(np.bincount(after, minlength=n)[1:]).pvalue > 1e-4
    # No correlation of position and example over one long epoch.
    long = batch_indices(100_000, 100_000, 1, 0)
    assert abs(stats.spearmanr(long, np.arange(100_000)).statistic) < 0.02
    assert not np.array_equal(batch_indices(700, 64, 1, 4), batch_indices(700, 64, 2, 4))


ORDER_0 = [495, 961, 616, 596, 824, 125]
ORDER_FAR = [798, 467, 585, 388, 919, 643]


def test_order_never_changes() -> None:
    """Published: a run that goes on under a newer version must see the examples it would have seen."""
    np.testing.assert_array_equal(batch_indices(1000, 6, 0, 0), ORDER_0)
    np.testing.assert_array_equal(batch_indices(1000, 6, 7, 10**12), ORDER_FAR)


def test_batches_follow_the_global_step(data_dir: Path) -> None:
    split = load("scenes", data_dir, **SIZES).split("train")
    stream = batches(split, batch=64, seed=9)
    seen = [next(stream) for _ in range(15)]
    for step, batch in enumerate(seen):
        np.testing.assert_array_equal(batch["index"], batch_indices(700, 64, 9, step))
        np.testing.assert_array_equal(batch["image"], split.images[batch["index"]])
        assert batch["image"].dtype == np.uint8 and batch["image"].shape == (64, 24, 24, 3)
    # Started anywhere, on any number of processes: the same examples in the same order.
    late = next(batches(split, batch=64, seed=9, start_step=13))
    np.testing.assert_array_equal(late["image"], seen[13]["image"])
    far = next(batches(split, batch=64, seed=9, start_step=10**9))
    np.testing.assert_array_equal(far["index"], batch_indices(700, 64, 9, 10**9))
    for count in (2, 4, 8):
        parts = [
            next(batches(split, batch=64, seed=9, start_step=13, rows=np.arange(64)[i::count])) for i in range(count)
        ]
        for i, part in enumerate(parts):
            np.testing.assert_array_equal(part["image"], seen[13]["image"][i::count])
            np.testing.assert_array_equal(part["index"], seen[13]["index"][i::count])


def test_reading_without_the_cache_gives_the_same(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load("scenes", data_dir, **SIZES).split("train")
    rows = batch_indices(700, 32, 0, 3)
    cached = split.take(rows)
    monkeypatch.setattr("mmdit_jax.data.pipeline.CACHE_BYTES", 0)
    fresh = load("scenes", data_dir, **SIZES).split("train")
    np.testing.assert_array_equal(fresh.take(rows), cached)
    assert "_decoded" not in vars(fresh)
    assert fresh[5]["caption"] == split.captions[5]
    assert fresh.fingerprint == split.fingerprint != load("scenes", data_dir, **SIZES).split("validation").fingerprint


def test_the_loader_is_cheap(data_dir: Path) -> None:
    """A smoke alarm: 0.9 ms a batch of 64 at 32 px when alone; the bound leaves room for a busy machine."""
    stream = batches(load("scenes", data_dir, **SIZES).split("train"), batch=64, seed=0)
    next(stream)
    start = time.perf_counter()
    for _ in range(100):
        next(stream)
    assert (time.perf_counter() - start) / 100 < 0.02


def _start_build(folder: Path) -> subprocess.Popen[bytes]:
    code = (
        "from mmdit_jax.data.pipeline import prepare;"
        f"prepare('scenes', {str(folder)!r}, resolution=24, examples=700, validation_examples=40, seed=3)"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_killed_build_starts_again_and_two_at_once_agree(tmp_path: Path, data_dir: Path) -> None:
    victim = _start_build(tmp_path)
    deadline = time.time() + 60
    while not list(tmp_path.glob(".building-*/scenes/*/*incomplete*")) and victim.poll() is None:
        assert time.time() < deadline
        time.sleep(0.002)
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    with pytest.raises(UserError, match="not built yet"):
        load("scenes", tmp_path, **SIZES)
    both = [_start_build(tmp_path) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert not list(tmp_path.glob(".building-*"))
    rebuilt, whole = (load("scenes", folder, **SIZES).split("train") for folder in (tmp_path, data_dir))
    assert rebuilt.fingerprint == whole.fingerprint


def _refused(action: Any) -> str:
    with pytest.raises(UserError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_damage_is_told_in_one_line(tmp_path: Path) -> None:
    folder = prepare("scenes", tmp_path, **SIZES)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    shard = next(path for path in before if "train.array_record" in path.name)

    shard.write_bytes(before[shard][: len(before[shard]) // 2])
    for action in (lambda: load("scenes", tmp_path, **SIZES), lambda: prepare("scenes", tmp_path, **SIZES)):
        message = _refused(action)
        assert str(folder) in message and "damaged" in message and "delete" in message
    shard.unlink()
    assert shard.name in _refused(lambda: load("scenes", tmp_path, **SIZES))
    # Same length, other bytes: array_record's own checksums notice when the examples are read.
    shard.write_bytes(before[shard][:70_000] + bytes(2000) + before[shard][72_000:])
    assert str(folder) in _refused(lambda: load("scenes", tmp_path, **SIZES).split("train").images)
    shard.write_bytes(before[shard])
    (folder / store.MANIFEST).write_text("{")
    assert "damaged" in _refused(lambda: load("scenes", tmp_path, **SIZES))
    (folder / store.MANIFEST).write_bytes(before[folder / store.MANIFEST])
    assert len(load("scenes", tmp_path, **SIZES).split("train").captions) == 700


def test_bad_input_is_told_in_one_line(tmp_path: Path, data_dir: Path) -> None:
    assert "did you mean 'scenes'" in _refused(lambda: prepare("scene", tmp_path))
    assert "not built yet" in _refused(lambda: load("scenes", tmp_path, **SIZES))
    (tmp_path / "file").write_text("")
    assert "data_dir=" in _refused(lambda: prepare("emoji", tmp_path / "file" / "below", resolution=16))
    data = load("scenes", data_dir, **SIZES)
    assert "did you mean 'train'" in _refused(lambda: data.split("trian"))
    split: Split = data.split("train")
    assert "batch=0" in _refused(lambda: batches(split, batch=0, seed=0))
    assert "rows=3 to 8" in _refused(lambda: batches(split, batch=8, seed=0, rows=np.array([3, 8])))
    assert "rows=[]" in _refused(lambda: batches(split, batch=8, seed=0, rows=np.arange(0)))
    assert "start_step=-1" in _refused(lambda: batches(split, batch=8, seed=0, start_step=-1))
    assert "examples=0" in _refused(lambda: batch_indices(0, 8, 0, 0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills while shards are written: one line, and no half-built set."""

    def full(self: Any, **kwargs: Any) -> None:
        with open("/dev/full", "w") as device:
            device.write("x" * 100_000)

    monkeypatch.setattr("mmdit_jax.data.scenes.builder.Scenes.download_and_prepare", full)
    message = _refused(lambda: prepare("scenes", tmp_path, **SIZES))
    assert "No space left" in message and "free some space" in message
    assert {path.name for path in tmp_path.iterdir()} == {".building.lock"}
