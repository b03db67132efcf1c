"""The training loop: one visible order of operations, from the newest checkpoint to the last step."""

from __future__ import annotations

import collections
import logging
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmdit_jax.config import Run, to_dict
from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import Diverged, Preempted, UserError
from mmdit_jax.training.checkpoint import Checkpoints
from mmdit_jax.training.data import TrainingData, global_batches
from mmdit_jax.training.events import EventLog
from mmdit_jax.training.peak import matmul_flops_per_second
from mmdit_jax.training.progress import Progress
from mmdit_jax.training.sharding import make_mesh
from mmdit_jax.training.state import TrainState, abstract_state, init_state
from mmdit_jax.training.step import make_train_step
from mmdit_jax.training.validation import validation_loss
from mmdit_jax.training.wandb_log import WandbLog

log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Steps dispatched ahead of the one whose metrics are read, so that the device never waits for the host."""


class _Terminated:
    """Notes SIGTERM between ``with`` and its end, instead of dying of it."""

    def __enter__(self) -> _Terminated:
        self.seen = False
        try:
            self._before = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # not the main thread: whoever started it handles signals
            self._before = None
        return self

    def _note(self, *_: object) -> None:
        self.seen = True

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def train(run: Run, run_dir: Path, data: TrainingData, *, project: str, quiet: bool = False) -> TrainState:
    """Train ``run`` to its last step, from its newest checkpoint where there is one.

    Writes events.jsonl and checkpoints/ under ``run_dir``.

    Raises:
        Diverged: a loss or gradient that is not finite; the message names the step and the t bins.
        Preempted: after SIGTERM, with the state saved.
        UserError: no checkpoint is readable, a disk is full, or the batch does not divide over the devices.
    """
    f = formulation(run.formulation)
    mesh = make_mesh(fsdp=run.hardware.fsdp)
    if run.batch % mesh.size:
        raise UserError(f"batch={run.batch}: expected a multiple of the {mesh.size} devices")
    step_fn = make_train_step(run.model, run.optimizer, run.steps, run.data.text_drop, mesh, run.hardware.onednn)
    if run.hardware.onednn:  # known, documented, and said again at each start by JAX's compilation cache
        warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry for 'jit_step'")
    checkpoints = Checkpoints(run_dir, run.hardware.keep_checkpoints)
    restored = checkpoints.restore(abstract_state(run.model, run.optimizer, run.steps, mesh))
    start, state = restored or (0, init_state(run.model, run.optimizer, run.steps, run.seed, mesh))
    main = jax.process_index() == 0
    events = EventLog(run_dir, enabled=main)
    if start == run.steps:
        checkpoints.close()
        return state

    peak = matmul_flops_per_second(run.model.dtype)
    machine: dict[str, Any] = {"devices": mesh.size, "platform": jax.default_backend(), "cores": os.cpu_count()}
    events.write("start", step=start, **machine, peak_flops_per_second=peak)
    wandb = WandbLog(run_dir, project, run.run_id, run.name, to_dict(run)) if main else None
    meter = Meter(run, events, wandb, Progress(run.name, run.steps, enabled=main and not quiet), peak)
    batches = global_batches(run, data, start, mesh)
    try:
        with _Terminated() as terminated:
            for step in range(start, run.steps):
                batch = next(batches)
                # Metrics of a step come from the weights before its update.
                state, metrics = step_fn(state, batch, f, run.seed)
                meter.add(step + 1, metrics)
                done = step + 1
                last = done == run.steps
                if last or done % run.validate_every == 0:
                    meter.drain()
                    begun = time.perf_counter()
                    levels = validation_loss(
                        run.model, state.ema, f, data.validation_images, data.validation_text, mesh=mesh
                    )
                    meter.validated(done, levels, time.perf_counter() - begun)
                if last or terminated.seen or done % run.hardware.checkpoint_every == 0:
                    meter.drain()  # never save a state whose loss was not looked at
                    checkpoints.save(done, state)
                    events.write("checkpoint", step=done, durable=True)
                if terminated.seen and not last:
                    checkpoints.wait()
                    events.write("preempted", step=done, durable=True)
                    raise Preempted(f"{run.name}: stopped by SIGTERM at step {done}, saved; run again to go on")
    except Diverged as error:
        events.write("diverged", step=meter.bad_step, message=str(error), durable=True)
        raise
    finally:
        meter.close()
        checkpoints.close()
        events.close()
    return state


class Meter:
    """Reads metrics a few steps late, watches for non-finite ones, and tells log, wandb and the progress line."""

    def __init__(self, run: Run, events: EventLog, wandb: WandbLog | None, progress: Progress, peak: float) -> None:
        self._run, self._events, self._wandb, self._progress, self._peak = run, events, wandb, progress, peak
        self._queue: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self._every = max(10, run.steps // 100)
        self._window: list[dict[str, Any]] = []
        self._since: float | None = None
        self.bad_step = 0

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Queue a dispatched step's metrics; read those of ``IN_FLIGHT`` steps ago."""
        self._queue.append((step, metrics))
        while len(self._queue) > IN_FLIGHT:
            self._read(*self._queue.popleft())

    def drain(self) -> None:
        """Read everything that is still in flight."""
        while self._queue:
            self._read(*self._queue.popleft())

    def validated(self, step: int, levels: np.ndarray, seconds: float) -> None:
        """Tell a validation: mean squared velocity error per level of t, and their mean."""
        loss = float(np.mean(levels))
        if not np.isfinite(levels).all():
            self.bad_step = step
            bins = ", ".join(_bin(i, len(levels)) for i in np.flatnonzero(~np.isfinite(levels)).tolist())
            raise Diverged(_advice(self._run, step, f"validation loss is not finite at {bins}"))
        by_level = [float(x) for x in levels]
        self._events.write("validation", step=step, loss=loss, levels=by_level, seconds=seconds, durable=True)
        if self._wandb is not None:
            self._wandb.write(step, val_loss=loss, **{f"val_loss_{i}": float(x) for i, x in enumerate(levels)})
        self._since = None  # a validation is not training time

    def close(self) -> None:
        self._progress.close()
        if self._wandb is not None:
            self._wandb.close()

    def _read(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: np.asarray(value) for name, value in metrics.items()}  # a fifth of device_get's time
        if not (np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"])):
            self.bad_step = step
            raise Diverged(_advice(self._run, step, _what_broke(values)))
        self._window.append(values)
        if self._since is None:
            # The first step holds compilation or follows a validation: rates count from its end.
            self._since, self._window = time.perf_counter(), []
            return
        if step % self._every and step != self._run.steps:
            return
        seconds = time.perf_counter() - self._since
        count = len(self._window)
        rate = count * self._run.batch / seconds
        share = rate * self._run.train_flops(1) / self._run.batch / self._peak
        loss = float(np.mean([item["loss"] for item in self._window]))
        counts = np.sum([item["bin_count"] for item in self._window], axis=0)
        sums = np.sum([item["bin_loss"] * item["bin_count"] for item in self._window], axis=0)
        by_bin = [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
        norm = float(np.mean([item["grad_norm"] for item in self._window]))
        self._events.write(
            "train", step=step, loss=loss, loss_by_bin=by_bin, grad_norm=norm, images_per_second=rate, peak_share=share
        )
        if self._wandb is not None:
            self._wandb.write(step, loss=loss, grad_norm=norm, images_per_second=rate, peak_share=share)
        left = (self._run.steps - step) * self._run.batch / rate
        self._progress.show(step, loss=loss, images_per_second=rate, peak_share=share, seconds_left=left)
        self._since, self._window = time.perf_counter(), []


def _bin(index: int, count: int) -> str:
    return f"t bin {index} ({index / count:g} <= t < {(index + 1) / count:g})"


def _what_broke(values: dict[str, Any]) -> str:
    losses, counts = np.asarray(values["bin_loss"]), np.asarray(values["bin_count"])
    bad = np.flatnonzero((counts > 0) & ~np.isfinite(losses))
    if len(bad):
        return f"loss is not finite in {', '.join(_bin(int(i), len(losses)) for i in bad)}"
    worst = int(np.argmax(np.where(counts > 0, losses, -np.inf)))
    return f"gradient is not finite; the loss was highest in {_bin(worst, len(losses))}"


def _advice(run: Run, step: int, what: str) -> str:
    return (
        f"{run.name}: diverged at step {step}: {what}; a lower optimizer.learning_rate or model.qk_norm=True may help"
    )
