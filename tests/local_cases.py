"""This machine's supervisor with real processes that stand for ``mmdit train``, in a folder of a test's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.executors.job import Job, Machine
from launch.executors.local import Local, LocalEngine, host_cores
from mmdit_jax.training.events import read_events

RUN = '''
"""Stands for `mmdit train`: FOLDER RUN; does what FOLDER/RUN.json says of this attempt, and notes what it sees."""
import json, os, signal, subprocess, sys, time

folder, run = sys.argv[1:]
number = int(os.environ.get("MMDIT_PROCESS", "0"))
mark = f"{folder}/{run}.{number}.attempts"
attempt = os.path.getsize(mark) if os.path.exists(mark) else 0
open(mark, "a").write("x")
plan = json.load(open(f"{folder}/{run}.json"))
step = plan[min(attempt, len(plan) - 1)]
code = step.get("codes", [step.get("code", 0)] * 9)[number]
notes = open(f"{folder}/notes", "a")


def note(what, **more):
    told = {"what": what, "run": run, "number": number, "at": time.monotonic(), **more}
    print(json.dumps(told), file=notes, flush=True)


def event(kind, **more):
    if number == 0:
        os.makedirs(f"{folder}/study/{run}", exist_ok=True)
        with open(f"{folder}/study/{run}/events.jsonl", "a") as events:
            print(json.dumps({"event": kind, "time": time.time(), **more}), file=events)


def term(*_):
    note("term")
    if step.get("term") != "ignored":
        event("preempted", step=7)
        sys.exit(75)


signal.signal(signal.SIGTERM, term)
event("attempt", attempt=attempt + 1)
seen = {name: value for name, value in os.environ.items() if name.startswith(("MMDIT_", "CUDA_", "JAX_LOCAL"))}
child = subprocess.Popen(["sleep", "600"]).pid if step.get("child") else None
note("start", attempt=attempt, pid=os.getpid(), child=child, seen=seen, cores=sorted(os.sched_getaffinity(0)))
until = time.monotonic() + step.get("seconds", 0.0)
while time.monotonic() < until:
    time.sleep(0.02)
if code == 0 and number == 0:
    open(f"{folder}/study/{run}/result.json", "w").write("{}")
note("end")
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
'''


class Lab:
    """A study's folder, with engines whose runs are the script above."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.study = folder, folder / "study"
        self.study.mkdir(parents=True)
        (folder / "run.py").write_text(RUN)
        self.supervisors: list[int] = []

    def job(self, plans: dict[str, list[dict[str, Any]]], machine: Machine | None = None, **changes: Any) -> Job:
        """Runs, and what each attempt of them does (the last: all that follow)."""
        for run, plan in plans.items():
            (self.folder / f"{run}.json").write_text(json.dumps(plan))
        command = (sys.executable, "-S", "-E", str(self.folder / "run.py"), str(self.folder))
        machine = machine or Machine(cpus_per_process=1)
        return Job("job", "study", tuple(plans), command, str(self.study), machine=machine, **changes)

    def submit(self, job: Job, options: Local | None = None) -> LocalEngine:
        engine = LocalEngine(self.study, options or Local())
        engine.check(job)
        self.supervisors.append(int(engine.submit(job).removeprefix("local:")))
        return engine

    def finish(self, job: Job, options: Local | None = None, seconds: float = 60.0) -> None:
        """Submit, and wait until its supervisor has none of them in its hands."""
        engine = self.submit(job, options)
        self.until(lambda: not engine.live(), seconds)

    def until(self, reached: Callable[[], Any], seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := reached()):
            assert time.monotonic() < deadline, f"{self.notes()}\n{self.logs()}"
            time.sleep(0.02)
        return found

    def notes(self, what: str | None = None, run: str | None = None) -> list[dict[str, Any]]:
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [item for item in found if what in (None, item["what"]) and run in (None, item["run"])]

    def states(self) -> dict[str, str]:
        """As the supervisors last told."""
        paths = sorted((self.study / "jobs").glob("*.state.json"))
        return {run: told["state"] for path in paths for run, told in json.loads(path.read_text()).items()}

    def ends(self, run: str) -> list[tuple[int, str]]:
        """What the supervisor noted in the run's events."""
        events = read_events(self.study / run)
        return [(event["code"], event["verdict"]) for event in events if event["event"] == "ended"]

    def logs(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()}" for path in (self.study / "logs").glob("*"))

    def most_at_once(self) -> int:
        """By the processes' own clocks."""
        changes = [(item["at"], 1 if item["what"] == "start" else -1) for item in self.notes()]
        running = most = 0
        for _, change in sorted(changes):
            running += change
            most = max(most, running)
        return most

    def close(self) -> None:
        """End what a failed test has left, by its process ids."""
        pids = [pid for item in self.notes("start") for pid in (item["pid"], item["child"]) if pid]
        for pid in (*self.supervisors, *(pid for pid in pids if is_ours(pid, self.folder))):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def lab_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A lab; what runs have of this machine is claimed in it: nothing of other tests'."""
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = Lab(folder)
    try:
        yield made
    finally:
        made.close()


def is_alive(pid: int) -> bool:
    """Whether it runs: one that has ended and that nobody asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_ours(pid: int, folder: Path) -> bool:
    try:
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def install_gpus(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them, as nvidia-smi lists them."""
    (lab.folder / "bin").mkdir()
    lines = "".join(f"GPU {i}: NVIDIA H100 (UUID: GPU-{i})\n  MIG 1g.10gb Device 0\n" for i in range(4))
    (lab.folder / "gpus").write_text("".join(line for line in lines.splitlines(keepends=True) if "MIG" not in line))
    program = lab.folder / "bin" / "nvidia-smi"
    program.write_text(f'#!/bin/bash\n[ "$*" = --list-gpus ] && cat {lab.folder}/gpus\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def gpus_of(item: dict[str, Any]) -> list[str]:
    return item["seen"]["CUDA_VISIBLE_DEVICES"].split(",")


two_cores = pytest.mark.skipif(len(host_cores()) < 2, reason="needs two cores")
LONG = {"seconds": 60.0}
