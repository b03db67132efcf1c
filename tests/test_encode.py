"""`mmdit data encode` end to end: three layouts of one content, kills, two processes at once, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from encode_sets import emoji, write_folder, write_tars, write_tfds, write_vae
from tiny_encoders import write_encoders

from mmdit_jax.data.encode.job import Job, Place
from mmdit_jax.data.encode.models import load_models
from mmdit_jax.data.encode.settings import EncoderSpec, ScanSettings, Settings
from mmdit_jax.data.records import Encoded, unpack
from mmdit_jax.data.sources import SourceOptions, open_source
from mmdit_jax.models.autoencoder import load_autoencoder
from mmdit_jax.models.text import load_text_encoder

COUNT = 90
LAYOUTS = ("folder", "tars/{000..002}.tar", "tfds:pictures")
SD3 = ("clip_l", "clip_g", "t5")


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Emoji as a folder, as tars and as a TFDS set; a tiny autoencoder; tiny text encoders."""
    root: Path = tmp_path_factory.mktemp("sets")
    images, captions = emoji(COUNT)
    write_folder(root / "folder", images, captions)
    write_tars(root / "tars", images, captions)
    write_tfds(root / "tfds", images, captions)
    write_vae(root / "vae")
    write_encoders(root / "sd3")
    return root


def read(folder: Path) -> list[Encoded]:
    """Every record of a set, split by split, shard by shard."""
    from array_record.python.array_record_module import ArrayRecordReader

    manifest = json.loads((folder / "manifest.json").read_text())
    found = []
    for split in ("train", "validation"):
        for shard in manifest["splits"][split]:
            reader = ArrayRecordReader(str(folder / shard["file"]))
            assert reader.num_records() == shard["examples"]
            assert (folder / shard["file"]).stat().st_size == shard["bytes"]
            records = [unpack(data) for data in reader.read(0, reader.num_records())]
            assert all(list(record.mean.shape[:2]) == shard["bucket"] for record in records)
            found += records
    return found


def run_job(folder: Path, settings: Settings, report: Callable[..., None] = lambda *_: None) -> dict[str, Any]:
    source = open_source(settings.scan.source, settings.scan.options)
    return Job(folder, source, Place(threads=2), lambda: False, report).encode(settings, load_models(settings))


def settings_of(sets: Path, source: str, encoders: tuple[EncoderSpec, ...], **scan: Any) -> Settings:
    place = source if source.startswith("tfds:") else str(sets / source)
    options = SourceOptions(tfds_dir=str(sets / "tfds"))
    scan = {"validation": "0", **scan}
    return Settings(
        ScanSettings(place, options, size=32, shard_examples=40, **scan), str(sets / "vae"), encoders, batch=16
    )


def test_three_layouts_give_the_same_latents(sets: Path, tmp_path: Path) -> None:
    """And they are what the autoencoder and the encoders give for these pixels and captions, rounded."""
    texts = tuple(EncoderSpec(name, str(sets / "sd3")) for name in SD3)
    found = []
    for number, layout in enumerate(LAYOUTS):
        manifest = run_job(tmp_path / str(number), settings_of(sets, layout, texts, dedupe="none"))
        assert manifest["examples"] == {"train": COUNT, "validation": 0}
        found.append(read(tmp_path / str(number)))
    assert "tensorflow" not in sys.modules
    images, captions = emoji(COUNT)
    mean, logvar = load_autoencoder(sets / "vae").encode(np.ascontiguousarray(images))
    states = {name: load_text_encoder(name, sets / "sd3").encode(captions) for name in SD3}
    for row, records in enumerate(zip(*found, strict=True)):
        first = records[0]
        assert first.mean.dtype == ml_dtypes.bfloat16
        assert len({record.key for record in records}) == len(LAYOUTS)
        for record in records:
            assert record.caption == captions[row]
            np.testing.assert_array_equal(record.mean, first.mean)
            np.testing.assert_array_equal(record.logvar, first.logvar)
            for name in SD3:
                np.testing.assert_array_equal(record.text[name].tokens, first.text[name].tokens)
        # bfloat16 keeps 8 bits; a batch of another size may differ in the last bit before rounding.
        close(first.mean, mean[row])
        close(first.logvar, logvar[row])
        for name in SD3:
            close(first.text[name].tokens, states[name].tokens[row])
            close(first.text[name].pooled, states[name].pooled[row])


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found.astype(np.float32), wanted, rtol=2**-7, atol=1e-3)


