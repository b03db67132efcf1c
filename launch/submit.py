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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.attempts import attempts, failures
from launch.executors.after import unmark_cancelled
from launch.executors.engines import NAMES, Engine, known_engines, note_engine
from launch.executors.job import GRACE_SECONDS, Job, Machine
from launch.executors.kubernetes_engine import KubernetesEngine
from launch.executors.kubernetes_machines import machine_for
from launch.executors.kubernetes_options import Kubernetes
from launch.executors.local import Local, LocalEngine
from launch.executors.slurm import Slurm, SlurmEngine
from launch.places import Places, make_folder
from launch.planning.target import parse
from launch.runtime import check_handling, chosen_runs, places_of
from launch.status import live_runs, status_row, table
from launch.studies import load_study
from mmdit_jax.config import Run, Study
from mmdit_jax.errors import EXIT_DIVERGED, UserError
from mmdit_jax.lease import lease
from mmdit_jax.remote import location, remote_of
from mmdit_jax.training.events import read_events
from mmdit_jax.training.rewinds import rewinds

LOCK_SECONDS = 300
"""How long an attempt waits for another one at its run, which an engine may have lost sight of."""


def add_submit_options(parser: argparse.ArgumentParser) -> None:
    """Everything beside STUDY, its places and ``add_handling``."""
    add = parser.add_argument
    add("--executor", required=True, choices=NAMES, help="what starts the runs")
    add("--dry-run", action="store_true", help="print what would be submitted, submit nothing")
    add("--only", action="append", default=[], metavar="RUN", help="only this run (id or name)")
    add("--retries", type=int, default=3, metavar="N", help="starts after failures (default: %(default)s); of 75, any")
    add("--wait", action="store_true", help="return when no run is left in the engine's hands")
    machine = parser.add_argument_group("of a run")
    add = machine.add_argument
    add("--topology", metavar="CHIP:SHAPE", help="as `mmdit plan` takes it: h100:2x8 (nodes x GPUs), v5p:4x4x4")
    add("--nodes", type=int, metavar="N", help="hosts, without --topology (default: 1)")
    add("--processes", type=int, metavar="N", help="processes a host (default: Slurm one a GPU, else 1)")
    add("--cpus", type=int, metavar="N", help="cores a process")
    add("--memory", type=float, metavar="GIB", help="of a host")
    add("--at-once", type=int, metavar="N", help="runs at a time, at most (local, arrays)")
    local = parser.add_argument_group("local")
    local.add_argument("--cores", type=int, metavar="N", help="of this machine, for all runs (default: all)")
    local.add_argument("--host-memory", type=float, metavar="GIB", help="likewise (default: all)")
    slurm = parser.add_argument_group("slurm")
    add = slurm.add_argument
    add("--array", action="store_true", help="all runs as one array: for many small ones")
    for name in ("partition", "account", "qos", "constraint"):
        add(f"--{name}")
    add("--time", help="limit of an attempt, as sbatch takes it; a run that needs more goes on in the next")
    add("--setup", action="append", default=[], metavar="LINE", help="shell before the run, as 'module load cuda'")
    add("--sbatch", action="append", default=[], metavar="OPTION", help="another option, as --sbatch=--exclusive")
    k8s = parser.add_argument_group("k8s")
    add = k8s.add_argument
    add("--image", help="of the container, best by its digest; it has this package")
    add("--namespace", default="default", help="(default: %(default)s)")
    add("--queue", help="Kueue's local queue (default: none)")
    add("--volume", action="append", default=[], metavar="CLAIM:/FOLDER", help="what --root lies on, in pods as here")
    add("--secret", help="a Secret, of which --secret-key become variables")
    add("--secret-key", action="append", metavar="NAME", help="(default: WANDB_API_KEY)")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable that is no secret")
    add("--service-account")
    add("--priority-class")
    add("--spot", action="store_true", help="on capacity that may be taken away")
    add("--node-label", action="append", default=[], metavar="NAME=VALUE", help="more labels of the nodes, or others")
    add("--context", help="of kubectl (default: its current one)")
    parser.add_argument(
        "--grace", type=int, default=GRACE_SECONDS, metavar="S", help="from SIGTERM to the end (default: %(default)s)"
    )


def submit_study(args: argparse.Namespace) -> int:
    """Submit what is neither done nor in somebody's hands; prints a table, or what would be submitted."""
    check_handling(args)
    if args.retries < 0:
        raise UserError(f"retries={args.retries}: expected 0 or more")
    study = load_study(args.study, args.overrides)
    places = places_of(args, study)
    chosen = chosen_runs(args, study)
    engine, told = _engine(args, places.study_dir.absolute())
    if args.dry_run:
        live = live_runs(places)
        jobs = jobs_of(args, study, places, [run for run in chosen if _why_not(run, places, args, live) is None])
        print("\n".join(engine.render(job) for job in jobs), end="")
        return 0
    make_folder(places.study_dir)
    with _only_submitter(places.study_dir):
        live = {**live_runs(places, all_engines=True), **(engine.live() if args.executor != "k8s" else {})}
        reasons = {run.run_id: _why_not(run, places, args, live) for run in chosen}
        missing = [run for run in chosen if reasons[run.run_id] is None]
        for run in missing:
            unmark_cancelled(places.run_dir(run))
        for job in jobs_of(args, study, places, missing):
            where = engine.submit(job)
            note_engine(places.study_dir, args.executor, told)
            print(f"{', '.join(job.runs)}: {where}", file=sys.stderr)
    for run in chosen:
        if reasons[run.run_id] is not None:
            print(f"{run.name}: {reasons[run.run_id]}", file=sys.stderr)
    while args.wait and _in_hands(chosen, places):
        time.sleep(1.0 if args.executor == "local" else 10.0)
    now = live_runs(places)
    rows = [status_row(run, places, now) for run in chosen]
    print("\n".join(table(rows)))
    return EXIT_DIVERGED if args.wait and any(row["state"] == "diverged" for row in rows) else 0


