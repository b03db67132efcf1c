"""What an engine is given: one run on a machine, or several small ones that wait in one line; standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from launch.planning.target import Target

FOLDER = "jobs"
"""Of a study's folder: what each engine needs of the jobs that it was ever given, by their names."""
GRACE_SECONDS = 300
"""Between SIGTERM and SIGKILL: what a checkpoint of the largest model may take."""


@dataclass(frozen=True)
class Machine:
    """What one run is given. ``target`` as ``--topology`` names it; None: CPUs alone."""

    target: Target | None = None
    nodes: int = 1
    """Hosts of a run, those of all slices together. Of a TPU a host is a virtual machine."""
    processes_per_node: int = 1
    cpus_per_process: int | None = None
    memory_gib: float | None = None
    """Of a host, for all its processes; None: the engine's default."""

    @property
    def processes(self) -> int:
        """Of a run."""
        return self.nodes * self.processes_per_node

    @property
    def chips_per_node(self) -> int:
        """Accelerators of a host; 0 of CPUs."""
        if self.target is None:
            return 0
        return math.prod(self.target.shape) * self.target.slices // self.nodes


@dataclass(frozen=True)
class Job:
    """One run, or an array of small ones that differ in nothing but their id.

    ``command`` starts one process of a run; the run's id follows as its last word. The words are plain: whoever renders
    them quotes them for the shell, or gives them as a list.
    """

    name: str
    """Of the job in the engine: lower-case letters, digits and hyphens, at most 52; the same for the same runs under
    the same root, and for no others."""
    study: str
    """The study's name."""
    runs: tuple[str, ...]
    """Run ids."""
    command: tuple[str, ...]
    folder: str
    """Of the study, ``ROOT/<study>``, as hosts of the engine see it."""
    after: tuple[str, ...] = ()
    """Starts ``launch.executors.after``, where an engine can't tell exit codes apart by itself; run directory, exit
    code and ``retries`` follow."""
    machine: Machine = Machine()
    retries: int = 3
    """How often a run is started again after its infrastructure failed; preemptions don't count."""
    at_once: int | None = None
    """Of an array, how many runs at most run at a time."""


QUEUED, RUNNING, ENDED = "queued", "running", "ended"
"""How a run stands with an engine."""


@dataclass(frozen=True)
class Live:
    """A run that an engine has in its hands, or, ``ENDED``, remembers to have had."""

    state: str
    where: str
    """The engine's name of it, and its hosts, or why it waits or has ended: for people."""
    handle: str
    """What the engine cancels it by."""
    ended: float | None = None
    """When it did, in seconds since 1970, where the engine tells."""


def in_hands(told: Mapping[str, Live]) -> dict[str, Live]:
    """Of an engine's runs those that wait or run."""
    return {run_id: item for run_id, item in told.items() if item.state != ENDED}
