"""Encoded sets: every example where the manifest says, batches by the global step, damage told in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tiny_encoded import SIZES, TEXT, example, same, write_set

from mmdit_jax.data.batches import encoded_batches
from mmdit_jax.data.encoded import EncodedSet, EncodedSplit
from mmdit_jax.data.pipeline import open_encoded
from mmdit_jax.data.schedule import bucket_batch
from mmdit_jax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("data")
    write_set(folder / "set", shard=4)
    return folder


def opened(data_dir: Path) -> EncodedSplit:
    found = open_encoded("set", data_dir)
    assert found is not None
    return found.split("train")


@pytest.mark.parametrize("in_memory", [True, False])
def test_shards_of_a_bucket_are_one_index_space(
    data_dir: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.setattr("mmdit_jax.data.encoded.CACHE_BYTES", 0)
    split = opened(data_dir)
    assert split.in_memory is in_memory
    assert split.buckets == ((2, 8), (4, 4), (6, 4)) and split.sizes == (9, 20, 12) and len(split) == 41
    assert split.squarest == (4, 4)
    rng = np.random.default_rng(0)
    for number, (bucket, count) in enumerate(zip(split.buckets, split.sizes, strict=True)):
        rows = rng.permutation(count)
        found = split.take(number, rows)
        assert found.mean.shape == (count, *bucket, 4) and found.mean.dtype == ml_dtypes.bfloat16
        for i, row in enumerate(rows):
            key = f"train/{bucket[0]}x{bucket[1]}/{row}"
            given = example(key, bucket)
            assert (found.keys[i], found.captions[i]) == (key, given.caption)
            same(found.mean[i], given.mean)
            same(found.logvar[i], given.logvar)
            for name in TEXT:
                same(found.text[name].tokens[i], given.text[name].tokens)
                same(found.text[name].pooled[i], given.text[name].pooled)


def test_batches_follow_the_global_step(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = opened(data_dir)
    stream = encoded_batches(split, batch=8, seed=9)
    seen = [next(stream) for _ in range(20)]
    for step, (bucket, batch) in enumerate(seen):
        expected, rows = bucket_batch(split.sizes, 8, 9, step)
        assert bucket == expected
        h, w = split.buckets[bucket]
        assert batch.keys.tolist() == [f"train/{h}x{w}/{row}" for row in rows]
    assert len({bucket for bucket, _ in seen}) == 3
    # Started anywhere, on any number of processes, in memory or not: the same examples in the same order.
    late = next(encoded_batches(split, batch=8, seed=9, start_step=13))
    np.testing.assert_array_equal(late[1].keys, seen[13][1].keys)
    for count in (2, 4):
        parts = [
            next(encoded_batches(split, batch=8, seed=9, start_step=13, rows=np.arange(8)[i::count]))
            for i in range(count)
        ]
        assert {bucket for bucket, _ in parts} == {seen[13][0]}
        for i, (_, part) in enumerate(parts):
            np.testing.assert_array_equal(part.mean, seen[13][1].mean[i::count])
            assert part.keys.tolist() == seen[13][1].keys[i::count].tolist()
    monkeypatch.setattr("mmdit_jax.data.encoded.CACHE_BYTES", 0)
    fresh = opened(data_dir)
    for (bucket, batch), (before, known) in zip(encoded_batches(fresh, batch=8, seed=9), seen, strict=False):
        assert bucket == before
        np.testing.assert_array_equal(batch.logvar, known.logvar)
        np.testing.assert_array_equal(batch.text["t5"].tokens, known.text["t5"].tokens)
    assert fresh._read_once.cache_info().currsize == 0


MANY_SHARDS = """
import os, resource, sys
from pathlib import Path
import numpy as np
from mmdit_jax.data.encoded import EncodedSet
from mmdit_jax.errors import UserError
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 2000))
taken = EncodedSet(Path(sys.argv[1])).split("train").take(0, np.arange(150))
print(len(taken.mean))
resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))
try:
    EncodedSet(Path(sys.argv[1])).split("train")
