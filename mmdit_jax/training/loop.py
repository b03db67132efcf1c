"""The training loop: one visible order of operations, from the newest checkpoint to the last step."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmdit_jax.config import Run
from mmdit_jax.config_values import to_dict
from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import Diverged, Preempted, UserError
from mmdit_jax.host import sigterm_noted
from mmdit_jax.models.attention import attention_kind, capability
from mmdit_jax.models.frame import unrolls
from mmdit_jax.sharding import platform
from mmdit_jax.training.best import Best
from mmdit_jax.training.checkpoint import Checkpoints
from mmdit_jax.training.clean import sides
from mmdit_jax.training.data import TrainingData
from mmdit_jax.training.events import EventLog
from mmdit_jax.training.meter import InFlight, Meter, Sides, Values
from mmdit_jax.training.peak import Peak, measured_peak
from mmdit_jax.training.program import Program, Solo, mesh_of
from mmdit_jax.training.progress import Progress
from mmdit_jax.training.replicas import Replicas
from mmdit_jax.training.state import TrainState, abstract_state, init_state
from mmdit_jax.training.validation import validation_loss
from mmdit_jax.training.wandb_log import WandbLog


class Apart(UserError):
    """Runs that were to train together have no step in common that all of them can go on from."""


def train(run: Run, run_dir: Path, data: TrainingData, *, project: str, quiet: bool = False) -> TrainState:
    """Train ``run`` to its last step, from its newest checkpoint where there is one.

    Writes events.jsonl and checkpoints/ under ``run_dir``, and best/ where ``evaluation.at`` asks for it.

    Raises:
        Diverged: a loss or gradient that is not finite; the message names the step and the t bins.
        Preempted: after SIGTERM, with the state saved.
        UserError: no checkpoint is readable, a disk is full, or the batch does not divide over the devices.
    """
    program = Solo(run, mesh_of(run))
    state, (diverged,) = _train(program, [run_dir], data, project, quiet)
    if diverged is not None:
        raise diverged
    return state


def train_together(
    runs: Sequence[Run], run_dirs: Sequence[Path], data: TrainingData, *, project: str, quiet: bool = False
) -> list[Diverged | None]:
    """Train runs of one ``program_key`` side by side, from the newest checkpoint that all of them have.

    Each leaves in its own folder what ``train`` would, equal to it but for rounding. Returns which of them diverged;
    that stops none of the others.

    Raises:
        Apart: a checkpoint is damaged, and the runs would start at different steps. Nothing was trained.
        Preempted, UserError: as ``train``.
    """
    return _train(Replicas(runs), run_dirs, data, project, quiet)[1]


def _train(
    program: Program, run_dirs: Sequence[Path], data: TrainingData, project: str, quiet: bool
) -> tuple[TrainState, list[Diverged | None]]:
    first, mesh = program.runs[0], program.mesh  # lengths and intervals are the same for all
    if first.hardware.onednn:  # known, documented, and said again at each start by JAX's compilation cache
        warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry for 'jit_step'")
    main = jax.process_index() == 0
    with contextlib.ExitStack() as closing:
        checkpoints = [Checkpoints(run_dir, first.hardware.keep_checkpoints) for run_dir in run_dirs]
        for item in checkpoints:
            closing.callback(item.close)
        peak = measured_peak(first.model.dtype)  # while the device's memory is free
        start, state = _first_state(program, checkpoints)
        if start == first.steps:
            return state, [None] * len(program.runs)
        machine: dict[str, Any] = {"devices": mesh.size, "platform": jax.default_backend(), "cores": os.cpu_count()}
        costs = first.step_flops(first.data.resolution, first.data.resolution)
        machine |= {**dataclasses.asdict(peak), "step_flops": costs[0], "step_flops_6nd": costs[1]}
        blocks = "unrolled" if unrolls(first.model) else "scanned"
        machine |= {"mesh": dict(mesh.shape), "attention": _attention(first), "blocks": blocks}
        if len(program.runs) > 1:
            machine["replicas"] = len(program.runs)
        members = []
        for index, run_dir in enumerate(run_dirs):
            member = _Member(program, index, run_dir, checkpoints[index], project, peak, main)
            closing.callback(member.close)
            member.events.write("start", step=start, **machine)
            members.append(member)
        progress = Progress(_names(program), first.steps, enabled=main and not quiet)
        closing.callback(progress.close)
        axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "1 device"
        progress.say(
            f"from step {start} on {peak.device_kind}: {axes}, attention {machine['attention']}, blocks {blocks}"
        )

        in_flight, batches = InFlight(), program.batches(data, start)
        compiled: set[Any] = set()

        def read(*, everything: bool = False) -> None:
            for number, shape, values in in_flight.take(everything=everything):
                told = [member.read(number, shape, values) for member in _alive(members)]
                if any(told):
                    progress.show(number, [item for item in told if item])

        with sigterm_noted() as terminated:
            for step in range(start, first.steps):
                batch = next(batches)
                shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
                if shapes not in compiled:  # the first of its bucket waits for the compiler: it alone is not timed
                    compiled.add(shapes)
                    read(everything=True)
                    for member in members:
                        member.meter.pause()
                # Metrics of a step come from the weights before its update.
                state, metrics = program.step(state, batch)
                done = step + 1
                in_flight.add(done, sides(batch), metrics)
                read()
                last = done == first.steps
                if last or done % first.validate_every == 0:
                    read(everything=True)
                    for member in _alive(members):
                        member.validate(done, state, data)
                    for member in members:
                        member.meter.pause()
                if last or terminated() or done % first.hardware.checkpoint_every == 0:
                    read(everything=True)  # never save a state whose loss was not looked at
                    for member in _alive(members):
                        member.save(done, state)
                if not _alive(members):
                    break
                if terminated() and not last:
                    for member in _alive(members):
                        member.preempted(done)
                    raise Preempted(f"{_names(program)}: stopped by SIGTERM at step {done}, saved; run again to go on")
    return state, [member.diverged for member in members]


def _first_state(program: Program, checkpoints: Sequence[Checkpoints]) -> tuple[int, TrainState]:
    """The state to go on from, and its step: of one run the newest, of several the newest that all have."""
    common = None if len(checkpoints) == 1 else max(set.intersection(*({0, *item.steps()} for item in checkpoints)))
    found = []
    for item, run, home in zip(checkpoints, program.runs, program.homes, strict=True):
        shape, offload = (run.model, run.optimizer, run.steps), run.hardware.offload
        saved = item.restore(abstract_state(*shape, home, offload), upto=common)
        found.append(saved or (0, init_state(*shape, run.seed, home, offload)))
    steps = {step for step, _ in found}
    if len(steps) > 1:
        raise Apart(f"{_names(program)}: would start at different steps ({', '.join(map(str, sorted(steps)))})")
    return steps.pop(), program.join([state for _, state in found])


def _attention(run: Run) -> str:
    """The attention that the run's steps take."""
    model = run.model
    return attention_kind(model.attention, model.dtype, platform(), model.head_size, capability())


