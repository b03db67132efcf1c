"""``mmdit study run | plan | submit | status | cancel | collect | report STUDY``."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.collect import collect
from launch.execute import Handling, describe, execute, train_group
from launch.groups import groups
from launch.places import RESULT, Places, make_folder, read_result
from launch.runtime import TOLD, add_handling, add_study, add_vae, check_handling, chosen_runs, places_of, study_options
from launch.seeds import finished_of, has_seeds, unique_names, with_seeds
from launch.status import status_row, study_status
from launch.studies import load_study
from launch.submit import cancel_study, submit_study
from launch.submit_options import add_submit_options
from mmdit_jax import __version__
from mmdit_jax.config import Run, Study
from mmdit_jax.copies import push, push_all
from mmdit_jax.errors import EXIT_DIVERGED, Diverged, UserError
from mmdit_jax.files import write_atomic
from mmdit_jax.training.events import read_events
from mmdit_jax.training.loop import Apart
from mmdit_jax.training.peak import matmul_flops_per_second
from mmdit_jax.training.progress import duration
from scaling.report import write_report

EXAMPLES = """examples:
  mmdit study run quickstart                    train what is missing, evaluate, write the report
  mmdit study run quickstart --set seed=1       the same grid with another seed: new runs, beside the old ones in tables
  mmdit study run quickstart --set steps=20     any other change: a grid of its own, whose tables and report replace the
                                                study's until `mmdit study report quickstart` makes these again
  mmdit study run quickstart --replicas 2       two at a time where they differ in seed or density alone
  mmdit study plan my_study.py                  what each run costs, before it is started
  mmdit study submit my_study.py --executor slurm --topology h100:2x8 --time 12:00:00
  mmdit study submit my_study.py --executor local --at-once 2
  mmdit study status my_study.py --watch
"""


def add_parsers(commands: Any) -> None:
    """Register ``study`` and its actions."""
    study = commands.add_parser(
        "study",
        help="a whole study: run, plan, status, report",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = study.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, text in (
        ("run", run_study, "train and evaluate every run that is not done, then report; idempotent"),
        ("plan", plan_study, "parameters, FLOPs and time of each run on this machine"),
        ("submit", submit_study, "give what is missing to Slurm, Kubernetes or this machine; idempotent"),
        ("status", study_status, "state of each run, and who has it"),
        ("cancel", cancel_study, "end this study's runs wherever they are; they save, and go on when submitted again"),
        ("collect", collect_study, "rebuild results.csv and the other tables from the run directories alone"),
        ("report", report_study, "fold the finished runs into tables, figures and report.html"),
    ):
        action = actions.add_parser(
            name, help=text, description=text, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add_study(action)
        if name in ("plan", "status"):
            action.add_argument("--json", action="store_true", help="print one JSON object")
        if name in ("run", "report", "submit", "collect"):
            add_vae(action)
        if name == "status":
            action.add_argument(
                "--watch", type=float, nargs="?", const=2.0, metavar="S", help="every S seconds (default: %(const)g)"
            )
        if name == "cancel":
            action.add_argument("--only", action="append", default=[], metavar="RUN", help="only this run (id or name)")
        if name == "submit":
            add_handling(action)
            add_submit_options(action)
        if name == "run":
            action.add_argument("--only", action="append", default=[], metavar="RUN", help="only this run (id or name)")
            add_handling(action)
            action.add_argument(
                "--replicas",
                type=int,
                default=1,
                metavar="N",
                help="train up to N runs that differ in seed or density alone side by side (default: %(default)s)",
            )
        action.set_defaults(run=run)


def run_study(args: argparse.Namespace) -> int:
    """Every run in turn, or some at a time, then the report; a diverged run doesn't stop the others."""
    if args.replicas < 1:
        raise UserError(f"replicas={args.replicas}: expected 1 or more")
    check_handling(args)
    if args.rewinds and args.replicas > 1:
        raise UserError(f"rewinds={args.rewinds}: expected 0 with replicas={args.replicas}, which can't go back alone")
    study = load_study(args.study, args.overrides)
    places = places_of(args, study)
    handling = Handling(args.quiet, args.rewinds, args.hang_seconds)
    make_folder(places.study_dir)
    chosen = chosen_runs(args, study)
    missing = [run for run in chosen if read_result(places.run_dir(run)) is None]
    started, number = time.perf_counter(), len(chosen) - len(missing)
    diverged: list[str] = []
    for group in groups(missing, places, args.replicas):
        if len(group) > 1:
            try:
                train_group(group, places, handling)
            except Apart as error:
                print(f"{error}; each trains alone", file=sys.stderr)
        for run in group:
            number += 1
            begun = time.perf_counter()
            try:
                result = execute(run, places, handling)
            except Diverged as error:
                diverged.append(str(error))
                print(f"[{number}/{len(chosen)}] {error}", file=sys.stderr)
                continue
            took = duration(time.perf_counter() - begun)
            print(f"[{number}/{len(chosen)}] {_summary(result)}  {took}", file=sys.stderr)
    if len(missing) < len(chosen):
        print(f"{len(chosen) - len(missing)} of {len(chosen)} runs were done already", file=sys.stderr)
    path = _report(study, places, args, only_if_stale=True)
    print(f"study {study.name}: {duration(time.perf_counter() - started)}", file=sys.stderr)
    if path is not None:
        print(path)
    return EXIT_DIVERGED if diverged else 0


