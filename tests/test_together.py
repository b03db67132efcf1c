"""A run of several real processes: the same numbers as one, and what becomes of it when they are stopped or fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import fake_devices

from mmdit_jax.training.events import read_events

STUDY = '''
"""A run that trains in a second; late steps are slow, or the second process hangs, where a file says so."""
import time
from pathlib import Path
import jax
from mmdit_jax.config import *
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.models import MMDiTConfig
from mmdit_jax.training.program import Solo

STEP = Solo.step

def hangs_for_ever():
    while True:
        time.sleep(1)

def step(self, state, batch, shift=0):
    number, first = int(state.step), jax.process_index() == 0
    if first:
        Path("step").write_text(str(number))
    if number >= 12 and Path("slow").exists():
        time.sleep(0.3)
    if not first and Path("hang").exists() and number == int(Path("hang").read_text()):
        hangs_for_ever()
    return STEP(self, state, batch, shift)

Solo.step = step

def study():
    data = DataConfig(name="scenes", examples=64, validation_examples=8, text_encoders=("tower",))
    context, pooled = text_widths(data.text_encoders)
    model = MMDiTConfig.from_depth(
        1, head_size=16, patch_size=8, in_channels=3, context_dim=context, pooled_dim=pooled, position_table=8
    )
    run = Run(
        name="rf", formulation="rf", model=model, data=data, batch=8, steps=24, validate_every=8,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, ema_decay=0.9),
        evaluation=EvaluationConfig(prompts_per_task=1, sampler=SamplerConfig(steps=1)),
        hardware=HardwareConfig(checkpoint_every=8),
    )
    return Study("tiny", (run,))
'''

LIMIT = 60_000
FULL = (
    "-c",
    f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT})); "
    "runpy.run_module('launch.cli', run_name='__main__')",
)
"""``python -m launch.cli`` on a disk that is full: writes beyond the limit fail."""

Ends = list[tuple[int, str, str]]
"""(exit code, stdout, stderr) by process."""


class Together:
    """``mmdit train`` in several processes at a time, in a folder of its own."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self._cache = folder, cache
        (folder / "tiny.py").write_text(STUDY)
        self._started: list[subprocess.Popen[str]] = []

    def start(self, count: int, root: str, *args: str, limited: int | None = None) -> list[subprocess.Popen[str]]:
        """All processes of an attempt; the files that number ``limited`` writes end at ``LIMIT`` bytes."""
        for name in ("step", "slow", "hang"):
            (self.folder / name).unlink(missing_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {**os.environ, **fake_devices(1), "JAX_COMPILATION_CACHE_DIR": str(self._cache)}
        # Programs are small: without this JAX keeps none of them.
        shared |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "MMDIT_HEARTBEAT_SECONDS": "10"}
        if count > 1:
            shared |= {"MMDIT_COORDINATOR": f"127.0.0.1:{port}", "MMDIT_PROCESSES": str(count)}
        command = ["train", "tiny.py", "--run", "rf", "--quiet", "--root", root, "--data-dir", "data", *args]
        group = []
        told: dict[str, str] = {}
        for number in range(count):
            if count > 1:
                told = {"MMDIT_PROCESS": str(number)}
            with (self.folder / f"out{number}").open("w") as out, (self.folder / f"err{number}").open("w") as err:
                group.append(
                    subprocess.Popen(
                        [sys.executable, *(FULL if number == limited else ("-m", "launch.cli")), *command],
                        cwd=self.folder,
                        env={**shared, **told},
                        stdout=out,
                        stderr=err,
                        text=True,
                    )
                )
        self._started += group
        return group

    def finish(self, group: list[subprocess.Popen[str]], seconds: float = 240) -> Ends:
        """How each of them ended."""
        deadline = time.monotonic() + seconds
        for process in group:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        said = [[(self.folder / f"{kind}{i}").read_text() for kind in ("out", "err")] for i in range(len(group))]
        return [(process.returncode, out, err) for process, (out, err) in zip(group, said, strict=True)]

    def __call__(self, count: int, root: str, *args: str, limited: int | None = None) -> Ends:
        return self.finish(self.start(count, root, *args, limited=limited))

    def run_dir(self, root: str) -> Path:
        (found,) = (self.folder / root / "tiny").glob("rf-*")
        return found

    def result(self, root: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir(root) / "result.json").read_text())
        return found

    def at_step(self, group: list[subprocess.Popen[str]], step: int) -> None:
        """Return while step ``step``, or one soon after it, is being taken: the slow ones wait for it."""
        (self.folder / "slow").touch()
        self.until(group, lambda: (self.folder / "step").exists() and int(self._note() or 0) >= step)

    def until(self, group: list[subprocess.Popen[str]], reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 150
        while not reached():
            assert all(process.poll() is None for process in group), self.finish(group)
            assert time.monotonic() < deadline, "the moment was never seen"
            time.sleep(0.005)

    def _note(self) -> str:
        return (self.folder / "step").read_text()

    def close(self) -> None:
        for process in self._started:
            process.kill()  # does nothing to one that has ended
            process.wait()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, compile_cache: Path) -> Iterator[Together]:
    """With the run untouched in ``one``, by one process, and in ``two``, by two."""
    found = Together(tmp_path_factory.mktemp("together"), compile_cache)
    try:
        for count, root in ((1, "one"), (2, "two")):
            ends = found(count, root)
            assert [code for code, _, _ in ends] == [0] * count, ends
            told = [line for _, out, _ in ends for line in out.splitlines() if line.endswith("result.json")]
            assert told == [str(Path(root) / "tiny" / found.run_dir(root).name / "result.json")]  # once
        yield found
    finally:
        found.close()


