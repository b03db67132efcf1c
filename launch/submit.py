"""``mmdit study submit`` and ``cancel``: what is missing goes to an engine, once."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from launch.attempts import attempts, failures
from launch.executors.after import unmark_cancelled
from launch.executors.engines import known_engines, note_engine
from launch.executors.job import Job, Live, in_hands
from launch.hold import locked
from launch.places import Places, make_folder
from launch.runtime import TOLD, check_handling, chosen_runs, places_of
from launch.status import engine_states, status_row, status_rows, table
from launch.studies import load_study
from launch.submit_options import engine_of, machine_of
from mmdit_jax.config import Run, Study
from mmdit_jax.copies import pull
from mmdit_jax.errors import EXIT_DIVERGED, UserError
from mmdit_jax.lease import lease
from mmdit_jax.remote import location, remote_of
from mmdit_jax.training.events import read_events
from mmdit_jax.training.rewinds import rewinds

LOCK_SECONDS = 300
"""How long an attempt waits for another one at its run, which an engine may have lost sight of."""


def submit_study(args: argparse.Namespace) -> int:
    """Submit what is neither done nor in somebody's hands; prints a table, or what would be submitted."""
    check_handling(args)
    if args.retries < 0:
        raise UserError(f"retries={args.retries}: expected 0 or more")
    study = load_study(args.study, args.overrides)
    places = places_of(args, study, only=TOLD, fetch=args.dry_run)
    chosen = chosen_runs(args, study)
    engine = engine_of(args, places.study_dir.absolute())
    if args.dry_run:
        reasons = _reasons(chosen, places, args, engine_states(places))
        jobs = jobs_of(args, study, places, [run for run in chosen if reasons[run.run_id] is None])
        print("\n".join(engine.render(job) for job in jobs), end="")
        return 0
    for job in jobs_of(args, study, places, chosen):
        engine.check(job)
    make_folder(places.study_dir)
    with _only_submitter(places.study_dir):
        pull(places.study_dir, only=TOLD)  # now: another may have submitted while this one waited
        # Kubernetes needs no asking beforehand: it has one object of a name, whoever creates it.
        told = engine_states(places, all_engines=True, beside=None if args.executor == "k8s" else engine)
        reasons = _reasons(chosen, places, args, told)
        missing = [run for run in chosen if reasons[run.run_id] is None]
        for run in missing:
            unmark_cancelled(places.run_dir(run))
        for number, job in enumerate(jobs_of(args, study, places, missing)):
            where = engine.submit(job)
            if number == 0:
                note_engine(places.study_dir, engine)
            print(f"{', '.join(job.runs)}: {where}", file=sys.stderr)
    for run in chosen:
        if reasons[run.run_id] is not None:
            print(f"{run.name}: {reasons[run.run_id]}", file=sys.stderr)
    while args.wait and _in_hands(chosen, places):
        time.sleep(1.0 if args.executor == "local" else 10.0)
    rows = status_rows(chosen, places)
    print("\n".join(table(rows)))
    return EXIT_DIVERGED if args.wait and any(row["state"] == "diverged" for row in rows) else 0


def cancel_study(args: argparse.Namespace) -> int:
    """End this study's runs wherever they are; those of others are not touched."""
    study = load_study(args.study, args.overrides)
    places = places_of(args, study, only=TOLD)
    chosen = [run.run_id for run in chosen_runs(args, study)]
    ended: list[str] = []
    refused: list[str] = []
    for engine in known_engines(places.study_dir):
        try:
            ended += engine.cancel(chosen)
        except UserError as error:  # the others have runs to end, too
            refused.append(str(error))
    for run in dict.fromkeys(ended):
        print(run)
    print(f"{len(set(ended))} of {len(chosen)} runs were in an engine's hands", file=sys.stderr)
    if refused:
        raise UserError(f"{'; '.join(refused)}; it may have runs of this study: cancel again when it answers")
    return 0


def _in_hands(runs: Sequence[Run], places: Places) -> bool:
    """Whether some engine has one of them; so it is taken to be where one can't be asked."""
    try:
        told = engine_states(places, all_engines=True)
    except UserError as error:
        print(f"mmdit: {error}", file=sys.stderr)
        return True
    return any(run.run_id in in_hands(told) for run in runs)


