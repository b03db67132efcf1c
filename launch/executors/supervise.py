"""The supervisor of one local submission: ``python -m launch.executors.supervise SPEC``; imports no JAX.

Takes SIGTERM as the end of all its runs: they save, and wait for another submission.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from launch.executors.after import ended
from launch.executors.local import (
    hold,
    host_cores,
    host_gpus,
    host_memory_gib,
    state_path,
    taken_cancels,
    variables,
)
from mmdit_jax.files import write_atomic

_TICK = 0.1
STRAGGLER_SECONDS = 15.0
"""How long the processes of a run have to end after one of them has: together, if all is well."""
_LONGEST_WAIT = 60.0


@dataclass
class _Run:
    """A run and, while there are any, its processes."""

    run_id: str
    state: str = "queued"
    where: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    cores: list[int] = field(default_factory=list)
    gpus: dict[str, int] = field(default_factory=dict)
    """With the locks that claim them."""
    not_before: float = 0.0
    restarts: int = 0
    first_end: float | None = None
    told_to_end: float | None = None


class Supervisor:
    """Runs in their order, as many at a time as there is room for."""

    def __init__(self, spec_path: Path) -> None:
        self._path = spec_path
        self._lock = hold(spec_path)
        spec: dict[str, Any] = json.loads(spec_path.read_text())
        self._spec, self._machine, self._local = spec, spec["machine"], spec["local"]
        self._folder = Path(spec["folder"])
        self._runs = [_Run(run_id) for run_id in spec["runs"]]
        cores = host_cores()
        self._cores = cores if self._local["cores"] is None else cores[: self._local["cores"]]
        self._gpus = host_gpus() if self._machine["chips_per_node"] else []
        self._memory = host_memory_gib() if self._local["memory_gib"] is None else self._local["memory_gib"]
        self._logs: dict[str, IO[bytes]] = {}
        self._stopping = False
        signal.signal(signal.SIGTERM, self._stop)
        self._tell()

    def work(self) -> int:
        """Until no run is left; the exit code."""
        while any(run.state in ("queued", "running") for run in self._runs):
            self._cancel()
            for run in self._runs:
                if run.state == "running":
                    self._look(run)
                elif run.state == "queued" and time.monotonic() >= run.not_before and self._room():
                    self._start(run)
            time.sleep(_TICK)
        return 0

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _room(self) -> bool:
        running = [run for run in self._runs if run.state == "running"]
        most = self._local["at_once"] or len(self._runs)
        memory = self._machine["memory_gib"] or 0.0
        enough_memory = (len(running) + 1) * memory <= self._memory
        return len(running) < most and enough_memory and len(self._free_cores()) >= self._cores_a_run()

    def _cores_a_run(self) -> int:
        count = self._machine["nodes"] * self._machine["processes_per_node"]
        if self._machine["cpus_per_process"] is not None:
            return int(count * self._machine["cpus_per_process"])
        # A fair share for each of those that may run at a time, and one a process at least.
        at_once = min(self._local["at_once"] or 1, len(self._runs))
        return int(min(len(self._cores), max(count, len(self._cores) // at_once)))

    def _free_cores(self) -> list[int]:
        taken = {core for run in self._runs if run.state == "running" for core in run.cores}
        return [core for core in self._cores if core not in taken]

    def _start(self, run: _Run) -> None:
        count = self._machine["nodes"] * self._machine["processes_per_node"]
        run.cores = self._free_cores()[: self._cores_a_run()]
        each = self._machine["chips_per_node"]
        claimed = _claimed(self._gpus, each)
        if claimed is None:
            return
        run.gpus = claimed
        coordinator = f"127.0.0.1:{_free_port()}"
        # Whoever submitted may itself have been one of several processes.
        inherited = ("MMDIT_DISTRIBUTED", *variables("", 0, 0))
        told = {name: value for name, value in os.environ.items() if name not in inherited}
        told["MMDIT_JOB"] = f"local:{os.getpid()}"
        if each:
            told["CUDA_VISIBLE_DEVICES"] = ",".join(run.gpus)
        run.processes = []
        run.first_end, run.told_to_end = None, None
        try:
            for number in range(count):
                own = {} if count == 1 else variables(coordinator, count, number)
                if each and count > 1:
                    share = each // count
                    own["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(number * share, (number + 1) * share)))
                log = self._log(run, number)
                run.processes.append(
                    subprocess.Popen(
                        [*self._spec["command"], run.run_id],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env={**told, **own},
                        start_new_session=True,
                        preexec_fn=_pinned(run.cores),
                        pass_fds=tuple(run.gpus.values()),  # should this supervisor be gone, theirs they stay
                    )
                )
        except OSError as error:
            print(f"{run.run_id}: could not be started: {error}", flush=True)
            _send(run, signal.SIGKILL)
            if not run.processes:
                run.state = "stop"
                _release(run)
                self._tell()
                return
        run.state = "running"
        run.where = f"{socket.gethostname()} pid {run.processes[0].pid}"
        self._tell()

    def _look(self, run: _Run) -> None:
        codes = [process.poll() for process in run.processes]
        now = time.monotonic()
        if any(code is not None for code in codes) and run.first_end is None:
            run.first_end = now
        if any(code is None for code in codes):
            late = run.first_end is not None and now - run.first_end > STRAGGLER_SECONDS
            if late or (run.told_to_end is not None and now - run.told_to_end > self._local["grace_seconds"]):
                _send(run, signal.SIGKILL)
            return
        found = [code if code >= 0 else 128 - code for code in codes if code is not None]
        # What one of them says of the run goes before what became of the others meanwhile.
        told = [code for code in found if 0 < code < 128]
        code = told[0] if told else max(found)
        _release(run)
        for number in range(len(run.processes)):
            if (log := self._logs.pop(f"{run.run_id}.{number}.log", None)) is not None:
                log.close()
        try:
            verdict = ended(self._folder / run.run_id, code, self._spec["retries"])
        except Exception as error:  # a disk may be full, a store away: no reason to leave the other runs alone
            print(f"{run.run_id}: its end could not be noted: {error}", flush=True)
            verdict = "stop"
        again = verdict == "again" and run.told_to_end is None
        if again and code != 75:
            run.restarts += 1
            run.not_before = now + min(_LONGEST_WAIT, 2.0 ** min(run.restarts, 10) / 2)
        run.state = "queued" if again else verdict if run.told_to_end is None else "cancelled"
        print(f"{run.run_id}: exit code {code}, {run.state}", flush=True)
        self._tell()

    def _cancel(self) -> None:
        chosen = taken_cancels(self._path)
        for run in self._runs:
            if not self._stopping and run.run_id not in chosen:
                continue
            if run.state == "queued":
                run.state = "cancelled"
                self._tell()
            elif run.state == "running" and run.told_to_end is None:
                run.told_to_end = time.monotonic()
                _send(run, signal.SIGTERM)

    def _log(self, run: _Run, number: int) -> IO[bytes]:
        name = f"{run.run_id}.{number}.log"
        if name not in self._logs:
            self._logs[name] = (self._folder / "logs" / name).open("ab")
        return self._logs[name]

    def _tell(self) -> None:
        states = {run.run_id: {"state": run.state, "where": run.where} for run in self._runs}
        try:
            write_atomic(state_path(self._path), json.dumps(states, indent=1))
        except OSError as error:  # a full disk is no reason to leave the runs alone
            print(f"{state_path(self._path)}: {error}", flush=True)


def _send(run: _Run, number: int) -> None:
    for process in run.processes:
        if process.poll() is None:
            if number == signal.SIGKILL:  # with its children, whom nothing else would tell
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            else:
                process.send_signal(number)


def _claimed(gpus: list[str], count: int) -> dict[str, int] | None:
    """So many of these GPUs that no other run on this machine has, with their locks; None: there are not.

    Supervisors know nothing of one another: the kernel does.
    """
    if not count:
        return {}
    folder = Path(tempfile.gettempdir()) / f"mmdit-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found: dict[str, int] = {}
    for gpu in gpus:
        if len(found) == count:
            break
        handle = os.open(folder / f"{re.sub('[^A-Za-z0-9-]', '_', gpu)}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found[gpu] = handle
        except BlockingIOError:
            os.close(handle)
    if len(found) == count:
        return found
    for handle in found.values():
        os.close(handle)
    return None


def _release(run: _Run) -> None:
    for handle in run.gpus.values():
        fcntl.flock(handle, fcntl.LOCK_UN)  # whoever else has inherited it
        os.close(handle)
    run.gpus = {}


def _pinned(cores: list[int]) -> Any:
    def pin() -> None:
        os.sched_setaffinity(0, cores)

    return pin


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(Supervisor(Path(sys.argv[1])).work())
