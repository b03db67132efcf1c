"""A Slurm with a study on it, what scenarios need to do to both, and what became of a run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import Cluster
from study_of_faults import EVERY, begun_path, study

from launch.attempts import attempts
from launch.cli import main as command_line
from mmdit_jax.training.events import read_events

PATIENCE = 400.0
"""Seconds for anything to happen: all runs share two cores."""
HERE = Path(__file__).resolve().parent


@dataclass
class Outcome:
    """What became of a run."""

    run: str
    attempts: int
    steps_lost: int
    """That were begun and had to be begun again: counted by the study, since a killed run tells nothing of its last."""
    ends: list[str]
    """How each attempt ended: an event's word, or its exit code."""
    result: dict[str, Any] | None
    notes: str = ""


class Lab:
    """A cluster, a study's folder on it, and what the scenarios need to do to both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cluster = folder, Cluster(folder / "slurm")
        # The name of the root is to be quoted, too.
        self.root = folder / "it's a root $(touch pwned)"
        self.study = self.root / "study.py"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MMDIT"))},
            **self.cluster.environment,
            "JAX_PLATFORMS": "cpu",
            "WANDB_MODE": "disabled",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "MMDIT_HEARTBEAT_SECONDS": "15",
            "FAULTS_FOLDER": str(folder),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        self.run_ids = {run.name: run.run_id for run in study().runs}
        self._speaking = threading.Lock()

    def start(self) -> None:
        self.root.mkdir(parents=True)
        shutil.copy(HERE / "study_of_faults.py", self.study)
        self.cluster.start()
        os.environ.update(self.environment)

    def mmdit(self, *words: str) -> str:
        """What a command says; in this process, which saves the time of starting one."""
        out = io.StringIO()
        with self._speaking, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = command_line([*words, "--root", str(self.root)])
        assert code == 0, out.getvalue()
        return out.getvalue()

    def submit(self, name: str, *options: str) -> str:
        """Give a run to Slurm; what the command said."""
        return self.mmdit(*self.words(name), *options)

    def words(self, name: str) -> list[str]:
        """The command that submits a run, but for the root."""
        given = ["--cpus", "1", "--grace", "10", "--hang-seconds", "15", "--quiet"]
        return ["study", "submit", str(self.study), "--executor", "slurm", "--only", name, *given]

    def run_dir(self, name: str) -> Path:
        return self.root / "faults" / self.run_ids[name]

    def events(self, name: str) -> list[dict[str, Any]]:
        return list(read_events(self.run_dir(name)))

    def saved(self, name: str) -> int:
        """The step of the newest checkpoint that is complete."""
        found = self.run_dir(name) / "checkpoints"
        return max((int(path.parent.name) for path in found.glob("*/checksums.0.json")), default=0)

    def until(self, reached: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := reached()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
            time.sleep(0.05)
        return found

    def ranks(self, name: str) -> dict[int, int]:
        """The run's processes, by their number."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                if b"launch.cli" not in words or self.run_ids[name].encode() not in words or b"srun" in words[0]:
                    continue
                told = dict(
                    item.split(b"=", 1) for item in (path / "environ").read_bytes().split(b"\0") if b"=" in item
                )
                if b"SLURM_PROCID" in told:
                    found[int(told[b"SLURM_PROCID"])] = int(path.name)
        return found

    def in_the_middle(self, name: str, after: int = 2 * EVERY) -> dict[int, int]:
        """Wait until the run has saved step ``after`` and is some steps further; its processes."""
        self.until(
            lambda: (saved := self.saved(name)) >= after and max(self.begun(name)) >= saved + 2, f"{name}: step {after}"
        )
        return self.ranks(name)

    def begun(self, name: str) -> list[int]:
        """The steps that the run has begun, some more than once."""
        path = begun_path(name)
        return [int(line) for line in path.read_text().split()] if path.exists() else [0]

    def end(self, name: str, attempts: int | None = None) -> Outcome:
        """Wait until the run is done, after so many attempts; None: more than one, or nothing was survived."""
        self.until(lambda: (self.run_dir(name) / "result.json").exists(), f"{name}: result")
        self.until(lambda: self.events(name)[-1]["event"] == "ended", f"{name}: end of the job")
        found = self.outcome(name)
        assert found.attempts == attempts if attempts else found.attempts > 1, found
        return found

    def outcome(self, name: str, notes: str = "") -> Outcome:
        events = self.events(name)
        begun = self.begun(name)
        history = attempts(events)
        ends = [item.end if item.code in (None, 0) or item.end else f"exit {item.code}" for item in history]
        path = self.run_dir(name) / "result.json"
        result = json.loads(path.read_text()) if path.exists() else None
        return Outcome(name, len(history), len(begun) - len(set(begun)), [str(end) for end in ends], result, notes)


def same(outcome: Outcome, reference: Outcome) -> str:
    """How the run's end compares with an untouched one of as many processes: ``same bits``, or how its loss differs."""
    if outcome.result is None or reference.result is None:
        return "no result"
    keys = ("val_loss", "val_loss_levels", "curve", "params_sha256", "ema_sha256")
    if all(outcome.result[key] == reference.result[key] for key in keys):
        return "same bits"
    found, expected = outcome.result["val_loss"], reference.result["val_loss"]
    return f"loss differs by {abs(found - expected) / expected:.1e}"
