"""A run's events as attempts, and one attempt's seconds booked: what ``scaling.goodput`` adds up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LOOP = ("compile", "data", "checkpoint", "validation")
"""What a loop's seconds go to besides ``step``, by the names that ``spent`` has for it."""
ENDS = ("left", "trained")
"""Said after the last step."""
IN_LOOP = ("train", "validation", "checkpoint", "preempted", "diverged", "rewound", *ENDS)
TRAINING = ("start", *IN_LOOP, "done")
OVER = ("ended", "preempted", "refused")
"""An attempt's last words, but for ``done``; what follows in it does not make it go on."""

Event = Mapping[str, Any]


def attempts_of(events: Sequence[Event]) -> list[list[Event]]:
    """Events by attempt, each from its ``attempt`` on, up to the first ``done`` and its ``ended``.

    Attempts that came after a divergence, and only looked at it, are left out. None at all where some training was by a
    version that told no attempts, or all of it by one that told no ``spent``.
    """
    found: list[list[Event]] = []
    done = over = False
    for event in events:
        kind = event["event"]
        if done and kind != "ended":
            break  # a finished run that was only looked at again
        if kind == "attempt":
            found.append([])
            over = False
        elif not found or (over and kind == "start"):
            if kind in TRAINING:
                return []
            continue
        found[-1].append(event)
        if done:
            break
        done, over = kind == "done", over or kind in OVER
    while len(found) > 1 and not _last_words(found[-1:]) and _last_words(found) == "diverged":
        found.pop()
    told = any(spent_of(event) is not None for own in found for event in own)
    trained = any(event["event"] == "train" for own in found for event in own)
    return found if told or not trained else []


def is_finished(attempts: Sequence[Sequence[Event]]) -> bool:
    """Whether the run is done, or diverged and not rewound."""
    return _last_words(attempts) in ("done", "diverged")


def account(own: Sequence[Event], began: float, lost: dict[str, float], steps: Steps) -> tuple[float, str]:
    """Book the seconds of one attempt that began at ``began``, those of steps to ``steps``, all others to ``lost``.

    Returns its end (the first ``ended``, else the last event), and where time after it goes if no attempt follows.
    """
    # Of runs side by side each is told an equal share of seconds in which all of them went on.
    beside = max((_whole(event.get("replicas"), 1) for event in own if event["event"] == "start"), default=1)
    books = _Books(began, lost, steps, max(beside, 1) * _scale(own, began, max(beside, 1)))
    for event in own:
        books.seen = max(books.seen, number(event.get("time"), books.seen))
        kind = event["event"]
        if kind == "ended":
            books.over = True
            break  # a second one is of an attempt that died before it could write
        if kind == "start":
            books.start(event)
        elif kind in IN_LOOP:
            books.in_loop(event)
        elif kind == "done":
            books.done(event)
        elif kind == "refused":
            books.over = True
    return books.close(own[0])


def began_at(own: Sequence[Event]) -> float:
    """When the attempt's process was created; where that is not told, when it first wrote."""
    return number(own[0].get("began"), number(own[0].get("time"), 0.0))


def spent_of(event: Event) -> dict[str, float] | None:
    """The event's seconds by name, none below zero; None where it has none, or is not of the loop."""
    spent = event.get("spent")
    if event["event"] not in IN_LOOP or not isinstance(spent, Mapping):
        return None
    return {name: max(number(spent.get(name), 0.0), 0.0) for name in ("step", *LOOP)}


