"""This machine: a supervisor in the background that starts runs as cores, memory and GPUs allow, and again on 75."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.executors.after import mark_cancelled
from launch.executors.job import FOLDER, GRACE_SECONDS, QUEUED, RUNNING, Job, Live
from mmdit_jax.errors import UserError
from mmdit_jax.files import write_atomic
from mmdit_jax.locks import unheld


@dataclass(frozen=True)
class Local:
    """What of this machine may be used; None: all of it."""

    at_once: int | None = None
    """Runs at a time, at most."""
    cores: int | None = None
    memory_gib: float | None = None
    grace_seconds: int = GRACE_SECONDS
    """Between SIGTERM and SIGKILL where runs are cancelled."""

    def __post_init__(self) -> None:
        for name in ("at_once", "cores", "memory_gib"):
            value = vars(self)[name]
            if value is not None and not value > 0:
                raise UserError(f"{name}={value}: expected more than 0")
        if self.grace_seconds < 0:
            raise UserError(f"grace={self.grace_seconds}: expected 0 or more seconds")


def host_cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def host_memory_gib() -> float:
    """This machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def host_gpus() -> list[str]:
    """This machine's GPUs, as CUDA_VISIBLE_DEVICES names them: those it names, else all."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [item.strip() for item in given.split(",")]
        return list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))  # as CUDA reads it
    try:
        told = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(told.splitlines()) if line.startswith("GPU")]


def render(job: Job, local: Local) -> str:
    """What would be started, as a shell would: for people."""
    count = job.machine.processes
    lines = []
    for run in job.runs:
        for number in range(count):
            told = {} if count == 1 else variables("127.0.0.1:PORT", count, number)
            words = [f"{name}={value}" for name, value in told.items()]
            lines.append(" ".join([*words, shlex.join(job.command), shlex.quote(run)]))
    return "\n".join(lines) + "\n"


def variables(coordinator: str, count: int, number: int) -> dict[str, str]:
    """What tells a process that it is one of several (see ``mmdit_jax.processes``)."""
    return {"MMDIT_COORDINATOR": coordinator, "MMDIT_PROCESSES": str(count), "MMDIT_PROCESS": str(number)}


class LocalEngine:
    """Supervisors of this machine that were started for a study; they outlive whoever submitted."""

    name = "local"

    def __init__(self, study_dir: Path, local: Local) -> None:
        self._folder, self._local = study_dir, local

    def render(self, job: Job) -> str:
        return render(job, self._local)

    def check(self, job: Job) -> None:
        _check(job, self._local)

    def found_by(self) -> dict[str, Any]:
        return {}

    def submit(self, job: Job) -> str:
        """Start a supervisor; its name."""
        folder = self._folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "logs").mkdir(exist_ok=True)
        name = f"local-{job.name}-{time.time_ns()}"
        machine = {**asdict(job.machine), "target": None, "chips_per_node": job.machine.chips_per_node}
        spec = {**asdict(job), "machine": machine, "local": asdict(self._local)}
        path = folder / f"{name}.json"
        write_atomic(path, json.dumps(spec, indent=1))
        with (self._folder / "logs" / f"{name}.log").open("ab") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "launch.executors.supervise", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90  # nvidia-smi may take a minute
        while not _held(path):  # until then nobody would know that its runs are in hands
            if supervisor.poll() == 0:  # there was little to do
                break
            if supervisor.poll() is not None or time.monotonic() > deadline:
                supervisor.kill()
                raise UserError(f"executor='local': the supervisor did not start; see {log.name}")
            time.sleep(0.02)
        return f"local:{supervisor.pid}"

    def live(self) -> Mapping[str, Live]:
        """Runs that wait or run under a supervisor that lives, by run id."""
        found: dict[str, Live] = {}
        for path in sorted((self._folder / FOLDER).glob("local-*.json")):
            if path.name.endswith(".state.json") or not _held(path):
                continue
            if state_path(path).exists():
                states: dict[str, dict[str, str]] = json.loads(state_path(path).read_text())
            else:  # it has only begun
                states = {run: {"state": QUEUED, "where": ""} for run in json.loads(path.read_text())["runs"]}
            for run, told in states.items():
                if told["state"] in (QUEUED, RUNNING):
                    found[run] = Live(told["state"], told["where"], str(path))
        return found

    def states(self) -> Mapping[str, Live]:
        """As ``live``: what ended is in the runs' own events."""
        return self.live()

    def cancel(self, runs: Sequence[str]) -> list[str]:
        """Ask their supervisors to end these runs; those that were in somebody's hands."""
        live = {run: item for run, item in self.live().items() if run in runs}
        for run in live:
            mark_cancelled(self._folder / run)
        for handle in {item.handle for item in live.values()}:
            chosen = [run for run in live if live[run].handle == handle]
            write_atomic(Path(handle).with_suffix(f".{time.time_ns()}-{os.getpid()}.cancel"), json.dumps(chosen))
        return list(live)


def state_path(spec: Path) -> Path:
    """Where a supervisor tells what becomes of its runs."""
    return spec.with_suffix(".state.json")


def taken_cancels(spec: Path) -> list[str]:
    """Which of its runs a supervisor was told to end, since it last asked; a file each time they are told."""
    chosen: list[str] = []
    for path in sorted(spec.parent.glob(f"{spec.stem}.*.cancel")):
        chosen += json.loads(path.read_text())
        path.unlink()
    return chosen


def hold(spec: Path) -> int:
    """The lock by which others see that a supervisor lives: the kernel gives it back however that ends."""
    handle = os.open(spec, os.O_RDWR)  # on NFS a lock that excludes others takes a file that may be written
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _held(spec: Path) -> bool:
    with unheld(spec) as free:
        return not free


def _check(job: Job, local: Local) -> None:
    """Refuse what would never start."""
    machine = job.machine
    if machine.nodes > 1:
        raise UserError(f"nodes={machine.nodes}: expected 1 with executor='local'; slurm and k8s start runs on several")
    if machine.target is not None and machine.target.is_tpu:
        raise UserError(
            f"topology={machine.target.name!r}: expected GPUs of this machine, or none, with executor='local'"
        )
    cores = min(len(host_cores()), local.cores or len(host_cores()))
    needed = machine.processes * (machine.cpus_per_process or 1)
    if needed > cores:
        raise UserError(f"cpus={machine.cpus_per_process}: {needed} cores a run, of {cores}; give fewer")
    if machine.chips_per_node > (there := len(host_gpus()) if machine.chips_per_node else 0):
        assert machine.target is not None
        raise UserError(f"topology={machine.target.name!r}: {machine.chips_per_node} GPUs, of {there} here; give fewer")
    memory = host_memory_gib() if local.memory_gib is None else local.memory_gib
    if machine.memory_gib is not None and machine.memory_gib > memory:
        raise UserError(
            f"memory={machine.memory_gib:g}: a run of {machine.memory_gib:g} GiB, of {memory:.1f}; give less"
        )
