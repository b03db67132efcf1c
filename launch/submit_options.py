"""What ``mmdit study submit`` is told: its options, and the engine and the machine that they name."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from launch.executors.engines import NAMES, Engine
from launch.executors.job import GRACE_SECONDS, Machine
from launch.executors.kubernetes_engine import KubernetesEngine
from launch.executors.kubernetes_machines import machine_for
from launch.executors.kubernetes_options import Kubernetes
from launch.executors.local import Local, LocalEngine
from launch.executors.slurm import Slurm, SlurmEngine
from launch.planning.target import parse
from mmdit_jax.errors import UserError
from mmdit_jax.remote import location


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
    add("--privileged", action="store_true", help="pods may do what they like with their node: TPUs before GKE 1.28")
    add(
        "--host-network",
        action=argparse.BooleanOptionalAction,
        help="the nodes' own network (default: for several slices of TPUs)",
    )
    add("--context", help="of kubectl (default: its current one)")
    parser.add_argument(
        "--grace", type=int, default=GRACE_SECONDS, metavar="S", help="from SIGTERM to the end (default: %(default)s)"
    )


def machine_of(args: argparse.Namespace) -> Machine:
    """What one run is given.

    Raises:
      UserError: a number too small, or two options that say the same.
    """
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


def engine_of(args: argparse.Namespace, study_dir: Path) -> Engine:
    """The engine, for the study that lies in ``study_dir``.

    Raises:
      UserError: an option that it would refuse.
    """
    if args.executor == "local":
        return LocalEngine(study_dir, Local(args.at_once, args.cores, args.host_memory, args.grace))
    if args.executor == "k8s":
        return KubernetesEngine(location(study_dir), _kubernetes(args))
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
    return SlurmEngine(study_dir, slurm)


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
        privileged=args.privileged,
        host_network=args.host_network,
        context=args.context,
    )