def _reasons(
    runs: Sequence[Run], places: Places, args: argparse.Namespace, told: Mapping[str, Live]
) -> dict[str, str | None]:
    """By run id, why it is not submitted; None: it is."""
    held = locked([places.run_dir(run) for run in runs])
    return {run.run_id: _why_not(run, places, args, told, held) for run in runs}


def _why_not(
    run: Run, places: Places, args: argparse.Namespace, told: Mapping[str, Live], held: Collection[Path]
) -> str | None:
    events = list(read_events(places.run_dir(run)))
    row = status_row(run, places, told, events, held)
    if row["state"] in ("done", "running", "queued"):
        return {"done": "done"}.get(row["state"], f"{row['state']} already, {row['where']}")
    past = rewinds(events)
    if past.diverged is not None and past.count >= args.rewinds:
        return f"diverged at step {past.diverged[0]}; a change of its config makes it a new run, --rewinds goes around"
    failed = failures(attempts(events))
    if failed > args.retries:
        return f"failed {failed} times ({row['message']}); --retries {failed} starts it once more"
    return None


def jobs_of(args: argparse.Namespace, study: Study, places: Places, runs: Sequence[Run]) -> list[Job]:
    """One job a run, or one of all of them."""
    # A local folder, where that is a copy of a URL: batch scripts log there. Pods have no such place.
    folder = places.study_dir.absolute()
    told = location(folder) if args.executor == "k8s" else str(folder)
    machine, ids = machine_of(args), [run.run_id for run in runs]
    together = args.array or args.executor == "local"  # whose supervisor has them wait for one another
    return [
        Job(
            name=job_name(folder, group),
            study=study.name,
            runs=tuple(group),
            command=_command(args, places),
            folder=told,
            after=(sys.executable, "-m", "launch.executors.after"),
            machine=machine,
            retries=args.retries,
            at_once=args.at_once,
        )
        for group in ([ids] if together else [[run_id] for run_id in ids])
        if group
    ]


def job_name(folder: Path, runs: Sequence[str]) -> str:
    """The same for the same runs in the same folder, and for no others: lower-case letters, digits and hyphens."""
    digest = hashlib.sha256(json.dumps([str(folder), *runs]).encode()).hexdigest()[:8]
    text = runs[0] if len(runs) == 1 else f"{folder.name}-{len(runs)}-runs"
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return f"{plain[-40:].strip('-')}-{digest}"


def _command(args: argparse.Namespace, places: Places) -> tuple[str, ...]:
    study = args.study if not args.study.endswith(".py") else str(Path(args.study).absolute())
    program = ["mmdit"] if args.executor == "k8s" else [sys.executable, "-m", "launch.cli"]  # of another machine
    words = [*program, "train", study]
    words += ["--root", location(places.root)]
    if remote_of(places.data) is None:  # else each host has its own, where it keeps what stands for the root
        words += ["--data-dir", str(places.data.absolute())]
    for override in args.overrides:
        words += ["--set", override]
    if places.vae is not None:
        words += ["--vae", places.vae]
    words += ["--rewinds", str(args.rewinds), "--hang-seconds", f"{args.hang_seconds:g}"]
    words += ["--lock-seconds", str(LOCK_SECONDS), *(["--quiet"] if args.quiet else []), "--run"]
    return tuple(words)


@contextlib.contextmanager
def _only_submitter(study_dir: Path) -> Iterator[None]:
    """Of two who submit a study at once, the second waits, and then finds the runs in the engine's hands."""
    path = study_dir / ".submit"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        with contextlib.suppress(PermissionError):
            os.fchmod(handle, 0o666)  # several users may submit under one root, if they may write there
        fcntl.flock(handle, fcntl.LOCK_EX)
        remote = remote_of(study_dir / "submit.lease.json")
        with contextlib.nullcontext() if remote is None else lease(remote, "submit", wait_seconds=600):
            yield
    finally:
        os.close(handle)