KILLS: list[tuple[str, Callable[[Path], bool]]] = [
    ("parts are being scanned", lambda at: any(at.parent.glob("_scans/*/*.npz"))),
    ("a shard is being written", lambda at: any(at.glob(".*.tmp"))),
    ("some shards are there", lambda at: len(list(at.glob("work/shards/*.json"))) >= 4),
    ("a shard is being written, later", lambda at: any(at.glob(".*.tmp"))),
    ("most shards are there", lambda at: len(list(at.glob("work/shards/*.json"))) >= 9),
]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a set but its locks; hidden ones, too."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def command(sets: Path, name: str, *more: str, source: str = "tars/{000..002}.tar") -> list[str]:
    """A set of twelve shards."""
    given = ("data", "encode", str(sets / source), "--name", name, "--data-dir", "out", "--vae", str(sets / "vae"))
    return [*given, "--encoders", "words,tower", "--size", "32", "--shard-examples", "8", "--batch", "4", *more]


@pytest.mark.slow
def test_killed_anywhere_same_bytes(sets: Path, mmdit: Any) -> None:
    """SIGKILL five times, then two processes at once: the bytes of a run that was left alone, each item once."""
    wanted = ["--validation", "10"]
    untouched = mmdit(*command(sets, "untouched", *wanted))
    assert untouched.returncode == 0, untouched.stderr
    killed = mmdit.folder / "out" / "killed"
    for name, reached in KILLS:
        process = mmdit.start(*command(sets, "killed", *wanted))
        deadline = time.monotonic() + 120
        while process.poll() is None and not reached(killed) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert process.poll() is None, f"{name}: never seen; {process.communicate()}"
        process.kill()
        process.communicate()
        assert not (killed / "manifest.json").exists(), name
    both = [mmdit.start(*command(sets, "killed", *wanted, "--process-count", "2", "--process-index", i)) for i in "01"]
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    assert bytes_of(killed) == bytes_of(mmdit.folder / "out" / "untouched")

    manifest = json.loads((killed / "manifest.json").read_text())
    dropped = [json.loads(line)["key"] for line in (killed / "dropped.jsonl").read_text().splitlines()]
    keys = [record.key for record in read(killed)]
    source = open_source(str(sets / "tars" / "{000..002}.tar"), SourceOptions())
    entries = [entry.key for part in range(source.parts) for entry in source.entries(part)]
    assert sorted(keys + dropped) == sorted(entries)
    assert manifest["examples"] == {"train": len(keys) - 10, "validation": 10}


@pytest.mark.slow
def test_workers_killed_and_stopped(sets: Path, mmdit: Any) -> None:
    """A dead worker is named and ends the whole with 128 or more; SIGTERM ends it with 75; both go on."""
    folder = mmdit.folder / "out" / "set"

    def begun(least: int) -> subprocess.Popen[str]:
        process = mmdit.start(*command(sets, "set", "--processes", "2"))
        deadline = time.monotonic() + 120
        while len(list(folder.glob("work/shards/*.json"))) < least and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        return process

    process = begun(2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL, err
    told = [line for line in err.splitlines() if line.startswith("mmdit: ")]
    assert len(told) == 1 and children[1] in told[0] and "SIGKILL" in told[0] and out == ""
    assert not any(Path(f"/proc/{child}").exists() for child in children)

    process = begun(len(list(folder.glob("work/shards/*.json"))) + 1)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert not any(folder.glob(".*.tmp"))

    # A parent that is killed takes its workers along.
    process = begun(len(list(folder.glob("work/shards/*.json"))) + 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)

    done = mmdit(*command(sets, "set", "--json"))
    assert done.returncode == 0, done.stderr
    told_json = json.loads(done.stdout)
    assert told_json["encoded_now"] < sum(told_json["examples"].values())
    again = mmdit(*command(sets, "set", "--json"))
    assert json.loads(again.stdout)["encoded_now"] == 0


@pytest.mark.slow
def test_without_locks_the_same_bytes(sets: Path, mmdit: Any) -> None:
    """On a file system that has no locks, two processes may do everything twice; the set is the same."""
    script = (
        "import errno, fcntl, sys\n"
        "def lockf(*_): raise OSError(errno.ENOLCK, 'no locks')\n"
        "fcntl.lockf = lockf\n"
        "from launch.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, *command(sets, "twice", "--validation", "10")],
            cwd=mmdit.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    assert mmdit(*command(sets, "once", "--validation", "10")).returncode == 0
    assert bytes_of(mmdit.folder / "out" / "twice") == bytes_of(mmdit.folder / "out" / "once")
