"""The supervisor of one local submission: ``python -m launch.executors.supervise SPEC``; imports no JAX.

Takes SIGTERM as the end of all its runs: they save, and wait for another submission.
"""

from __future__ import annotations

import contextlib
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
from launch.executors.claims import Claim, Claims, Need
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
    claim: Claim = field(default_factory=lambda: Claim([], []))
    """What it has of the machine."""
    not_before: float = 0.0
    restarts: int = 0
    first_end: float | None = None
    told_to_end: float | None = None


class Supervisor:
    """Runs in their order, as many at a time as there is room for."""

    def __init__(self, spec_path: Path) -> None:
        self._path = spec_path
        spec: dict[str, Any] = json.loads(spec_path.read_text())
        self._spec, self._machine, self._local = spec, spec["machine"], spec["local"]
        self._folder = Path(spec["folder"])
        self._runs = [_Run(run_id) for run_id in spec["runs"]]
        self._cores = host_cores()
        self._most_cores = min(self._local["cores"] or len(self._cores), len(self._cores))
        self._gpus = host_gpus() if self._machine["chips_per_node"] else []
        if len(self._gpus) < self._machine["chips_per_node"]:  # it would wait for ever, and have others wait
            sys.exit(f"{len(self._gpus)} GPUs here, of {self._machine['chips_per_node']} that a run needs")
        self._lock = hold(spec_path)
        self._memory = host_memory_gib() if self._local["memory_gib"] is None else self._local["memory_gib"]
        self._claims = Claims(spec["folder"])
        self._logs: dict[str, IO[bytes]] = {}
        self._stopping = False
        signal.signal(signal.SIGTERM, self._stop)
        self._tell()

    def work(self) -> int:
        """Until no run is left; the exit code."""
        while any(run.state in ("queued", "running") for run in self._runs):
            self._cancel()
            for run in self._running():
                self._look(run)
            self._start_more()
            time.sleep(_TICK)
        return 0

    def _running(self) -> list[_Run]:
        return [run for run in self._runs if run.state == "running"]

    def _start_more(self) -> None:
        """As many as there is room for; one that others leave no room for waits, and all behind it."""
        for run in self._runs:
            if run.state != "queued" or time.monotonic() < run.not_before:
                continue
            if not self._room():
                break
            claim = self._claims.claim(run.run_id, self._need(), idle=not self._running())
            if claim is None:
                self._tell_waiting(run)
                return
            self._start(run, claim)
        self._claims.give_up()

    def _tell_waiting(self, run: _Run) -> None:
        why = self._claims.waits_for
        if why and why != run.where:
            if not run.where.startswith("waits for"):
                print(f"{run.run_id}: {why}", flush=True)
            run.where = why
            self._tell()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _room(self) -> bool:
        """Whether one more would be within what this submission may have, one at least; others are not asked here."""
        count = len(self._running()) + 1
        most = self._local["at_once"] or len(self._runs)
        memory = self._machine["memory_gib"] or 0.0
        within = count * memory <= self._memory and count * self._cores_a_run() <= self._most_cores
        return count == 1 or (count <= most and within)

    def _need(self) -> Need:
        """Of one more run, of what this supervisor's own don't have."""
        cores = {core for run in self._running() for core in run.claim.cores}
        gpus = {gpu for run in self._running() for gpu in run.claim.gpus}
        return Need(
            cores=self._cores_a_run(),
            of_cores=[core for core in self._cores if core not in cores],
            gpus=self._machine["chips_per_node"],
            of_gpus=[gpu for gpu in self._gpus if gpu not in gpus],
            memory_gib=self._machine["memory_gib"] or 0.0,
            of_gib=host_memory_gib(),
        )

    def _cores_a_run(self) -> int:
        count = self._machine["nodes"] * self._machine["processes_per_node"]
        if self._machine["cpus_per_process"] is not None:
            return int(min(self._most_cores, count * self._machine["cpus_per_process"]))
        # A fair share for each of those that may run at a time, and one a process at least.
        at_once = min(self._local["at_once"] or 1, len(self._runs))
        return int(min(self._most_cores, max(count, self._most_cores // at_once)))

    def _start(self, run: _Run, claim: Claim) -> None:
        count = self._machine["nodes"] * self._machine["processes_per_node"]
        each = self._machine["chips_per_node"]
        run.claim = claim
        coordinator = f"127.0.0.1:{_free_port()}"
        # Whoever submitted may itself have been one of several processes.
        inherited = ("MMDIT_DISTRIBUTED", *variables("", 0, 0))
        told = {name: value for name, value in os.environ.items() if name not in inherited}
        told["MMDIT_JOB"] = f"local:{os.getpid()}"
        if each:
            told["CUDA_VISIBLE_DEVICES"] = ",".join(claim.gpus)
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
                        preexec_fn=_pinned(claim.cores),
                        pass_fds=claim.handles,
                    )
                )
        except (OSError, subprocess.SubprocessError) as error:  # the latter where it can't be pinned
            print(f"{run.run_id}: could not be started: {error}", flush=True)
            _send(run, signal.SIGKILL)
            if not run.processes:
                run.state = "stop"
                claim.release()
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
        run.claim.release()
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
