"""``mmdit study status``: a row a run, from its own files; engines only add what is in their hands."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.attempts import attempts
from launch.executors.engines import Engine, known_engines
from launch.executors.job import ENDED, Live, in_hands
from launch.hold import is_locked, locked
from launch.places import RESULT, STACKS, Places, read_result
from launch.runtime import TOLD, places_of
from launch.studies import load_study
from mmdit_jax.config import Run
from mmdit_jax.copies import pull
from mmdit_jax.errors import EXIT_PREEMPTED, UserError
from mmdit_jax.training.events import read_events
from mmdit_jax.training.progress import duration
from mmdit_jax.training.rewinds import rewinds

STATES = ("done", "running", "queued", "stopped", "failed", "diverged", "new")


def status_row(
    run: Run,
    places: Places,
    told: Mapping[str, Live] | None = None,
    events: Sequence[Mapping[str, Any]] | None = None,
    held: Collection[Path] | None = None,
) -> dict[str, Any]:
    """What ``study status`` says of a run.

    ``state`` is ``done``; ``running`` or ``queued``; ``stopped``, saved or killed, to go on where it is started again;
    ``failed``, with ``message``; ``diverged``; or ``new``. ``restarts`` counts attempts after the first. ``where`` is a
    host and, in an engine's hands, its name of the job. What an engine remembers of a job that ended changes no state:
    ``message`` says it of a run that nobody has and that isn't done.

    Args:
      run, places: which run.
      told: ``engine_states``.
      events: the run's, where they are read already.
      held: the folders of the runs that are ``locked``, where that was asked for many at once.
    """
    folder = places.run_dir(run)
    row: dict[str, Any] = {"run_id": run.run_id, "name": run.name, "state": "new", "step": 0, "steps": run.steps}
    row |= {"loss": None, "val_loss": None, "images_per_second": None, "eta_seconds": None}
    row |= {"restarts": 0, "where": "", "message": ""}
    events = list(read_events(folder)) if events is None else events
    for event in events:
        if event["event"] == "train":
            rate = event["images_per_second"]  # null where no step was timed: the last that was then counts
            row |= {"loss": event["loss"], "images_per_second": row["images_per_second"] if rate is None else rate}
        if event["event"] == "validation":
            row["val_loss"] = event["loss"]
    history = attempts(events)
    if history:
        last = history[-1]
        row |= {"state": "stopped", "step": last.step, "restarts": len(history) - 1, "where": last.host}
        if last.end == "refused" or (last.end is None and last.code not in (None, EXIT_PREEMPTED)):
            row |= {"state": "failed", "message": last.message or f"exit code {last.code}"}
    past = rewinds(events)
    given = in_hands(told or {}).get(run.run_id)
    try:
        result, damaged = read_result(folder), ""
    except UserError as error:
        result, damaged = None, str(error)
    if damaged:
        row |= {"state": "failed", "message": damaged}
    elif result is not None:
        row |= {"state": "done", "step": run.steps, "val_loss": result["val_loss"], "message": ""}
    elif is_locked(folder) if held is None else folder in held:
        row |= {"state": "running", "message": ""}
    elif given is not None:
        row |= {"state": given.state, "message": ""}
    elif past.diverged is not None:
        row |= {"state": "diverged", "message": past.diverged[1]}
    if given is not None and row["state"] in ("running", "queued"):
        row["where"] = given.where
    if row["state"] in ("running", "queued") and row["images_per_second"]:
        row["eta_seconds"] = (run.steps - row["step"]) * run.batch / row["images_per_second"]
    if row["state"] == "failed" and (stacks := _stacks(folder)) is not None:
        row["message"] += f"; it hung, see {stacks}"
    over = None if told is None or given is not None else told.get(run.run_id)
    since = history[-1].began if history else 0.0  # a job that ended before the last attempt says nothing of it
    if over is not None and row["state"] not in ("done", "running") and (over.ended is None or over.ended >= since):
        row["message"] = "; ".join(text for text in (row["message"], over.where) if text)
    return row


def _stacks(folder: Path) -> Path | None:
    """What the watchdog of the last attempt wrote."""
    found = [path for path in (folder / STACKS).glob("*.txt") if path.stat().st_size]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def engine_states(places: Places, *, all_engines: bool = False, beside: Engine | None = None) -> dict[str, Live]:
    """How runs stand with all engines that this study was ever given to; one that can't be asked is told of.

    Args:
      places: of the study.
      all_engines: whether all must answer.
      beside: asked, too, where the study was not given to its like before.

    Raises:
      UserError: one can't be asked, and ``all_engines`` must be.
    """
    engines = known_engines(places.study_dir)
    if beside is not None and beside.name not in [engine.name for engine in engines]:
        engines.append(beside)
    found: dict[str, Live] = {}
    for engine in engines:
        try:
            for run_id, item in engine.states().items():
                before = found.get(run_id)
                if before is None or (before.state == ENDED and (item.state != ENDED or _later(item, before))):
                    found[run_id] = item
        except UserError as error:
            if all_engines:
                raise UserError(f"{error}; it may have runs of this study: try again when it answers") from error
            print(f"mmdit: {error}", file=sys.stderr)
    return found


def _later(item: Live, before: Live) -> bool:
    return (item.ended or 0.0) >= (before.ended or 0.0)


def status_rows(runs: Sequence[Run], places: Places) -> list[dict[str, Any]]:
    """A row for each of a study's ``runs``, of what others have written by now, too."""
    pull(places.study_dir, only=TOLD)
    told = engine_states(places)
    held = locked([folder for run in runs if not ((folder := places.run_dir(run)) / RESULT).exists()])
    return [status_row(run, places, told, held=held) for run in runs]


def study_status(args: argparse.Namespace) -> int:
    """A table, or one JSON object; with ``--watch`` again and again."""
    study = load_study(args.study, args.overrides)
    places = places_of(args, study, fetch=False)  # ``status_rows`` fetches, each time
    if args.watch is not None and args.json:
        raise UserError("watch: expected without --json, which is one object")
    if args.watch is not None and not (math.isfinite(args.watch) and args.watch > 0):
        raise UserError(f"watch={args.watch:g}: expected more than 0 seconds")
    while True:
        rows = status_rows(study.runs, places)
        if args.json:
            print(json.dumps({"study": study.name, "runs": rows}))
            return 0
        text = "\n".join(table(rows))
        if args.watch is None:
            print(text)
            return 0
        clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
        print(f"{clear}{study.name}  {time.strftime('%H:%M:%S')}\n{text}", flush=True)
        if all(row["state"] in ("done", "diverged", "failed") for row in rows):
            return 0
        time.sleep(args.watch)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of text: a heading, a row a run, and how many are in which state."""
    cells = [["run", "state", "step", "loss", "val loss", "images/s", "ETA", "restarts", "where"]]
    for row in rows:
        cells.append(
            [
                row["name"],
                row["state"],
                f"{row['step']}/{row['steps']}",
                "" if row["loss"] is None else f"{row['loss']:.4f}",
                "" if row["val_loss"] is None else f"{row['val_loss']:.4f}",
                "" if row["images_per_second"] is None else f"{row['images_per_second']:,.0f}",
                "" if row["eta_seconds"] is None else duration(row["eta_seconds"]),
                str(row["restarts"] or ""),
                row["message"] or row["where"],
            ]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    left = (0, 1, 8)
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    counts = {state: sum(row["state"] == state for row in rows) for state in STATES}
    return [*lines, ", ".join(f"{number} {state}" for state, number in counts.items() if number)]
