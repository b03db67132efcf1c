"""The supervisor of one local submission: ``python -m launch.executors.supervise SPEC``; imports no JAX.

Takes SIGTERM as the end of all its runs: they save, and wait for another submission.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from launch.executors.after import ended
from launch.executors.local import cancel_path, hold, host_cores, host_memory_gib, state_path, variables
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
    gpus: list[str] = field(default_factory=list)
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
        self._gpus = _gpus() if self._machine["chips_per_node"] else []
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
        taken = {gpu for other in self._runs if other.state == "running" for gpu in other.gpus}
        run.gpus = [gpu for gpu in self._gpus if gpu not in taken][:each]
        if len(run.gpus) < each:
            return
        coordinator = f"127.0.0.1:{_free_port()}"
        told = {"MMDIT_JOB": f"local:{os.getpid()}"}
        if each:
            told["CUDA_VISIBLE_DEVICES"] = ",".join(run.gpus)
        run.processes = []
        for number in range(count):
            own = {} if count == 1 else variables(coordinator, count, number)
            if each and count > 1:
                own["JAX_LOCAL_DEVICE_IDS"] = str(number)
            log = self._log(run, number)
            run.processes.append(
                subprocess.Popen(
                    [*self._spec["command"], run.run_id],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **told, **own},
                    start_new_session=True,
                    preexec_fn=_pinned(run.cores),
                )
            )
        run.state, run.first_end, run.told_to_end = "running", None, None
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
        verdict = ended(self._folder / run.run_id, code, self._spec["retries"])
        again = verdict == "again" and run.told_to_end is None
        if again and code != 75:
            run.restarts += 1
            run.not_before = now + min(_LONGEST_WAIT, 2.0**run.restarts / 2)
        run.state = "queued" if again else verdict if run.told_to_end is None else "cancelled"
        print(f"{run.run_id}: exit code {code}, {run.state}", flush=True)
        self._tell()

    def _cancel(self) -> None:
        path = cancel_path(self._path)
        chosen: list[str] = []
        if path.exists():
            chosen = json.loads(path.read_text())
            path.unlink()
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
        write_atomic(state_path(self._path), json.dumps(states, indent=1))


def _send(run: _Run, number: int) -> None:
    for process in run.processes:
        if process.poll() is None:
            process.send_signal(number)


def _pinned(cores: list[int]) -> Any:
    def pin() -> None:
        os.sched_setaffinity(0, cores)

    return pin


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them: those it names, else all."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [item.strip() for item in given.split(",") if item.strip()]
    try:
        told = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(told.splitlines()) if line.startswith("GPU")]


if __name__ == "__main__":
    sys.exit(Supervisor(Path(sys.argv[1])).work())
