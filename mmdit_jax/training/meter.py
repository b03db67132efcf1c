"""What the loop says of a run: its metrics, read a few steps late, watched, and told to log and wandb."""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping

import jax
import numpy as np

from mmdit_jax.config import Run
from mmdit_jax.errors import Diverged
from mmdit_jax.training.events import EventLog
from mmdit_jax.training.wandb_log import WandbLog

IN_FLIGHT = 2
"""Steps dispatched ahead of the one whose metrics are read, so that the device never waits for the host."""

Values = Mapping[str, np.ndarray]


class InFlight:
    """Metrics of dispatched steps, handed out ``IN_FLIGHT`` steps later."""

    def __init__(self) -> None:
        self._queue: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Queue a step's metrics."""
        self._queue.append((step, metrics))

    def take(self, *, everything: bool = False) -> list[tuple[int, Values]]:
        """(step, metrics) of those that are due, or of all, as numpy arrays; waits for the device."""
        keep = 0 if everything else IN_FLIGHT
        due = [self._queue.popleft() for _ in range(len(self._queue) - keep)]
        # np.asarray takes a fifth of device_get's time
        return [(step, {name: np.asarray(value) for name, value in metrics.items()}) for step, metrics in due]


class Meter:
    """Watches one run's metrics for non-finite ones, and tells events.jsonl and wandb."""

    def __init__(self, run: Run, events: EventLog, wandb: WandbLog | None, peak: float) -> None:
        self._run, self._events, self._wandb, self._peak = run, events, wandb, peak
        self._every = max(10, run.steps // 100)
        self._window: list[Values] = []
        self._since: float | None = None
        self._timed, self._seconds = 0, 0.0
        self.bad_step = 0

    def read(self, step: int, values: Values) -> dict[str, float] | None:
        """Take a step's metrics in; every so often tell their means, and return those of the progress line.

        The rate is null in the event, and missing from what is returned, where every step followed a pause.

        Raises:
            Diverged: loss or gradient are not finite.
        """
        if not (np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"])):
            self.bad_step = step
            raise Diverged(_advice(self._run, step, _what_broke(values)))
        self._window.append(values)
        now = time.perf_counter()
        if self._since is not None:  # else it holds compilation or follows a validation: rates count from its end
            self._timed, self._seconds = self._timed + 1, self._seconds + now - self._since
        self._since = now
        if step % self._every and step != self._run.steps:
            return None
        speed = self._speed()
        loss = float(np.mean([item["loss"] for item in self._window]))
        counts = np.sum([item["bin_count"] for item in self._window], axis=0)
        sums = np.sum([item["bin_loss"] * item["bin_count"] for item in self._window], axis=0)
        by_bin = [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
        norm = float(np.mean([item["grad_norm"] for item in self._window]))
        told = speed or dict.fromkeys(("images_per_second", "peak_share"))
        self._events.write("train", step=step, loss=loss, loss_by_bin=by_bin, grad_norm=norm, **told)
        if self._wandb is not None:
            self._wandb.write(step, loss=loss, grad_norm=norm, **speed)
        self._since, self._timed, self._seconds, self._window = time.perf_counter(), 0, 0.0, []
        if not speed:
            return {"loss": loss}
        left = (self._run.steps - step) * self._run.batch / speed["images_per_second"]
        return {"loss": loss, **speed, "seconds_left": left}

    def _speed(self) -> dict[str, float]:
        """images_per_second and peak_share of the timed steps; neither if there are none."""
        if not self._seconds:
            return {}
        rate = self._timed * self._run.batch / self._seconds
        return {
            "images_per_second": rate,
            "peak_share": rate * self._run.train_flops(1) / self._run.batch / self._peak,
        }

    def validated(self, step: int, levels: np.ndarray, seconds: float) -> float:
        """Tell a validation: mean squared velocity error per level of t, and their mean, which is returned.

        Raises:
            Diverged: some level's error is not finite.
        """
        loss = float(np.mean(levels))
        if not np.isfinite(levels).all():
            self.bad_step = step
            bins = ", ".join(_bin(i, len(levels)) for i in np.flatnonzero(~np.isfinite(levels)).tolist())
            raise Diverged(_advice(self._run, step, f"validation loss is not finite at {bins}"))
        by_level = [float(x) for x in levels]
        self._events.write("validation", step=step, loss=loss, levels=by_level, seconds=seconds, durable=True)
        if self._wandb is not None:
            self._wandb.write(step, val_loss=loss, **{f"val_loss_{i}": float(x) for i, x in enumerate(levels)})
        return loss

    def pause(self) -> None:
        """What follows until the next step is not training time."""
        self._since = None

    def close(self) -> None:
        if self._wandb is not None:
            self._wandb.close()


def _bin(index: int, count: int) -> str:
    return f"t bin {index} ({index / count:g} <= t < {(index + 1) / count:g})"


def _what_broke(values: Values) -> str:
    losses, counts = values["bin_loss"], values["bin_count"]
    bad = np.flatnonzero((counts > 0) & ~np.isfinite(losses))
    if len(bad):
        return f"loss is not finite in {', '.join(_bin(int(i), len(losses)) for i in bad)}"
    worst = int(np.argmax(np.where(counts > 0, losses, -np.inf)))
    return f"gradient is not finite; the loss was highest in {_bin(worst, len(losses))}"


def _advice(run: Run, step: int, what: str) -> str:
    return (
        f"{run.name}: diverged at step {step}: {what}; a lower optimizer.learning_rate or model.qk_norm=True may help"
    )
