"""A run that is killed for real goes on, and ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmdit_jax.training.events import read_events

TRAIN = ("train", "tiny.py", "--run", "rf", "--quiet")


def last_step(folder: Path) -> int:
    return max((event.get("step", 0) for event in read_events(folder)), default=0)


def run_dir(root: Path) -> Path:
    return next(iter(sorted((root / "tiny").glob("rf-*"))), root / "tiny" / "rf-none")


MOMENTS: list[tuple[str, Callable[[Path], bool]]] = [
    ("data are being built", lambda root: (root / "_data").exists()),
    ("the run has begun", lambda root: (run_dir(root) / "config.json").exists()),
    ("training is before its first checkpoint", lambda root: last_step(run_dir(root)) >= 3),
    ("a checkpoint is being written", lambda root: any((run_dir(root) / "checkpoints").glob("*10*"))),
    ("training is between checkpoints", lambda root: last_step(run_dir(root)) >= 24),
    ("images are being sampled", lambda root: last_step(run_dir(root)) >= 40),
    ("the image tree is being written", lambda root: (run_dir(root) / "samples" / "00003").exists()),
]


def kill_when(process: subprocess.Popen[str], reached: Callable[[], bool]) -> bool:
    """SIGKILL the process once ``reached``; whether it was still alive then."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if reached():
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
            process.stderr.close()
            return process.returncode == -signal.SIGKILL
        time.sleep(0.002)
    out, err = process.communicate(timeout=5)
    pytest.fail(f"the moment was never seen; exit {process.returncode}: {out} {err}")


@pytest.mark.slow
def test_killed_anywhere_same_bits(mmdit) -> None:
    untouched = mmdit(*TRAIN, "--root", "untouched")
    assert untouched.returncode == 0, untouched.stderr
    killed = mmdit.folder / "killed"
    for name, reached in MOMENTS:
        assert kill_when(mmdit.start(*TRAIN, "--root", "killed"), lambda at=reached: at(killed)), name
        assert not (run_dir(killed) / "result.json").exists(), name
    with (run_dir(killed) / "events.jsonl").open("ab") as events:
        events.write(b'{"event": "train", "st')  # a line torn by a kill in the middle of a write
    finished = mmdit(*TRAIN, "--root", "killed")
    assert finished.returncode == 0, finished.stderr
    ours, theirs = (
        (run_dir(killed) / "result.json").read_bytes(),
        (run_dir(mmdit.folder / "untouched") / "result.json").read_bytes(),
    )
    assert ours == theirs
    result = json.loads(ours)
    assert len(result["params_sha256"]) == 64
    assert [point["step"] for point in result["curve"]] == [10, 20, 30, 40]
    again = mmdit(*TRAIN, "--root", "killed")
    assert again.returncode == 0
    assert (run_dir(killed) / "result.json").read_bytes() == ours


@pytest.mark.slow
def test_sigterm_saves_and_exits_75(mmdit) -> None:
    root = mmdit.folder / "studies"
    process = mmdit.start(*TRAIN, "--set", "steps=4000", "--set", "hardware.checkpoint_every=4000")
    deadline = time.monotonic() + 120
    while last_step(run_dir(root)) < 80 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    events = [event for event in read_events(run_dir(root)) if event["event"] == "preempted"]
    assert len(events) == 1
    saved = [item.name for item in (run_dir(root) / "checkpoints").iterdir()]
    assert saved == [str(events[0]["step"])]


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_then_refuses(mmdit) -> None:
    root = mmdit.folder / "studies"
    assert mmdit(*TRAIN).returncode == 0
    folder = run_dir(root)
    expected = (folder / "result.json").read_bytes()
    (folder / "result.json").unlink()
    backup = mmdit.folder / "backup"
    shutil.copytree(folder, backup)
    truncate(folder / "checkpoints" / "40")
    resumed = mmdit(*TRAIN)
    assert resumed.returncode == 0, resumed.stderr
    assert "passed over" in resumed.stderr
    assert (folder / "result.json").read_bytes() == expected

    shutil.rmtree(folder)
    shutil.copytree(backup, folder)
    for step in (30, 40):
        truncate(folder / "checkpoints" / str(step))
    before = sorted(str(item) for item in folder.rglob("*"))
    refused = mmdit(*TRAIN)
    assert refused.returncode == 2, refused.stderr
    told = [line for line in refused.stderr.splitlines() if line.startswith("mmdit: ")]
    assert len(told) == 1 and "checkpoint=" in told[0] and "delete" in told[0]
    assert sorted(str(item) for item in folder.rglob("*") if item.name != "lock") == [
        x for x in before if not x.endswith("/lock")
    ]


def truncate(checkpoint: Path) -> None:
    """Halve the largest file of a checkpoint."""
    largest = max((item for item in checkpoint.rglob("*") if item.is_file()), key=lambda item: item.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
