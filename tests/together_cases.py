"""A run of several real processes, of a study whose trouble is switched on by files."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import fake_devices
from process_group import End, Group, Processes, one_run

from mmdit_jax.training.events import read_events

STUDY = '''
"""A run that trains in a second. A file's presence makes late steps or drawing slow, the second process hang, or see
files late."""
import time
from pathlib import Path
import jax
import mmdit_jax.evaluation.sampling as sampling
import mmdit_jax.training.checkpoint as checkpoint
import mmdit_jax.training.member as member
from mmdit_jax.config import *
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.models import MMDiTConfig
from mmdit_jax.training.program import Solo
from orbax.checkpoint.checkpoint_manager import CheckpointManager

STEP, PAUSE, LISTED, WRONG = Solo.step, sampling.pause, CheckpointManager._load_checkpoint_infos, checkpoint.wrong_file
VALIDATE, LAST = member.validation_loss, [0]
BEGAN, SHOWN = time.monotonic(), {}

def hangs_for_ever():
    while True:
        time.sleep(1)

def step(self, state, batch, shift=0):
    number, first = int(state.step), jax.process_index() == 0
    LAST[0] = number
    if first:
        Path("step").write_text(str(number))
    if number >= 12 and Path("slow").exists():
        time.sleep(0.3)
    if not first and Path("hang").exists() and number == int(Path("hang").read_text()):
        hangs_for_ever()
    return STEP(self, state, batch, shift)

def pause():
    if Path("drawing").exists():
        Path("drawn").touch()
        time.sleep(float(Path("drawing").read_text()))
    PAUSE()

def validation_loss(*args, **kwargs):
    if Path("validating").exists() and LAST[0] >= 23:
        Path("validated").touch()
        time.sleep(float(Path("validating").read_text()))
    return VALIDATE(*args, **kwargs)

def late():
    """After how many seconds the second process sees what the first has changed, as on NFS."""
    return float(Path("late").read_text()) if Path("late").exists() and jax.process_index() else 0.0

def listed(self, *args, **kwargs):
    real = LISTED(self, *args, **kwargs)
    shown, since = SHOWN.setdefault(str(self.directory), ([], time.monotonic()))
    if [item.step for item in real] == [item.step for item in shown] or time.monotonic() - since >= late():
        SHOWN[str(self.directory)] = real, time.monotonic()
        return real
    return shown

def wrong_file(folder, *args):
    if time.monotonic() - BEGAN < late():
        return "state/_METADATA", "No such file or directory"
    return WRONG(folder, *args)

Solo.step, sampling.pause, CheckpointManager._load_checkpoint_infos = step, pause, listed
checkpoint.wrong_file, member.validation_loss = wrong_file, validation_loss
if Path("patience").exists():
    checkpoint.STALE_SECONDS = float(Path("patience").read_text())

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

SWITCHES = ("slow", "hang", "validating", "drawing", "late", "patience")
"""Files beside the study: late steps are slow; the second hangs at this step; the last validation, or drawing, takes so
many seconds more; the second sees changes so many seconds late; how long the first waits for it."""
NOTES = ("step", "validated", "drawn")
"""Files that the study writes: the step being taken; that the last validation, or drawing, has begun."""
LIMIT = 60_000
SMALL = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT})); "
MAIN = "import runpy; runpy.run_module('launch.cli', run_name='__main__')"
FULL = ("-c", SMALL + MAIN)
"""``python -m launch.cli`` on a disk that is full: writes beyond the limit fail."""
FILLS = (
    "-c",
    "import contextlib, mmdit_jax.training.checkpoint as c; c.room = lambda *_: contextlib.nullcontext(); "
    + SMALL
    + MAIN,
)
"""On one that fills after space was set aside."""


class Together:
    """``mmdit train`` in several processes at a time, in a folder of its own."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self._cache, self._processes = folder, cache, Processes()
        (folder / "tiny.py").write_text(STUDY)

    def start(
        self, count: int, root: str, *args: str, second: tuple[str, ...] = ("-m", "launch.cli"), **switches: float
    ) -> Group:
        """All processes of an attempt, the second by another program where one is given, with trouble switched on."""
        for name in (*SWITCHES, *NOTES):
            (self.folder / name).unlink(missing_ok=True)
        for name, value in switches.items():
            assert name in SWITCHES
            (self.folder / name).write_text(str(value))
        shared = {**fake_devices(1), "JAX_COMPILATION_CACHE_DIR": str(self._cache)}
        # Programs are small: without this JAX keeps none of them.
        shared |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "MMDIT_HEARTBEAT_SECONDS": "10"}
        words = ["train", "tiny.py", "--run", "rf", "--quiet", "--root", root, "--data-dir", "data", *args]
        each = one_run(count) if count > 1 else [{}]
        programs = [second if number == 1 else ("-m", "launch.cli") for number in range(count)]
        return [
            self._processes.start([sys.executable, *program, *words], {**shared, **told}, self.folder)
            for program, told in zip(programs, each, strict=True)
        ]

    def finish(self, group: Group, seconds: float = 240) -> list[End]:
        """How each of them ended."""
        return self._processes.ends(group, seconds)

    def __call__(
        self, count: int, root: str, *args: str, second: tuple[str, ...] = ("-m", "launch.cli"), **switches: float
    ) -> list[End]:
        return self.finish(self.start(count, root, *args, second=second, **switches))

    def run_dir(self, root: str) -> Path:
        (found,) = (self.folder / root / "tiny").glob("rf-*")
        return found

    def result(self, root: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir(root) / "result.json").read_text())
        return found

    def at_step(self, group: Group, step: int) -> None:
        """Return while step ``step``, or one soon after it, is being taken: the slow ones wait for it."""
        (self.folder / "slow").touch()
        self.until(group, lambda: (self.folder / "step").exists() and int(self._note() or 0) >= step)

    def until(self, group: Group, reached: Callable[[], object]) -> None:
        self._processes.until(group, reached, 150)

    def _note(self) -> str:
        return (self.folder / "step").read_text()

    def close(self) -> None:
        self._processes.kill()


def trained_by_one_and_two(folder: Path, cache: Path) -> Together:
    """With the run untouched in ``one``, by one process, and in ``two``, by two."""
    found = Together(folder, cache)
    for count, root in ((1, "one"), (2, "two")):
        ends = found(count, root)
        assert [end.code for end in ends] == [0] * count, ends
        told = [line for end in ends for line in end.out.splitlines() if line.endswith("result.json")]
        assert told == [str(Path(root) / "tiny" / found.run_dir(root).name / "result.json")]  # once
    return found


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


def kinds(folder: Path) -> list[str]:
    return [event["event"] for event in read_events(folder)]


def saved(folder: Path) -> list[int]:
    """Steps with a finished checkpoint."""
    return sorted(int(item.name) for item in (folder / "checkpoints").iterdir() if item.name.isdigit())


def aborted(code: int) -> bool:
    """By a signal or with a code that engines take for infrastructure."""
    return code >= 128 or code in (-signal.SIGABRT, -signal.SIGALRM)
