"""What the loop says of a run: its metrics, read a few steps late, watched, and told to log and wandb."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mmdit_jax.config import Run
from mmdit_jax.errors import Diverged
from mmdit_jax.training.events import EventLog
from mmdit_jax.training.ledger import Account
from mmdit_jax.training.peak import Peak
from mmdit_jax.training.wandb_log import WandbLog

IN_FLIGHT = 2
"""Steps dispatched ahead of the one whose metrics are read, so that the device never waits for the host."""

Values = Mapping[str, np.ndarray]
Sides = tuple[int, int]
"""Height and width of a step's images or latents."""

SPEED = ("images_per_second", "flops_per_second", "mfu", "mfu_6nd", "ceiling_share")
"""What a ``train`` event says of speed."""


class InFlight:
    """Metrics of dispatched steps, handed out ``IN_FLIGHT`` steps later."""

    def __init__(self) -> None:
        self._queue: collections.deque[tuple[int, Sides, dict[str, jax.Array]]] = collections.deque()

    def add(self, step: int, sides: Sides, metrics: dict[str, jax.Array]) -> None:
        """Queue a step's metrics."""
        self._queue.append((step, sides, metrics))

    def take(self, *, everything: bool = False) -> list[tuple[int, Sides, Values]]:
        """(step, sides, metrics) of those that are due, or of all, as numpy arrays; waits for the device."""
        keep = 0 if everything else IN_FLIGHT
        due = [self._queue.popleft() for _ in range(len(self._queue) - keep)]
        # np.asarray takes a fifth of device_get's time
        return [
            (step, sides, {name: np.asarray(value) for name, value in metrics.items()}) for step, sides, metrics in due
        ]


class Meter:
    """Watches one run's metrics for non-finite ones, and tells events.jsonl and wandb.

    FLOPs are those of a step of the shape that it had, by the per-stream count (``Run.train_flops``) and by 6ND. Those
    that remat does again are not counted: the shares are of useful FLOPs (MFU, not HFU).
    """

    def __init__(
        self,
        run: Run,
        events: EventLog,
        wandb: WandbLog | None,
        peak: Peak,
        clock: Callable[[], float] = time.perf_counter,
        account: Account | None = None,
    ) -> None:
        self._run, self._events, self._wandb, self._peak, self._clock = run, events, wandb, peak, clock
        self._account = account
        self._every = max(10, run.steps // 100)
        self._window: list[Values] = []
        self._costs: dict[Sides, tuple[float, float]] = {}
        self._since: float | None = None
        self._timed, self._seconds, self._flops, self._flops_6nd = 0, 0.0, 0.0, 0.0
        self.bad_step = 0

    def read(self, step: int, sides: Sides, values: Values) -> dict[str, float] | None:
        """Take a step's metrics in; every so often tell their means, and return those of the progress line.

        Of speed (``SPEED``) everything is null in the event, and missing from what is returned, where every step
        followed a pause; so is MFU where the device's data sheet is not known.

        Raises:
            Diverged: loss or gradient are not finite.
        """
        if not (np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"])):
            self.bad_step = step
            raise Diverged(_advice(self._run, step, _what_broke(values)))
        self._window.append(values)
        now = self._clock()
        if self._since is not None:  # else it holds compilation or follows a validation: rates count from its end
            self._timed, self._seconds = self._timed + 1, self._seconds + now - self._since
            if sides not in self._costs:
                self._costs[sides] = self._run.step_flops(*sides)
            flops, flops_6nd = self._costs[sides]
            self._flops, self._flops_6nd = self._flops + flops, self._flops_6nd + flops_6nd
        self._since = now
        if step % self._every and step != self._run.steps:
            return None
        speed, seconds_a_step = self._speed(), self._seconds / max(self._timed, 1)
        loss = float(np.mean([item["loss"] for item in self._window]))
        counts = np.sum([item["bin_count"] for item in self._window], axis=0)
        sums = np.sum([item["bin_loss"] * item["bin_count"] for item in self._window], axis=0)
        by_bin = [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
        norm = float(np.mean([item["grad_norm"] for item in self._window]))
        told: dict[str, Any] = {name: speed.get(name) for name in SPEED} | self._spent()
        self._events.write("train", step=step, loss=loss, loss_by_bin=by_bin, grad_norm=norm, **told)
        if self._wandb is not None:
            self._wandb.write(step, loss=loss, grad_norm=norm, **speed)
        self.forget()
        self._since = self._clock()
        if not speed:
            return {"loss": loss}
        return {"loss": loss, **speed, "seconds_left": (self._run.steps - step) * seconds_a_step}

    def _speed(self) -> dict[str, float]:
        """``SPEED`` of the timed steps, as far as it is known; nothing if there are none."""
        if not self._seconds:
            return {}
        rate, rate_6nd = self._flops / self._seconds, self._flops_6nd / self._seconds
        found = {
            "images_per_second": self._timed * self._run.batch / self._seconds,
            "flops_per_second": rate,
            "ceiling_share": rate / self._peak.ceiling_flops_per_second,
        }
        sheet = self._peak.datasheet_flops_per_second
        return found if sheet is None else {**found, "mfu": rate / sheet, "mfu_6nd": rate_6nd / sheet}

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
        told = {"loss": loss, "levels": by_level, "seconds": seconds} | self._spent()
        self._events.write("validation", step=step, **told, durable=True)
        if self._wandb is not None:
            self._wandb.write(step, val_loss=loss, **{f"val_loss_{i}": float(x) for i, x in enumerate(levels)})
        return loss

    def _spent(self) -> dict[str, Any]:
        return {} if self._account is None else {"spent": self._account.take()}

    def forget(self) -> None:
        """What was read and not told is of steps that will be taken again."""
        self._window, self._since = [], None
        self._timed, self._seconds, self._flops, self._flops_6nd = 0, 0.0, 0.0, 0.0

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
