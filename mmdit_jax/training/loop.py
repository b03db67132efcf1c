"""The training loop: one visible order of operations, from the newest checkpoint to the last step."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmdit_jax.config import Run
from mmdit_jax.errors import Diverged, Preempted, UserError
from mmdit_jax.models.attention import attention_kind, capability
from mmdit_jax.models.frame import unrolls
from mmdit_jax.processes import is_first, preemption
from mmdit_jax.sharding import platform
from mmdit_jax.training.checkpoint import Checkpoints
from mmdit_jax.training.clean import sides
from mmdit_jax.training.data import TrainingData
from mmdit_jax.training.events import EventLog
from mmdit_jax.training.ledger import Account, Ledger
from mmdit_jax.training.member import Member, alive
from mmdit_jax.training.meter import InFlight
from mmdit_jax.training.peak import Peak, measured_peak
from mmdit_jax.training.program import Program, Solo, mesh_of
from mmdit_jax.training.progress import Progress
from mmdit_jax.training.replicas import Replicas
from mmdit_jax.training.rewinds import Rewinds
from mmdit_jax.training.state import TrainState, abstract_state, init_state
from mmdit_jax.training.step import Batch
from mmdit_jax.watchdog import Watchdog


class Apart(UserError):
    """Runs that were to train together have no step in common that all of them can go on from."""


@dataclasses.dataclass(frozen=True)
class Conduct:
    """How runs are trained, beside what they are: nothing of it changes a result, but for ``rewinds``."""

    quiet: bool = False
    """No progress lines."""
    rewinds: int = 0
    """How often a run, over all its attempts, goes back to its newest checkpoint after a loss that is not finite, and
    passes over the batches that led there. Then it is another run than one without: its result says so."""
    watchdog: Watchdog = dataclasses.field(default_factory=lambda: Watchdog(0.0, Path()))


def train(run: Run, run_dir: Path, data: TrainingData, *, project: str, conduct: Conduct | None = None) -> TrainState:
    """Train ``run`` to its last step, from its newest checkpoint where there is one.

    Writes events.jsonl and checkpoints/ under ``run_dir``, and best/ where ``evaluation.at`` asks for it. All processes
    of the run call this; process 0 writes.

    Raises:
        Diverged: a loss or gradient that is not finite; the message names the step and the t bins.
        Preempted: after SIGTERM, with the state saved, by all processes at the same step.
        UserError: no checkpoint is readable, a disk is full, or the batch does not divide over the devices.
    """
    program = Solo(run, mesh_of(run))
    state, (diverged,) = _train(program, [run_dir], data, project, conduct or Conduct())
    if diverged is not None:
        raise diverged
    return state


def train_together(
    runs: Sequence[Run], run_dirs: Sequence[Path], data: TrainingData, *, project: str, conduct: Conduct | None = None
) -> list[Diverged | None]:
    """Train runs of one ``program_key`` side by side, from the newest checkpoint that all of them have.

    Each leaves in its own folder what ``train`` would, equal to it but for rounding. Returns which of them diverged;
    that stops none of the others.

    Raises:
        Apart: a checkpoint is damaged, and the runs would start at different steps. Nothing was trained.
        Preempted, UserError: as ``train``.
    """
    return _train(Replicas(runs), run_dirs, data, project, conduct or Conduct())[1]


def _train(
    program: Program, run_dirs: Sequence[Path], data: TrainingData, project: str, conduct: Conduct
) -> tuple[TrainState, list[Diverged | None]]:
    first, mesh = program.runs[0], program.mesh  # lengths and intervals are the same for all
    if first.hardware.onednn:  # known, documented, and said again at each start by JAX's compilation cache
        warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry for 'jit_step'")
    with contextlib.ExitStack() as closing:
        conduct.watchdog.beat(slow=True)
        checkpoints = [Checkpoints(run_dir, first.hardware.keep_checkpoints) for run_dir in run_dirs]
        for item in checkpoints:
            closing.callback(item.close)
        peak = measured_peak(first.model.dtype)  # while the device's memory is free
        start, state = _first_state(program, checkpoints)
        told = _machine(program, peak)
        for run_dir in run_dirs:
            events = EventLog(run_dir, enabled=is_first())
            events.write("start", step=start, **told)
            events.close()
        if start == first.steps:
            return state, [None] * len(program.runs)
        ledger, members = Ledger(), []
        for index, run_dir in enumerate(run_dirs):
            account = Account(ledger, 1 / len(run_dirs))
            member = Member(program, index, run_dir, checkpoints[index], project, peak, account)
            closing.callback(member.close)
            members.append(member)
        progress = Progress(_names(program), first.steps, enabled=is_first() and not conduct.quiet)
        closing.callback(progress.close)
        axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "1 device"
        progress.say(
            f"from step {start} on {peak.device_kind}: {axes}, attention {told['attention']}, blocks {told['blocks']}"
        )
        loop = _Loop(program, members, data, conduct, ledger, progress)
        state = loop.run(start, state)
        while loop.may_rewind():
            if loop.stopped:
                raise Preempted(f"{_names(program)}: stopped by SIGTERM, saved; run again to go on")
            del state  # before there is another one
            steps = checkpoints[0].steps()
            if len(steps) > 1 and members[0].rewinds.in_vain(steps[-1]):  # the last one left is never given up
                checkpoints[0].discard(steps[-2])
            start, state = _first_state(program, checkpoints)
            members[0].rewind(start)
            progress.say(f"not finite at step {members[0].meter.bad_step}: goes on from step {start}, other batches")
            state = loop.run(start, state)
    return state, [member.diverged for member in members]


class _Loop:
    """Steps, from any on, with everything that happens between them."""

    def __init__(
        self,
        program: Program,
        members: Sequence[Member],
        data: TrainingData,
        conduct: Conduct,
        ledger: Ledger,
        progress: Progress,
    ) -> None:
        self._program, self._members, self._data, self._conduct = program, members, data, conduct
        self._ledger, self._progress = ledger, progress
        self._compiled: set[Any] = set()
        self._in_flight = InFlight()
        self.stopped = False
        """Whether SIGTERM came: what was to be rewound, too, goes on in the next attempt."""

    def may_rewind(self) -> bool:
        """Whether the run diverged, and may go back."""
        past = self._members[0].rewinds
        return len(self._members) == 1 and past.diverged is not None and past.count < self._conduct.rewinds

    def run(self, start: int, state: TrainState) -> TrainState:
        """To the last step, or until all have diverged.

        Raises:
            Preempted: all is saved.
        """
        program, members, watchdog = self._program, self._members, self._conduct.watchdog
        first, of = program.runs[0], self._ledger.of
        if self.may_rewind():  # by an earlier attempt that was not to
            return state
        self._in_flight = InFlight()
        batches = _stream(program, self._data, start, members[0].rewinds)
        with preemption(start) as terminated:
            for step in range(start, first.steps):
                with of("data"):
                    batch, shift = next(batches)
                shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
                if shapes in self._compiled:
                    # Metrics of a step come from the weights before its update.
                    state, metrics = program.step(state, batch, shift)
                else:  # the first of its bucket waits for the compiler: it alone is not timed
                    self._compiled.add(shapes)
                    self._read(everything=True)
                    self._pause()
                    with of("compile"), watchdog.slowly():
                        state, metrics = program.step(state, batch, shift)
                done = step + 1
                self._in_flight.add(done, sides(batch), metrics)
                self._read()
                last, stop = done == first.steps, terminated(done)
                self.stopped |= stop
                if last or done % first.validate_every == 0:
                    self._read(everything=True)
                    with of("validation"), watchdog.slowly():
                        for member in alive(members):
                            member.validate(done, state, self._data)
                    self._pause()
                if last or stop or done % first.hardware.checkpoint_every == 0:
                    self._read(everything=True)  # never save a state whose loss was not looked at
                    with of("checkpoint"), watchdog.slowly():
                        for member in alive(members):
                            member.save(done, state)
                    for member in alive(members):
                        member.saved(done)
                if not alive(members):
                    break
                if last or stop:
                    with of("checkpoint"), watchdog.slowly():
                        for member in alive(members):
                            member.wait()
                    for member in alive(members):
                        member.end(done, "left" if last else "preempted")
                if stop and not last:
                    raise Preempted(f"{_names(program)}: stopped by SIGTERM at step {done}, saved; run again to go on")
            else:
                if jax.process_count() == 1 and terminated(first.steps):  # several ask one another before they draw
                    for member in alive(members):
                        member.end(first.steps, "preempted")
                    raise Preempted(
                        f"{_names(program)}: stopped by SIGTERM after its last step, saved; run again to go on"
                    )
        watchdog.beat(slow=True)
        return state

    def _read(self, *, everything: bool = False) -> None:
        for number, shape, values in self._in_flight.take(everything=everything):
            self._conduct.watchdog.beat()
            told = [member.read(number, shape, values) for member in alive(self._members)]
            if any(told):
                self._progress.show(number, [item for item in told if item])

    def _pause(self) -> None:
        for member in self._members:
            member.meter.pause()


def _stream(program: Program, data: TrainingData, start: int, rewinds: Rewinds) -> Iterator[tuple[Batch, int]]:
    """Batches from ``start`` on, each with its shift (see ``rewinds``)."""
    step = start
    while True:
        shift, until = rewinds.shift(step), rewinds.next_change(step)
        for batch in program.batches(data, step + shift):
            yield batch, shift
            step += 1
            if step == until:
                break


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


def _machine(program: Program, peak: Peak) -> dict[str, Any]:
    """What ``start`` events say of where a run trains."""
    first, mesh = program.runs[0], program.mesh
    machine: dict[str, Any] = {"devices": mesh.size, "platform": jax.default_backend(), "cores": os.cpu_count()}
    costs = first.step_flops(first.data.resolution, first.data.resolution)
    machine |= {**dataclasses.asdict(peak), "step_flops": costs[0], "step_flops_6nd": costs[1]}
    machine |= {"mesh": dict(mesh.shape), "attention": _attention(first), "processes": jax.process_count()}
    machine["blocks"] = "unrolled" if unrolls(first.model) else "scanned"
    return machine if len(program.runs) == 1 else {**machine, "replicas": len(program.runs)}


def _attention(run: Run) -> str:
    """The attention that the run's steps take."""
    model = run.model
    return attention_kind(model.attention, model.dtype, platform(), model.head_size, capability())


def _names(program: Program) -> str:
    more = len(program.runs) - 1
    return f"{program.runs[0].name} and {more} more" if more else program.runs[0].name
