"""Processes that a test starts, alone or as those of one run: their ends are collected, and none outlives the test."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

Group = Sequence[subprocess.Popen[str]]


class End(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def one_run(count: int) -> list[dict[str, str]]:
    """Variables of each of ``count`` processes that are one run."""
    shared = {"MMDIT_COORDINATOR": f"127.0.0.1:{free_port()}", "MMDIT_PROCESSES": str(count)}
    return [{**shared, "MMDIT_PROCESS": str(number)} for number in range(count)]


class Processes:
    """Starts processes and keeps them in mind, until ``kill``."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, command: Sequence[str], variables: Mapping[str, str], cwd: Path | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """One process, with ``variables`` besides those of this one; its stdout and stderr are pipes."""
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        self._started.append(process)
        return process

    def ends(self, group: Group, seconds: float = 120.0) -> list[End]:
        """How each of them ended, all within ``seconds``. All are read at once: none waits for room in a pipe."""
        late = []

        def end(process: subprocess.Popen[str]) -> End:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                late.append(process.pid)
                process.kill()
                out, err = process.communicate(timeout=30)
            return End(process.returncode, out, err)

        with ThreadPoolExecutor(len(group)) as pool:
            found = list(pool.map(end, group))
        assert not late, f"killed after {seconds:g} s: {found}"
        return found

    def until(self, group: Group, reached: Callable[[], object], seconds: float = 120.0) -> None:
        """Return when it is so, which must be while all of the group live."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert all(process.poll() is None for process in group), self.ends(group, 30.0)
            assert time.monotonic() < deadline, f"not within {seconds:g} s"
            time.sleep(0.02)

    def kill(self) -> None:
        """End all that are left, by their pids."""
        for process in self._started:
            process.kill()  # does nothing to one that has ended
        for process in self._started:
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