def same_numbers(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Of other numbers of processes: sums in another order."""
    assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-6)
    assert [point["step"] for point in found["curve"]] == [point["step"] for point in expected["curve"]] == [8, 16, 24]
    for ours, theirs in zip(found["curve"], expected["curve"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["levels"] == pytest.approx(theirs["levels"], rel=1e-5)


def own_lines(err: str) -> list[str]:
    assert "Traceback" not in err, err
    return [line for line in err.splitlines() if line.startswith("mmdit: ")]


def saved(folder: Path) -> list[int]:
    """Steps with a finished checkpoint."""
    return sorted(int(item.name) for item in (folder / "checkpoints").iterdir() if item.name.isdigit())


def aborted(code: int) -> bool:
    """By a signal or with a code that engines take for infrastructure."""
    return code >= 128 or code in (-signal.SIGABRT, -signal.SIGALRM)


@pytest.mark.slow
def test_two_processes_are_as_one(together: Together) -> None:
    same_numbers(together.result("two"), together.result("one"))
    told = list(read_events(together.run_dir("two")))
    assert [event["processes"] for event in told if event["event"] in ("attempt", "start")] == [2, 2]
    steps = [event["step"] for event in told if event["event"] == "validation"]
    assert steps == [8, 16, 24]  # process 0 alone writes
    saved = together.run_dir("two") / "checkpoints" / "24"
    sums = [json.loads(path.read_text()) for path in saved.glob("checksums.*.json")]
    assert [item["processes"] for item in sums] == [2, 2]
    assert not (together.run_dir("two") / "stacks").exists()


@pytest.mark.slow
def test_every_fault_in_turn_and_the_same_bits(together: Together) -> None:
    """One attempt after another at one run of two processes; the last ends as if nothing had been."""
    root = "faults"

    # SIGTERM, to the second alone.
    group = together.start(2, root)
    together.at_step(group, 12)
    group[1].send_signal(signal.SIGTERM)
    ends = together.finish(group)
    assert [code for code, _, _ in ends] == [75, 75], ends
    folder = together.run_dir(root)
    (preempted,) = [event["step"] for event in read_events(folder) if event["event"] == "preempted"]
    assert 12 < preempted < 24
    for _, _, err in ends:
        assert own_lines(err) == [f"mmdit: rf: stopped by SIGTERM at step {preempted}, saved; run again to go on"]
    assert saved(folder) == [*(step for step in (8, 16) if step < preempted), preempted][-2:]  # two are kept
    shutil.copytree(together.folder / root, together.folder / "counts")  # for the test below

    # One is gone.
    group = together.start(2, root)
    together.at_step(group, preempted + 1)
    begun = time.monotonic()
    group[1].kill()
    (code, _, err), (killed, _, _) = together.finish(group)
    assert killed == -signal.SIGKILL and aborted(code), (code, err)
    assert time.monotonic() - begun < 40  # of heartbeats of 10 s, on a busy machine

    # Meanwhile the newest checkpoint is damaged, so they begin at the one before; then one of them hangs.
    before, newest = saved(folder)
    weights = max((folder / "checkpoints" / str(newest)).rglob("*"), key=lambda item: item.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    group = together.start(2, root, "--hang-seconds", "8")
    (together.folder / "hang").write_text(str(before + 2))
    ends = together.finish(group)
    assert all(aborted(code) for code, _, _ in ends), ends
    assert ends[1][0] == -signal.SIGALRM
    assert f"{folder / 'checkpoints' / str(newest)}: damaged, passed over" in ends[0][2]
    assert "damaged" not in ends[1][2]  # said once
    starts = [event["step"] for event in read_events(folder) if event["event"] == "start"]
    assert starts == [0, preempted, before]
    assert "in hangs_for_ever\n" in (folder / "stacks" / "attempt3-process1.txt").read_text()

    # The disk of the second is full, where both write: weights are spread over them.
    ends = together(2, root, "--set", "hardware.fsdp=2", limited=1)
    assert [code for code, _, _ in ends] == [2, 2], ends
    for _, _, err in ends:
        (line,) = own_lines(err)
        assert re.fullmatch(r"mmdit: root=.*checkpoints: disk full while saving a checkpoint; free space .*", line)
    assert [event["event"] for event in read_events(folder)][-1] == "refused"
    assert saved(folder) == [before]

    # One is stopped, and does not come back before the other has given up.
    group = together.start(2, root)
    together.at_step(group, max(13, before + 2))
    group[1].send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    group[0].wait(timeout=60)
    assert aborted(group[0].returncode), (together.folder / "err0").read_text()
    group[1].send_signal(signal.SIGCONT)
    group[1].wait(timeout=60)
    assert aborted(group[1].returncode)

    ends = together(2, root)
    assert [code for code, _, _ in ends] == [0, 0], ends
    ours, theirs = (together.run_dir(name) / "result.json" for name in (root, "two"))
    assert ours.read_bytes() == theirs.read_bytes()
    kinds = [event["event"] for event in read_events(folder)]
    assert kinds.count("attempt") == 6 and kinds.count("preempted") == kinds.count("done") == 1


@pytest.mark.slow
def test_two_then_one_then_four(together: Together) -> None:
    """Goes on with what the test before has left by two processes."""
    root = "counts"
    if not (together.folder / root).exists():
        group = together.start(2, root)
        together.at_step(group, 12)
        group[0].send_signal(signal.SIGTERM)
        assert [code for code, _, _ in together.finish(group)] == [75, 75]
    (began,) = [event["step"] for event in read_events(together.run_dir(root)) if event["event"] == "preempted"]
    group = together.start(1, root)
    together.at_step(group, began + 1)
    group[0].send_signal(signal.SIGTERM)
    ((code, _, err),) = together.finish(group)
    assert code == 75, err
    ends = together(4, root)
    assert [code for code, _, _ in ends] == [0] * 4, ends
    same_numbers(together.result(root), together.result("one"))
    told = [(event["processes"], event["step"]) for event in read_events(together.run_dir(root)) if "mesh" in event]
    assert [processes for processes, _ in told] == [2, 1, 4]
    assert 0 == told[0][1] < told[1][1] == began < told[2][1] < 24


@pytest.mark.slow
def test_sigterm_before_and_after_training_loses_nothing(together: Together) -> None:
    root, data = "early", together.folder / "early-data"
    args = ("--data-dir", str(data))
    group = together.start(1, root, *args)
    together.until(group, lambda: data.exists() and any(data.iterdir()))
    group[0].send_signal(signal.SIGTERM)
    ((code, _, err),) = together.finish(group, 20)
    line = "mmdit: rf {} training: stopped by SIGTERM, nothing is lost; run again to go on"
    assert code == 75 and own_lines(err) == [line.format("before")]
    assert [event["event"] for event in read_events(together.run_dir(root))] == ["attempt"]

    def over() -> bool:
        return any(event["event"] == "left" for event in read_events(together.run_dir(root)))

    group = together.start(1, root, *args)
    together.until(group, over)
    time.sleep(0.1)  # past what follows the last step
    group[0].send_signal(signal.SIGTERM)
    ((code, _, err),) = together.finish(group, 20)
    assert code == 75 and own_lines(err) == [line.format("after")]
    assert not (together.run_dir(root) / "result.json").exists()
    ((code, _, err),) = together(1, root, *args)
    assert code == 0, err
    assert together.result(root) == together.result("one")
    starts = [event["step"] for event in read_events(together.run_dir(root)) if event["event"] == "start"]
    assert starts == [0, 24]
