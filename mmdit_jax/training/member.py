"""One of the runs in the loop, with all that it writes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmdit_jax.config_values import to_dict
from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import Diverged
from mmdit_jax.processes import from_first, is_first
from mmdit_jax.training.best import Best
from mmdit_jax.training.checkpoint import Checkpoints
from mmdit_jax.training.data import TrainingData
from mmdit_jax.training.events import EventLog, read_events
from mmdit_jax.training.ledger import Account
from mmdit_jax.training.meter import Meter, Sides, Values
from mmdit_jax.training.peak import Peak
from mmdit_jax.training.program import Program
from mmdit_jax.training.rewinds import Rewinds, rewinds
from mmdit_jax.training.state import TrainState
from mmdit_jax.training.validation import validation_loss
from mmdit_jax.training.wandb_log import WandbLog


class Member:
    """A run of ``program``, by its ``index``. Every process has one; process 0 writes."""

    def __init__(
        self,
        program: Program,
        index: int,
        folder: Path,
        checkpoints: Checkpoints,
        project: str,
        peak: Peak,
        account: Account,
    ) -> None:
        self._program, self._index, self._run = program, index, program.runs[index]
        self._formulation, self._checkpoints, self._account = formulation(self._run.formulation), checkpoints, account
        self._best = Best(folder) if self._run.evaluation.at == "best" else None
        self.events = EventLog(folder, enabled=is_first())
        run = self._run
        wandb = WandbLog(folder, project, run.run_id, run.name, to_dict(run)) if is_first() else None
        self.meter = Meter(run, self.events, wandb, peak, account=account)
        self.rewinds = past(folder)
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

    def saved(self, step: int) -> None:
        """Say that ``save`` was called."""
        self.events.write("checkpoint", step=step, spent=self._account.take(), durable=True)

    def wait(self) -> None:
        """Return when all that was saved is on disk."""
        if self._best is not None:
            self._best.wait()
        self._checkpoints.wait()

    def end(self, step: int, how: str) -> None:
        """Say how the loop ended: ``preempted``, or ``left`` after the last step."""
        self.events.write(how, step=step, spent=self._account.take(), durable=True)

    def rewind(self, to: int) -> None:
        """Say that the run goes on from step ``to``, with other batches, after the divergence it had."""
        bad, _ = self.rewinds.diverged or (self.meter.bad_step, "")
        # The batches from that of the update after ``to`` to that of the bad one: an earlier rewind may lie between.
        skip = max(1, bad + self.rewinds.shift(bad - 1) - to - self.rewinds.shift(to))
        self.events.write("rewound", step=bad, to=to, skip=skip, spent=self._account.take(), durable=True)
        self.rewinds, self.diverged = self.rewinds.after(to, skip), None
        self.meter.forget()

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
            self.rewinds = Rewinds(self.rewinds.shifts, self.rewinds.count, (self.meter.bad_step, str(error)))
            self.events.write("diverged", step=self.meter.bad_step, message=str(error), durable=True)


def past(folder: Path) -> Rewinds:
    """What a run's events say, as process 0 reads them: the same for all."""

    def look() -> list[list[object]]:
        found = rewinds(read_events(folder))
        return [[list(item) for item in found.shifts], [found.count], list(found.diverged or ())]

    shifts, (count,), diverged = from_first("events", look)
    return Rewinds(tuple(tuple(item) for item in shifts), count, tuple(diverged) or None)  # type: ignore


def alive(members: Sequence[Member]) -> list[Member]:
    """Those that have not diverged."""
    return [member for member in members if member.diverged is None]