def _names(program: Program) -> str:
    more = len(program.runs) - 1
    return f"{program.runs[0].name} and {more} more" if more else program.runs[0].name


class _Member:
    """One of the runs in the loop, with all that it writes."""

    def __init__(
        self,
        program: Program,
        index: int,
        folder: Path,
        checkpoints: Checkpoints,
        project: str,
        peak: Peak,
        main: bool,
    ) -> None:
        self._program, self._index, self._run = program, index, program.runs[index]
        self._formulation, self._checkpoints = formulation(self._run.formulation), checkpoints
        self._best = Best(folder) if self._run.evaluation.at == "best" else None
        self.events = EventLog(folder, enabled=main)
        run = self._run
        wandb = WandbLog(folder, project, run.run_id, run.name, to_dict(run)) if main else None
        self.meter = Meter(run, self.events, wandb, peak)
        self.diverged: Diverged | None = None

    def read(self, step: int, shape: Sides, values: Values) -> dict[str, float] | None:
        """Take in the metrics of a step; every so often returns what the progress line shows."""
        with self._watched():
            return self.meter.read(step, shape, self._program.metrics_of(self._index, values))
        return None

    def validate(self, step: int, state: TrainState, data: TrainingData) -> None:
        """Measure and tell the validation loss, and keep the state if it is the best so far."""
        program, begun = self._program, time.perf_counter()
        ema, layout = program.ema_of(self._index, state), self._run.data.text_layout
        levels = validation_loss(
            self._run.model, ema, self._formulation, data.held_out, mesh=program.mesh, layout=layout
        )
        with self._watched():
            loss = self.meter.validated(step, levels, time.perf_counter() - begun)
            if self._best is not None:
                self._best.offer(step, loss, lambda: program.state_of(self._index, state))

    def save(self, step: int, state: TrainState) -> None:
        """Write a checkpoint in the background."""
        if self._best is not None:
            self._best.wait()  # a run that goes on from this checkpoint will not pass the best step again
        self._checkpoints.save(step, self._program.state_of(self._index, state))
        self.events.write("checkpoint", step=step, durable=True)

    def preempted(self, step: int) -> None:
        """Say so, when all that was saved is on disk."""
        self._checkpoints.wait()
        self.events.write("preempted", step=step, durable=True)

    def close(self) -> None:
        self.meter.close()
        self.events.close()
        if self._best is not None:
            self._best.close()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """A divergence in here ends this run, and no other."""
        try:
            yield
        except Diverged as error:
            self.diverged = error
            self.events.write("diverged", step=self.meter.bad_step, message=str(error), durable=True)


def _alive(members: Sequence[_Member]) -> list[_Member]:
    return [member for member in members if member.diverged is None]