def cancel_study(args: argparse.Namespace) -> int:
    """End this study's runs wherever they are; those of others are not touched."""
    study = load_study(args.study, args.overrides)
    places = places_of(args, study)
    chosen = [run.run_id for run in chosen_runs(args, study)]
    ended = [run for engine in known_engines(places.study_dir) for run in engine.cancel(chosen)]
    for run in ended:
        print(run)
    print(f"{len(ended)} of {len(chosen)} runs were in an engine's hands", file=sys.stderr)
    return 0


def _in_hands(runs: Sequence[Run], places: Places) -> bool:
    """Whether some engine has one of them; so it is taken to be where one can't be asked."""
    try:
        live = live_runs(places, all_engines=True)
    except UserError as error:
        print(f"mmdit: {error}", file=sys.stderr)
        return True
    return any(run.run_id in live for run in runs)


def _why_not(run: Run, places: Places, args: argparse.Namespace, live: Any) -> str | None:
    """Why the run is not submitted; None: it is."""
    row = status_row(run, places, live)
    if row["state"] in ("done", "running", "queued"):
        return {"done": "done"}.get(row["state"], f"{row['state']} already, {row['where']}")
    events = list(read_events(places.run_dir(run)))
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
    machine, ids = _machine(args), [run.run_id for run in runs]
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


def _machine(args: argparse.Namespace) -> Machine:
    target = None if args.topology is None else parse(args.topology)
    for name in ("nodes", "processes", "cpus", "memory", "at_once"):
        value = vars(args)[name]
        if value is not None and not value > 0:
            raise UserError(f"{name.replace('_', '-')}={value}: expected more than 0")
    if args.executor == "k8s":
        if args.nodes is not None or args.processes is not None:
            raise UserError("nodes, processes: expected without --executor k8s; --topology says how many")
        return replace(machine_for(target), cpus_per_process=args.cpus, memory_gib=args.memory)
    if target is not None and args.nodes is not None:
        raise UserError(f"nodes={args.nodes}: expected without --topology, which says how many")
    nodes, processes = args.nodes or 1, args.processes or 1
    if target is not None and not target.is_tpu:
        nodes = target.shape[0]
        processes = args.processes or (target.shape[1] if args.executor == "slurm" else 1)
        if target.shape[1] % processes:
            raise UserError(f"processes={processes}: expected a divisor of the {target.shape[1]} GPUs of a node")
    return Machine(target, nodes, processes, args.cpus, args.memory)


def _engine(args: argparse.Namespace, study_dir: Path) -> tuple[Engine, dict[str, Any]]:
    """The engine, and what finds it again."""
    if args.executor == "local":
        return LocalEngine(study_dir, Local(args.at_once, args.cores, args.host_memory, args.grace)), {}
    if args.executor == "k8s":
        options = _kubernetes(args)
        found: dict[str, Any] = {"namespace": options.namespace, "context": options.context}
        return KubernetesEngine(location(study_dir), options), {
            **found,
            "volumes": [list(item) for item in options.volumes],
        }
    slurm = Slurm(
        partition=args.partition,
        account=args.account,
        qos=args.qos,
        constraint=args.constraint,
        time=args.time,
        grace_seconds=args.grace,
        setup=tuple(args.setup),
        options=tuple(args.sbatch),
    )
    return SlurmEngine(study_dir, slurm), {}


def _kubernetes(args: argparse.Namespace) -> Kubernetes:
    if args.image is None:
        raise UserError("image: expected --image with --executor k8s, as REGISTRY/NAME@sha256:DIGEST")

    def pairs(name: str, between: str) -> tuple[tuple[str, str], ...]:
        for text in vars(args)[name]:
            if between not in text:
                raise UserError(f"{name.replace('_', '-')}={text!r}: expected two words with {between!r} between them")
        return tuple(
            tuple(text.rsplit(between, 1) if between == ":" else text.split(between, 1)) for text in vars(args)[name]
        )

    return Kubernetes(
        image=args.image,
        namespace=args.namespace,
        queue=args.queue,
        secret=args.secret,
        secret_keys=tuple(args.secret_key or ("WANDB_API_KEY",)),
        service_account=args.service_account,
        priority_class=args.priority_class,
        volumes=pairs("volume", ":"),
        grace_seconds=args.grace,
        env=pairs("env", "="),
        spot=args.spot,
        node_labels=pairs("node_label", "="),
        context=args.context,
    )


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
