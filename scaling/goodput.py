"""Goodput: the share of a run's wall time that went into steps that counted, and where the rest went.

All of it is told by the run's events (the lines of ``events.jsonl``, as mappings): when an attempt began, when its
training went on and after which step, and what the loop's seconds were ``spent`` on. An attempt is one start of a run's
processes. Nothing is guessed: what no event accounts for is ``unaccounted``, and events from before there were these
have no goodput. The word is Google Cloud's, of its "ML Goodput" (there: of all time, that which made progress).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scaling.goodput_attempts import LOOP, Event, Steps, account, attempts_of, began_at, is_finished, number

LOST = ("redone", *LOOP, "startup", "evaluation", "down", "unaccounted")
"""Where time goes that is not useful, each second in one of them:

- redone: steps that were trained again, after a kill or a rewind
- compile, data, checkpoint, validation: the loop stood still for it
- startup: from the creation of the process until training goes on, imports, queueing and the restore included
- evaluation: from the loop's last event to the result
- down: from the last sign of an attempt to the next one's process
- unaccounted: in an attempt, but no event says on what, as before a kill
"""
COUNTS = ("attempts", "restarts", "preemptions", "steps_lost")
GOODPUT_COLUMNS = (*COUNTS, "wall_seconds", "goodput", "useful_seconds", *(f"{name}_seconds" for name in LOST))
"""Of ``goodput.csv``, besides run_id and name."""


@dataclass(frozen=True)
class Goodput:
    """Seconds of a run, or of several: ``wall_seconds`` is ``useful_seconds`` and the sum of ``lost``.

    ``lost`` has every name of LOST. ``steps_lost`` counts trained steps that a later attempt or a rewind threw away, as
    far as events told of them: the last few before a kill are in no event.
    """

    wall_seconds: float
    useful_seconds: float
    lost: Mapping[str, float]
    attempts: int
    restarts: int
    preemptions: int
    steps_lost: int

    @property
    def share(self) -> float:
        """The goodput, 0 to 1; NaN of no time."""
        return self.useful_seconds / self.wall_seconds if self.wall_seconds > 0 else math.nan

    @property
    def largest(self) -> tuple[str, float]:
        """The name and seconds of the greatest loss, the first of LOST among equals."""
        name = max(LOST, key=lambda name: self.lost[name])
        return name, self.lost[name]


def goodput(events: Sequence[Event], now: float | None = None) -> Goodput | None:
    """The goodput of one run from its events, oldest first, over all of its attempts.

    The wall time is from the creation of the first attempt's process to the last event, or to ``now`` (seconds since
    1970), which is for a run that is not over and is passed over where that is done or diverged. What comes after the
    first ``done`` is not counted, save that attempt's ``ended``. Seconds of steps of which only a part is lost are
    shared out evenly. Steps before a divergence that ended the run count: nothing trained them again. Where a clock was
    set back, no time goes by until it has caught up.

    None where it is not known: no attempt, or events of a version that did not tell attempts or ``spent``.
    """
    attempts = attempts_of(events)
    if not attempts:
        return None
    lost, steps = dict.fromkeys(LOST, 0.0), Steps()
    origin = clock = began_at(attempts[0])
    for own in attempts:
        began = max(began_at(own), clock)
        lost["down"] += began - clock
        clock, after = account(own, began, lost, steps)
    end = max(clock, *(number(event.get("time"), clock) for event in own))
    if now is not None and not is_finished(attempts):
        end = max(end, now)
    lost[after] += end - clock
    lost["redone"] = steps.redone
    lost["unaccounted"] = max(lost["unaccounted"], 0.0)  # a sum of differences, which rounding may leave below
    return Goodput(
        wall_seconds=end - origin,
        useful_seconds=steps.useful,
        lost=lost,
        attempts=len(attempts),
        restarts=len(attempts) - 1,
        preemptions=sum(event["event"] == "preempted" for own in attempts for event in own),
        steps_lost=steps.lost,
    )


def study_goodput(runs: Sequence[Goodput]) -> Goodput:
    """All runs as one: everything is summed, so that the share is weighted by wall time.

    The wall time is that of runs, not of a calendar: of runs side by side each counts.
    """
    return Goodput(
        wall_seconds=math.fsum(run.wall_seconds for run in runs),
        useful_seconds=math.fsum(run.useful_seconds for run in runs),
        lost={name: math.fsum(run.lost[name] for run in runs) for name in LOST},
        attempts=sum(run.attempts for run in runs),
        restarts=sum(run.restarts for run in runs),
        preemptions=sum(run.preemptions for run in runs),
        steps_lost=sum(run.steps_lost for run in runs),
    )


def goodput_table(runs: Iterable[tuple[str, str, Goodput | None]]) -> list[dict[str, Any]]:
    """Rows of ``goodput.csv`` from (run_id, name, goodput): GOODPUT_COLUMNS, all None where goodput is not known.

    ``goodput`` is the share, 0 to 1.
    """
    rows = []
    for run_id, name, found in runs:
        row: dict[str, Any] = {"run_id": run_id, "name": name, **dict.fromkeys(GOODPUT_COLUMNS)}
        if found is not None:
            row |= {key: getattr(found, key) for key in (*COUNTS, "wall_seconds", "useful_seconds")}
            row["goodput"] = found.share if found.wall_seconds > 0 else None
            row |= {f"{key}_seconds": seconds for key, seconds in found.lost.items()}
        rows.append(row)
    return rows
