"""What runs have of this machine, cores, memory and GPUs: files that the kernel locks; standard library only.

Supervisors know nothing of one another, a folder of their user's does. What a run has is a file there, locked while one
of its processes lives, however that or its supervisor ends; a file that nobody locks counts for nothing. A run takes
all that it needs at once, or nothing: nobody waits with something in its hands. A supervisor that has no run and waits
says so in a file of the same kind, and what it needs is left to it by those that came later, or have runs. So each has
its turn, also one that needs the whole machine beside one with many small runs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_HAS, _WAITS = "has", "waits"
"""Ends of the files' names."""
PATIENCE = 60.0
"""Seconds after which nothing is left any more to a supervisor that was stopped while it waits in line."""


@dataclass(frozen=True)
class Need:
    """Of one run: how many, and of which it may be given."""

    cores: int
    of_cores: list[int]
    gpus: int
    of_gpus: list[str]
    memory_gib: float
    of_gib: float
    """The machine's memory. What needs more runs where nobody else has any."""


@dataclass
class Claim:
    """What a run has, until it is released."""

    cores: list[int]
    gpus: list[str]
    path: Path | None = None
    handles: tuple[int, ...] = ()
    """The lock, which the run's processes inherit: should their supervisor be gone, it stays theirs."""

    def release(self) -> None:
        """Others may have it, whoever else has inherited the lock."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        for handle in self.handles:
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)
        self.handles = ()


@dataclass
class _Free:
    """What nobody has, as one supervisor sees it."""

    cores: list[int]
    gpus: list[str]
    gib: float
    others_gib: float
    """What others have, or is left to them."""
    lacking: list[str] = field(default_factory=list)

    def leave(self, told: dict[str, Any]) -> None:
        """To one that needs this, as much of it as there is."""
        cores = [core for core in told["of_cores"] if core in self.cores][: told["cores"]]
        gpus = [gpu for gpu in told["of_gpus"] if gpu in self.gpus][: told["gpus"]]
        self.cores = [core for core in self.cores if core not in cores]
        self.gpus = [gpu for gpu in self.gpus if gpu not in gpus]
        gib = min(told["memory_gib"], max(self.gib, 0.0))
        self.gib, self.others_gib = self.gib - gib, self.others_gib + gib

    def suffices(self, need: Need) -> bool:
        short = {
            "cores": len(self.cores) < need.cores,
            "memory": need.memory_gib > max(self.gib, 0.0) and self.others_gib > 0.0,
            "GPUs": len(self.gpus) < need.gpus,
        }
        self.lacking = [name for name, is_short in short.items() if is_short]
        return not self.lacking


class Claims:
    """Those of one supervisor, among all of its user's on this machine."""

    def __init__(self, whose: str, folder: Path | None = None) -> None:
        """``whose``: said to others that wait for it; the folder of a study."""
        self._whose = whose
        # Not by tempfile, which goes elsewhere when the disk is full.
        place = Path(os.environ.get("TMPDIR") or "/tmp")
        self._folder = folder or place / f"mmdit-claims-{os.getuid()}-{_machine()}"
        self._name = f"{os.getpid()}-{time.time_ns()}"
        self._turn: Claim | None = None
        self._since, self._seen = math.inf, 0.0
        self._count = 0
        self.waits_for = ""
        """Whom the last ``claim`` that got nothing waits for; empty: nobody else."""

    def claim(self, run_id: str, need: Need, *, idle: bool) -> Claim | None:
        """All that the run needs; None: it is not to be had just now.

        Args:
          run_id: which.
          need: what of.
          idle: whether the supervisor has no run, and so waits in turn with others like it.
        """
        try:
            with self._alone() as alone:
                return self._claim(run_id, need, idle) if alone else None
        except OSError as error:  # a foreign /tmp is no reason to train nothing
            if len(need.of_cores) < need.cores or len(need.of_gpus) < need.gpus:
                return None  # this supervisor's own runs have them
            return self._unseen(run_id, need.of_cores[: need.cores], need.of_gpus[: need.gpus], error)

    def _unseen(self, run_id: str, cores: list[int], gpus: list[str], error: OSError) -> Claim:
        print(f"{self._folder}: {error}; {run_id} starts without a claim that others see", flush=True)
        return Claim(cores, gpus)

    def give_up(self) -> None:
        """Nothing is waited for any more."""
        self.waits_for = ""
        if self._turn is not None:
            self._turn.release()
            self._turn, self._since = None, math.inf

    def _claim(self, run_id: str, need: Need, idle: bool) -> Claim | None:
        has = self._living(_HAS)
        waiting = [told for told in self._living(_WAITS, PATIENCE) if told["by"] != self._name]
        others = [told for told in has if told["by"] != self._name]
        taken = {item for told in has for item in (*told["cores"], *told["gpus"])}  # numbers and names
        free = _Free(
            cores=[core for core in need.of_cores if core not in taken],
            gpus=[gpu for gpu in need.of_gpus if gpu not in taken],
            gib=need.of_gib - sum(told["memory_gib"] for told in has),
            others_gib=sum(told["memory_gib"] for told in others),
        )
        elders = [told for told in waiting if not idle or told["since"] < self._since]
        for told in elders:
            free.leave(told["need"])
        if free.suffices(need):
            self.give_up()
            cores, gpus = free.cores[: need.cores], free.gpus[: need.gpus]
            try:
                return self._write(_HAS, cores, gpus, who=f"{self._whose}/{run_id}", memory_gib=need.memory_gib)
            except OSError as error:  # nor is a full one
                return self._unseen(run_id, cores, gpus, error)
        before = [told["who"] for told in others if _has_of(told, need, free.lacking)]
        before += [told["who"] for told in elders]
        more = f" and {len(before) - 1} more" if len(before) > 1 else ""
        self.waits_for = f"waits for {' and '.join(free.lacking)}, after {before[0]}{more}" if before else ""
        if idle:
            with contextlib.suppress(OSError):  # then it waits out of line
                self._wait(need)
        return None

    def _wait(self, need: Need) -> None:
        """In line, from the first time on; others want to see now and then that it goes on."""
        if self._turn is None:
            since = time.time_ns()
            self._turn = self._write(_WAITS, [], [], who=self._whose, since=since, need=asdict(need))
            self._since, self._seen = since, time.monotonic()
        elif time.monotonic() - self._seen > PATIENCE / 10:
            os.utime(self._turn.handles[0])
            self._seen = time.monotonic()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other looks at the folder just now; none does until the block ends, if so."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise OSError("not a folder of ours")
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            alone = True
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alone = False
            yield alone
        finally:
            os.close(handle)

    def _living(self, kind: str, patience: float = math.inf) -> list[dict[str, Any]]:
        """What files say that somebody locks, and has touched within ``patience``; unlocked ones are taken away."""
        found = []
        for path in sorted(self._folder.glob(f"*.{kind}")):
            with contextlib.suppress(FileNotFoundError), path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                except BlockingIOError:
                    if time.time() - os.fstat(file.fileno()).st_mtime < patience:
                        found.append(json.load(file))
        return found

    def _write(self, kind: str, cores: list[int], gpus: list[str], **told: Any) -> Claim:
        self._count += 1
        path = self._folder / f"{self._name}-{self._count}.{kind}"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        claim = Claim(cores, gpus, path, (handle,))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            text = json.dumps({"by": self._name, "cores": cores, "gpus": gpus, **told}).encode()
            if os.write(handle, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            claim.release()
            raise
        return claim


def _machine() -> str:
    """Hosts may share TMPDIR, and containers a host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return socket.gethostname()


def _has_of(told: dict[str, Any], need: Need, lacking: list[str]) -> bool:
    """Whether it has something of that which lacks."""
    return (
        ("cores" in lacking and not set(need.of_cores).isdisjoint(told["cores"]))
        or ("GPUs" in lacking and not set(need.of_gpus).isdisjoint(told["gpus"]))
        or ("memory" in lacking and told["memory_gib"] > 0)
    )
