"""What became of a run's attempts, from its events alone; standard library only.

An attempt is one start of a run's processes. What engines say is not asked: they forget, and know nothing of a run that
was moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmdit_jax.errors import EXIT_PREEMPTED

ENDS = ("done", "preempted", "diverged", "refused")
"""Events after which an attempt is over, and how."""
CANCELLED = "cancelled"
"""The end of one that its user had ended before it could say a word; its supervisor tells."""
INFRASTRUCTURE = 128
"""Exit codes from here on are nobody's fault: run again."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run, as far as events tell."""

    number: int
    began: float
    """Seconds since 1970."""
    host: str = ""
    job: str | None = None
    """The engine's name of it."""
    processes: int = 1
    start: int | None = None
    """The step it went on from; None: it did not get so far."""
    step: int = 0
    """The last it told of."""
    last: float = 0.0
    """When it last told anything."""
    end: str | None = None
    """One of ``ENDS``, or ``CANCELLED``; None: it told none, so it runs, or was killed."""
    code: int | None = None
    """Exit code, where its supervisor lived to tell it."""
    message: str = ""
    """Of a divergence or a refusal."""

    @property
    def failed(self) -> bool:
        """Whether its infrastructure failed; not to be asked of one that may be running."""
        return self.end is None and (self.code is None or self.code >= INFRASTRUCTURE)


def attempts(events: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """All of them, oldest first; of event files from before there were ``attempt`` events, one for each ``start``.

    One whose processes were gone before they could say anything is known by its supervisor's ``ended`` alone.
    """
    found: list[Attempt] = []
    for event in events:
        kind, time = event["event"], float(event.get("time", 0.0))
        told = kind == "attempt"
        silent = kind == "ended" and bool(found) and found[-1].code is not None  # one that ended before it said a word
        if told or silent or not found or (kind == "start" and found[-1].start is not None):
            began = float(event.get("began", time))
            where = {"host": event.get("host") or "", "job": event.get("job"), "processes": event.get("processes", 1)}
            found.append(Attempt(len(found) + 1, began, **where, last=time))
        now = replace(found[-1], last=max(time, found[-1].last))
        if kind == "start":
            now = replace(now, start=event["step"], step=event["step"])
        elif kind == "ended":
            cancelled = now.end is None and event.get("verdict") == CANCELLED
            now = replace(now, code=event["code"], end=CANCELLED if cancelled else now.end)
        elif kind == "rewound":
            now = replace(now, step=event["to"], end=None, message="")
        elif "step" in event and kind in ("train", "validation", "checkpoint", "preempted", "left"):
            now = replace(now, step=event["step"])
        if kind in ENDS:
            now = replace(now, end=kind, message=event.get("message", ""))
        found[-1] = now
    return found


def failures(history: Sequence[Attempt]) -> int:
    """How many attempts failed by their infrastructure; the last counts where its supervisor has told its end."""
    return sum(item.failed and (item is not history[-1] or item.code is not None) for item in history)


def after(history: Sequence[Attempt], done: bool, code: int, retries: int) -> str:
    """What follows an attempt that ended with ``code``: ``done``, ``again``, ``stop``, or ``spent``.

    The attempt's own last word goes before the code: of several processes some may have been killed by their engine
    when the first had ended. Another attempt's does not: where the last in ``history`` has its code, this one said
    nothing.

    Args:
      history: the run's attempts, as they were before the end of this one was noted.
      done: whether the run has its result.
      code: of all its processes together.
      retries: how often a run may fail by its infrastructure and be started again.
    """
    silent = not history or history[-1].code is not None
    this = replace(Attempt(len(history) + 1, 0.0) if silent else history[-1], code=code)
    if done:
        return "done"
    if this.end == "preempted" or code == EXIT_PREEMPTED:
        return "again"
    if this.end in ("diverged", "refused") or code < INFRASTRUCTURE:
        return "stop"
    before = history if silent else history[:-1]
    return "again" if max(1, failures([*before, this])) <= retries else "spent"
