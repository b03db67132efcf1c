"""Going on after a loss that is not finite, with other batches: which steps saw which, from events alone.

The loop goes back to its newest checkpoint and passes over the batches that followed it. From there on a step sees the
batch, and draws the noise, of a step that lies ``shift`` further on. That is a function of the events, so that a run
killed afterwards goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rewinds:
    """What a run's events say of it."""

    shifts: tuple[tuple[int, int], ...] = ()
    """(step, shift): from the step after this one on, ascending."""
    count: int = 0
    diverged: tuple[int, str] | None = None
    """Step and message of a divergence that nothing followed."""

    def shift(self, step: int) -> int:
        """Of the update that follows ``step`` others."""
        return max(((first, shift) for first, shift in self.shifts if first <= step), default=(0, 0))[1]

    def next_change(self, step: int) -> int | None:
        """The first step after ``step`` from which the shift is another."""
        return min((first for first, _ in self.shifts if first > step), default=None)

    def in_vain(self, newest: int) -> bool:
        """Whether going back to the checkpoint ``newest`` was tried, and other batches changed nothing.

        Then its weights are at fault: a step's loss and gradient, which were finite, are those before its update.
        """
        return self.diverged is not None and self.diverged[0] == newest + 1 and newest in dict(self.shifts)

    def after(self, to: int, skip: int) -> Rewinds:
        """Having gone back to ``to`` once more, to pass over ``skip`` more batches than before."""
        kept = tuple(item for item in self.shifts if item[0] < to)
        return Rewinds((*kept, (to, self.shift(to) + skip)), self.count + 1)


def rewinds(events: Iterable[Mapping[str, Any]]) -> Rewinds:
    """What happened so far."""
    found = Rewinds()
    for event in events:
        if event["event"] == "rewound":
            found = found.after(event["to"], event["skip"])
        elif event["event"] == "diverged":
            found = Rewinds(found.shifts, found.count, (event["step"], event["message"]))
    return found