def collect_study(args: argparse.Namespace) -> int:
    """Tables of what is finished, from the run directories alone; prints the path of results.csv."""
    study = load_study(args.study, args.overrides)
    places = places_of(args, study)
    _require_finished(study, places, args)
    collect(study, places)
    print(places.study_dir / "results.csv")
    return 0


def report_study(args: argparse.Namespace) -> int:
    """Tables, figures and report of what is finished; prints the report's path."""
    study = load_study(args.study, args.overrides)
    places = places_of(args, study)
    _require_finished(study, places, args)
    print(_report(study, places, args))
    return 0


def _require_finished(study: Study, places: Places, args: argparse.Namespace) -> None:
    """Raises UserError where no run of the study is finished: there are tables to lose, and none to win."""
    if not any((places.run_dir(run) / RESULT).exists() for run in study.runs):
        raise UserError(f"study={study.name!r}: no finished run under {args.root}; `mmdit study run` first")


def _report(study: Study, places: Places, args: argparse.Namespace, only_if_stale: bool = False) -> Path | None:
    """The report's path; none where no run is finished. What it was made from is noted beside it."""
    runs = with_seeds(study, places)
    done = [run for run, _ in finished_of(runs, places)]
    if not any(run in done for run in study.runs):
        return None
    named = zip(runs, unique_names(runs), strict=True)
    missing = [_missing(run, name, places) for run, name in named if run not in done]
    called = [args.study, study_options(args)]  # the report's commands are of the study as it was called
    made_of = [__version__, *called, *missing, *((places.run_dir(run) / RESULT).read_text() for run in done)]
    source = hashlib.sha256("".join(made_of).encode()).hexdigest()
    report, note = places.study_dir / "report.html", places.study_dir / ".report-source"
    if only_if_stale and report.exists() and note.exists() and note.read_text() == source:
        return report
    collect(study, places)
    write_report(
        places.study_dir,
        title=f"Study: {study.name}",
        study=args.study,
        options=study_options(args),
        file=args.study if args.study.endswith(".py") else f"experiments/{args.study}.py",
        own_seeds=has_seeds(load_study(args.study)),
        missing=missing,
        notes=_notes(study.name, runs, places),
    )
    write_atomic(note, source)
    for path in (*places.study_dir.glob("*.csv"), *places.study_dir.glob("*.parquet"), report):
        push(path)
    for name in ("figures", "tables"):
        if (places.study_dir / name).is_dir():
            push_all(places.study_dir / name)
    return report


def _missing(run: Run, name: str, places: Places) -> str:
    """A run without a result, and what became of it."""
    state = status_row(run, places)["state"]
    return f"{name} ({'not begun' if state == 'new' else state})"


def _notes(name: str, runs: Sequence[Run], places: Places) -> list[str]:
    """Where and how long the finished runs ran, from their own events."""
    seconds, machines = 0.0, set()
    for run in runs:
        for event in read_events(places.run_dir(run)):
            if event["event"] in ("trained", "done"):
                seconds += event["train_seconds"] + event.get("evaluate_seconds", 0.0)
            if event["event"] == "start":
                machines.add(f"{event['devices']} {event['platform']} device(s), {event['cores']} cores")
    return [
        f"Made by `mmdit study run {name}`, version {__version__}, on {'; '.join(sorted(machines))}.",
        f"Last attempts of the finished runs took {seconds / 60:.1f} minutes, compilation and evaluation included.",
    ]


def _summary(result: dict[str, Any]) -> str:
    overall = [row for row in result["geneval"] if row["task"] == "overall"]
    score = f"  geneval {overall[0]['rate']:.3f} (graded {overall[0]['graded']:.3f})" if overall else ""
    match = "" if result["judge_match"] is None else f"  judge {result['judge_match']:.2f}"
    return f"{result['name']}  val loss {result['val_loss']:.4f}{score}{match}"


def plan_study(args: argparse.Namespace) -> int:
    """What the runs cost; the time is a floor: FLOPs over this machine's measured matrix-product rate."""
    study = load_study(args.study, args.overrides)
    places = places_of(args, study, only=TOLD)
    rows = []
    for run in study.runs:
        row = {**describe(run), "state": status_row(run, places)["state"]}
        row["floor_seconds"] = row["train_flops"] / matmul_flops_per_second(run.model.dtype)
        rows.append(row)
    if args.json:
        print(json.dumps({"study": study.name, "runs": rows}))
        return 0
    width = max(len(row["name"]) for row in rows)
    print(f"{'run':{width}}  {'parameters':>14}  {'images':>12}  {'FLOPs':>9}  {'6ND':>9}  {'floor':>8}  state")
    for row in rows:
        print(
            f"{row['name']:{width}}  {row['params']:>14,}  {row['images']:>12,}  {row['train_flops']:>9.2e}  "
            f"{row['train_flops_6nd']:>9.2e}  {duration(row['floor_seconds']):>8}  {row['state']}"
        )
    print(
        "FLOPs: per-stream count with attention, backward = 2 forward. "
        "Floor: FLOPs at this machine's matrix-product rate."
    )
    return 0
