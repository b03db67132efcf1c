"""Which runs of a study train side by side in one program."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from launch.places import Places
from mmdit_jax.config import Run
from mmdit_jax.errors import UserError
from mmdit_jax.training.checkpoint import saved_steps
from mmdit_jax.training.events import read_events
from mmdit_jax.training.replicas import alone_on_a_device, program_key


def groups(runs: Sequence[Run], places: Places, replicas: int) -> list[list[Run]]:
    """``runs`` in groups of up to ``replicas`` that share a program and a step to go on from, in order of their first.

    Of runs that were stopped at different steps, those furthest behind come first, with all that can start there too.
    A run that is trained, or has diverged, or is sharded over devices, is a group of its own.

    Raises:
        UserError: several replicas are asked of several processes.
    """
    if replicas == 1:
        return [[run] for run in runs]
    if jax.process_count() > 1:
        raise UserError(f"replicas={replicas}: expected 1 with {jax.process_count()} processes")
    found: list[list[Run]] = []
    steps = {run.run_id: saved_steps(places.run_dir(run)) or [0] for run in runs}
    waiting = list(runs)
    while waiting:
        first = waiting[0]
        alike = [first]
        if _trainable(first, places, steps[first.run_id]):
            key = program_key(first)
            alike = [run for run in waiting if program_key(run) == key and _trainable(run, places, steps[run.run_id])]
        start = min(steps[run.run_id][-1] for run in alike)
        group = [run for run in alike if start in steps[run.run_id]][:replicas]
        found.append(group)
        waiting = [run for run in waiting if run not in group]
    return found


def _trainable(run: Run, places: Places, steps: Sequence[int]) -> bool:
    """Whether the run has steps left to take, and can take them beside others."""
    diverged = any(event["event"] == "diverged" for event in read_events(places.run_dir(run)))
    return steps[-1] < run.steps and alone_on_a_device(run.hardware) and not diverged
