"""The report's part on goodput: what share of the runs' wall time went into steps that counted, and what into what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from scaling.goodput import COUNTS, LOST, Goodput, study_goodput
from scaling.goodput_figure import USEFUL, goodput_figure
from scaling.look import save
from scaling.page import Section
from scaling.tables import labels, numbers, read_table

MOST_BARS = 40
"""Of more runs, those of lowest goodput are drawn."""
MEANINGS = {
    USEFUL: "steps whose work the run kept",
    "redone": "steps trained again, after a kill or a rewind",
    "compile": "the loop waited for the compiler",
    "data": "the loop waited for a batch",
    "checkpoint": "the loop waited for a checkpoint",
    "validation": "validation losses",
    "startup": "from a process's creation until training went on, with the restore",
    "evaluation": "samples and scores, after the last step",
    "down": "between attempts, when nothing ran",
    "unaccounted": "no event says on what, as before a kill",
}


def goodput_section(table: Path, folder: Path) -> list[Section]:
    """A bar a run and the study's total, from ``goodput.csv``; figures go to ``folder``.

    None where there is no such file, or no run in it whose goodput is known.

    Raises:
        TableError: a column is missing, or something else than numbers is in it.
    """
    if not table.exists() or len(table.read_text(encoding="utf-8").splitlines()) < 2:
        return []
    frame = read_table(table)
    runs = _runs(frame)
    if not runs:
        return []
    part = Section("Goodput")
    total = study_goodput([found for _, found in runs])
    part.findings.append(goodput_finding(total, len(runs)))
    unknown = len(frame) - len(runs)
    if unknown:
        part.missing.append(f"{unknown} of {len(frame)} runs, whose events do not tell it")
    runs.sort(key=lambda run: run[1].share)
    shown = runs[:MOST_BARS]
    bars = [("all runs", total), *shown] if len(runs) > 1 else shown
    png = save(goodput_figure(bars), folder, "goodput")
    which = f"the {len(shown)} runs of lowest goodput" if len(shown) < len(runs) else "each run, lowest goodput first"
    part.broad.append((png, f"Wall time by what it went to: {which if len(runs) > 1 else runs[0][0]}"))
    part.tables.append((total_text(total), f"Wall time of {_runs_text(len(runs))}, {_counts(total)}"))
    return [part]


def goodput_finding(total: Goodput, runs: int) -> str:
    """The goodput and the largest loss."""
    text = f"Goodput is {_percent(total.useful_seconds, total)} of {_duration(total.wall_seconds)} of wall time"
    text += f" over {_runs_text(runs)}"
    name, seconds = total.largest
    if seconds <= 0:
        return text + "; nothing was lost."
    return f"{text}; the largest loss is “{name}” with {_percent(seconds, total)} ({MEANINGS[name]})."


def total_text(total: Goodput) -> pd.DataFrame:
    """Ready strings: a row for what is useful and for each loss, greatest first, those without any left out."""
    lost = sorted((name for name in LOST if total.lost[name] > 0), key=lambda name: -total.lost[name])
    seconds = {USEFUL: total.useful_seconds, **{name: total.lost[name] for name in lost}}
    return pd.DataFrame(
        {
            "time": name,
            "share": _percent(own, total),
            "duration": _duration(own),
            "what it is": MEANINGS[name],
        }
        for name, own in seconds.items()
    )


def _runs(frame: pd.DataFrame) -> list[tuple[str, Goodput]]:
    """Name and goodput of each run for which it is known."""
    names = labels(frame, "name")
    counts = {name: numbers(frame, name, allow_missing=True) for name in COUNTS}
    wall, useful, *lost = (numbers(frame, f"{name}_seconds", allow_missing=True) for name in ("wall", "useful", *LOST))
    return [
        (
            str(names[i]),
            Goodput(
                wall_seconds=float(wall[i]),
                useful_seconds=float(useful[i]),
                lost={name: float(seconds[i]) for name, seconds in zip(LOST, lost, strict=True)},
                **{name: int(np.nan_to_num(count[i])) for name, count in counts.items()},
            ),
        )
        for i in range(len(frame))
        if wall[i] > 0 and np.isfinite([useful[i], *(seconds[i] for seconds in lost)]).all()
    ]


def _counts(total: Goodput) -> str:
    """``9 attempts, 2 preemptions, 310 steps lost``."""
    told = {"attempt": total.attempts, "preemption": total.preemptions}
    texts = [f"{count:,} {name}{'s' * (count != 1)}" for name, count in told.items()]
    return ", ".join([*texts, f"{total.steps_lost:,} step{'s' * (total.steps_lost != 1)} lost"])


def _runs_text(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def _percent(seconds: float, total: Goodput) -> str:
    return f"{100 * seconds / total.wall_seconds:.1f} %"


def _duration(seconds: float) -> str:
    """In the unit that leaves two digits or more: ``42.0 s``, ``3.5 min``, ``12.3 h``."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