except UserError as error:
    print(error)
"""


def test_more_shards_than_open_files(tmp_path: Path) -> None:
    """Ten million images are ten thousand shards; a shell's limit is often 1,024 files, and can be raised."""
    folder = write_set(tmp_path / "set", {"train": {(4, 4): 150}, "validation": {(4, 4): 2}}, shard=1)
    done = subprocess.run([sys.executable, "-c", MANY_SHARDS, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, told = done.stdout.splitlines()
    assert count == "150" and "152 shards to hold open" in told and "--shard-examples" in told


def test_only_the_encoders_asked_for(data_dir: Path) -> None:
    found = open_encoded("set", data_dir)
    assert found is not None
    taken = found.split("validation", ("t5",)).take(0, np.array([1, 0]))
    assert list(taken.text) == ["t5"]
    message = refused(lambda: found.split("train", ("clip_g",)))
    assert "text_encoders='clip_g': unknown; did you mean 'clip_l'" in message


def test_the_fingerprint_is_of_the_examples_not_of_the_place(tmp_path: Path) -> None:
    first = EncodedSet(write_set(tmp_path / "a"))
    moved = json.loads((tmp_path / "a" / "manifest.json").read_text())
    moved["latents"]["folder"] = moved["text"]["t5"]["folder"] = "/elsewhere"
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(moved))
    assert EncodedSet(tmp_path / "a").fingerprint == first.fingerprint
    assert EncodedSet(tmp_path / "a").latents.folder == "/elsewhere"
    assert EncodedSet(write_set(tmp_path / "b", seed="other ")).fingerprint != first.fingerprint


def refused(action: Any) -> str:
    with pytest.raises(UserError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_damage_is_told_in_one_line(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", {"train": {(4, 4): 40}, "validation": {(4, 4): 2}}, shard=40)
    shard, manifest = folder / "train-000.array_record", folder / "manifest.json"
    whole, told = shard.read_bytes(), manifest.read_text()

    def read() -> Any:
        return EncodedSet(folder).split("train").take(0, np.arange(40))

    assert len(read().mean) == 40
    shard.write_bytes(whole[:-10])
    assert f"{len(whole) - 10} bytes of {len(whole)}" in refused(read) and str(folder) in refused(read)
    shard.unlink()
    assert shard.name in refused(read) and "mmdit data encode" in refused(read)
    # Same length, other bytes: noticed when the examples are read.
    middle = len(whole) // 2
    shard.write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
    assert "damaged" in refused(read)
    shard.write_bytes(whole)
    # The manifest and the shards tell different things.
    for old, new in (
        ('"examples": 40', '"examples": 39'),
        ('"bucket": [4, 4]', '"bucket": [2, 8]'),
        ('"channels": 4', '"channels": 8'),
        ('"width": 6', '"width": 7'),
        ('"size"', '"edge"'),
        ("{", "["),
    ):
        assert old in told
        manifest.write_text(told.replace(old, new, 1))
        assert "damaged" in refused(read), new
    manifest.write_text(told.replace("mmdit-encoded-1", "mmdit-encoded-9"))
    assert "'mmdit-encoded-9'; this version reads 'mmdit-encoded-1'" in refused(read)


def test_names_are_told_apart(tmp_path: Path) -> None:
    assert open_encoded("scenes", tmp_path) is None
    message = refused(lambda: open_encoded("imagenet-latents", tmp_path))
    assert "mmdit data encode" in message and "--name imagenet-latents" in message and "scenes" in message
    (tmp_path / "half").mkdir()
    assert "not finished" in refused(lambda: open_encoded("half", tmp_path))
    write_set(tmp_path / "emoji")
    assert "rename" in refused(lambda: open_encoded("emoji", tmp_path))
    empty = write_set(tmp_path / "empty", {"train": SIZES["train"], "validation": {(4, 4): 0}})
    assert "holds no examples" in refused(lambda: EncodedSet(empty).split("validation"))
    assert "did you mean 'train'" in refused(lambda: EncodedSet(empty).split("trian"))