def number(value: Any, default: float) -> float:
    """``value`` where it is a finite number."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else default


@dataclass
class _Piece:
    """Seconds of the steps from ``after`` + 1 to ``upto``."""

    after: int
    upto: int
    seconds: float


@dataclass
class Steps:
    """The steps that count so far, over attempts, and what was lost of others.

    ``reached`` is the last step of those that any event told, ``trained`` whether an attempt came to its loop's end,
    ``diverged`` the step of a divergence that nothing followed.
    """

    pieces: list[_Piece] = field(default_factory=list)
    redone: float = 0.0
    lost: int = 0
    reached: int = 0
    trained: bool = False
    diverged: int | None = None
    _booked: int = 0

    @property
    def useful(self) -> float:
        """Seconds of the steps that count."""
        return math.fsum(piece.seconds for piece in self.pieces)

    def book(self, step: int, seconds: float) -> None:
        """Seconds of the steps since the last that had any, up to ``step``; an event without any takes no steps."""
        if seconds > 0:
            self.pieces.append(_Piece(min(self._booked, step - 1), step, seconds))
            self._booked = step

    def go_on(self, step: int) -> None:
        """Training goes on after ``step``: what was trained beyond it is lost, of a piece its even share."""
        kept = []
        for piece in self.pieces:
            share = min(max((step - piece.after) / (piece.upto - piece.after), 0.0), 1.0)
            self.redone += piece.seconds * (1 - share)
            if share > 0:
                kept.append(_Piece(piece.after, min(piece.upto, step), piece.seconds * share))
        self.lost += max(self.reached - step, 0)
        self.pieces, self.reached, self._booked = kept, step, step


@dataclass
class _Books:
    """One attempt's account. Up to ``clock`` all time is booked; ``seen`` is the time of the event at hand."""

    began: float
    lost: dict[str, float]
    steps: Steps
    scale: float
    started: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        self.clock = self.seen = self.looped = self.began  # the last is of the loop's last event

    def until(self, moment: float, name: str) -> None:
        """Book the time up to ``moment``."""
        self.lost[name] += moment - self.clock
        self.clock = moment

    def start(self, event: Event) -> None:
        """Training goes on."""
        self.until(self.seen, "startup")
        self.started, self.looped = True, self.seen
        self.steps.go_on(_whole(event.get("step"), 0))

    def in_loop(self, event: Event) -> None:
        """Any event of the loop: with ``spent`` it books the time since the last that had it."""
        kind, steps = event["event"], self.steps
        step = _whole(event.get("step"), steps.reached)
        spent = spent_of(event)
        if spent is not None:
            for name in LOOP:
                self.lost[name] += self.scale * spent[name]
            steps.book(step, self.scale * spent["step"])
            # What is left may be below zero in one interval, by rounded times; over the attempt ``_scale`` sees to it.
            self.lost["unaccounted"] -= self.scale * math.fsum(spent.values())
            self.until(self.seen, "unaccounted")
        self.started, self.looped, self.over = True, self.seen, kind == "preempted"
        if kind != "rewound" or step != steps.diverged:  # else these steps may have been counted as lost at a start
            steps.reached = max(steps.reached, step)
        steps.diverged = step if kind == "diverged" else None
        steps.trained |= kind in ENDS
        if kind == "rewound":
            steps.go_on(_whole(event.get("to"), step))

    def done(self, event: Event) -> None:
        """The result is written."""
        if not self.started:  # all steps were there already: this attempt only evaluated
            seconds = max(number(event.get("evaluate_seconds"), 0.0), 0.0)
            self.looped = max(self.seen - seconds, self.clock)
            self.until(self.looped, "startup")
        self.until(self.looped, "unaccounted")
        self.until(self.seen, "evaluation")
        self.started = True

    def close(self, first: Event) -> tuple[float, str]:
        """Book the rest; what ``account`` returns. ``first``: the attempt's own first event."""
        rest = "unaccounted" if self.started or self.steps.trained else "startup"
        if not self.started and self.steps.trained:  # it may have been evaluating; only its first event is sure
            self.until(min(max(number(first.get("time"), self.began), self.began), self.seen), "startup")
        self.until(self.seen, rest)
        return self.clock, "down" if self.over else rest


def _last_words(attempts: Sequence[Sequence[Event]]) -> str:
    """The last event of training in them; nothing where there is none."""
    return next((e["event"] for own in reversed(attempts) for e in reversed(own) if e["event"] in TRAINING), "")


def _scale(own: Sequence[Event], began: float, beside: int) -> float:
    """What to multiply ``beside`` times an attempt's ``spent`` by, to fit between its events: 1, or just below.

    Times of events are rounded and of a clock that can be set; ``spent`` is of one that only goes forward.
    """
    span = told = 0.0
    clock = seen = began
    for event in own:
        if event["event"] == "ended":
            break
        seen = max(seen, number(event.get("time"), seen))
        spent = spent_of(event)
        if spent is not None:
            span, told = span + seen - clock, told + beside * math.fsum(spent.values())
        if spent is not None or event["event"] in ("start", "done"):
            clock = seen
    return min(1.0, span / told) if told > 0 else 1.0


def _whole(value: Any, default: int) -> int:
    return value if isinstance(value, int) else default
