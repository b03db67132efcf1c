"""``mmdit plan``: does this depth, mesh and batch fit that pod, and how fast can it be: compiled for the real chip."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.planning.ask import ask, default_memo
from launch.planning.fit import ways_to_draw, ways_to_fit
from launch.planning.layout import Layout, layout_in, layout_of, why_not
from launch.planning.paper import T5_PARAMETERS, planned_run
from launch.planning.request import Request
from launch.planning.search import ROOM, Tried, outcome, ranked, search
from launch.planning.target import EXAMPLES as TOPOLOGIES
from launch.planning.target import Target, parse
from launch.planning.tell import plan_lines, study_lines
from launch.studies import load_study
from mmdit_jax.chips import GIB
from mmdit_jax.config import Run
from mmdit_jax.errors import UserError
from mmdit_jax.models.config import REMAT_POLICIES

EXAMPLES = """examples:
  mmdit plan --depth 38 --batch 4096 --resolution 256 --topology v5p:8x8x4
  mmdit plan --depth 38 --batch 4096 --resolution 1024 --topology h100:16x8 --auto --price 2.5
  mmdit plan --depth 24 --topology 2*v6e:16x16 --fsdp 64 --remat attention --accumulation 2 --json
  mmdit plan --sample --depth 38 --resolution 1024 --batch 1 --topology h100:1x1
  mmdit plan sd3_schedules --topology v5p:4x4x4          every run of a study, and which do not fit
"""
AXES = ("fsdp", "sequence", "tensor")
LAYOUT = tuple(vars(Layout()))
FIELDS = {f"{'model' if name == 'remat' else 'hardware'}.{name}": name for name in LAYOUT}
"""Fields of a run that --set may give, which ask for a layout as the options do."""
TWINS = {"batch": "batch", "steps": "steps", "resolution": "data.resolution"}
"""Options, and fields that --set would change against them."""
SEARCHES = ("auto", "tries")
OF_ONE_RUN = ("batch", "resolution", "factor", "text_tokens", "steps", "sample", *LAYOUT, *SEARCHES)
NUMBERS = (
    *("depth", "batch", "resolution", "factor", "text_tokens", "steps", *AXES, "accumulation", "tries", "price"),
)


def add_parsers(commands: Any) -> None:
    """Register ``plan``."""
    parser = commands.add_parser(
        "plan",
        help="what a training step or a sampler takes on a pod that is not here",
        description="Compile the real program for a machine that is not here: memory, FLOPs, traffic, and how fast it "
        "can be at best.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", metavar="STUDY", nargs="?", help="plan every run of a study, in place of --depth")
    parser.add_argument("--topology", required=True, metavar="T", help=f"{TOPOLOGIES}")
    shape = parser.add_argument_group("the run")
    shape.add_argument("--depth", type=int, metavar="N", help="blocks; width and heads follow")
    shape.add_argument("--batch", type=int, metavar="N", help="images a step (4096; of --sample 1)")
    shape.add_argument("--resolution", type=int, metavar="PX", help="side of an image (256)")
    shape.add_argument("--factor", type=int, metavar="N", help="pixels a latent pixel (8)")
    shape.add_argument("--text-tokens", type=int, metavar="N", help="CLIP's 77 and T5's (154)")
    shape.add_argument(
        "--steps", type=int, metavar="N", help="of training, for the days (500,000), or of sampling (50)"
    )
    shape.add_argument("--sample", action="store_true", help="plan drawing images with guidance, on one device")
    shape.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="overrides", help="any other field of the run"
    )
    laid = parser.add_argument_group("how it is laid out; what is left out is chosen by counting")
    for axis in AXES:
        laid.add_argument(f"--{axis}", type=int, metavar="N", help=f"devices along {axis}")
    laid.add_argument("--remat", choices=REMAT_POLICIES, help="what the backward pass recomputes")
    laid.add_argument("--accumulation", type=int, metavar="N", help="parts of a batch, one after the other")
    laid.add_argument(
        "--auto", action="store_true", help="search: counting puts layouts in order, the compiler decides"
    )
    laid.add_argument("--tries", type=int, metavar="N", help="compilations of --auto (6)")
    parser.add_argument("--price", type=float, metavar="P", help="of a device and hour")
    parser.add_argument("--memo", type=Path, metavar="DIR", help="where answers are kept (~/.cache/mmdit-jax/plans)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> int:
    """Plan one run, or every run of a study; exit code 0 whether it fits or not: the answer says."""
    _check(args)
    target = parse(args.topology)
    if args.study is not None:
        return _study(args, target)
    run = planned_run(
        args.depth,
        resolution=args.resolution or 256,
        batch=args.batch,
        steps=args.steps,
        factor=args.factor or 8,
        text_tokens=args.text_tokens or 154,
        sampling=args.sample,
        overrides=args.overrides,
    )
    tried: list[Tried] = []
    more = 0
    if args.sample:
        plan = _ask(args, Request(run, target, sampling=True))
    elif args.auto:
        plan, tried, more = _searched(args, run, target)
    else:
        plan = _ask(args, Request(laid_out(run, target, asked_of(args, run)), target))
    _add_costs(plan, args, 1 if args.sample else target.devices, run.steps)
    if args.sample and "t5" in run.data.text_encoders:
        plan["peak_gib_beside_t5"] = plan["peak_gib"] + 2 * T5_PARAMETERS / GIB
    if not plan["fits"]:
        _add_ways(plan, run, target, sampling=args.sample)
    if args.json:
        searched = {"tried": [_told(item) for item in tried], "more_layouts": more} if tried else {}
        print(json.dumps(plan | searched))
    else:
        print("\n".join(plan_lines(plan, tried, sampling=args.sample, more=more)))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that have no meaning together, and numbers that are none."""
    if (args.study is None) == (args.depth is None):
        raise UserError("plan: expected --depth N or a STUDY, one of them")
    for name in NUMBERS:
        value = vars(args)[name]
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name}={value}: expected {'more than 0' if value <= 0 else 'a finite number'}")
    given = [name for name in OF_ONE_RUN if vars(args)[name] not in (None, False)]
    if args.study is not None and given:
        option = given[0].replace("_", "-")
        raise UserError(f"--{option}: of one run, by --depth; a study has its own (change it by --set FIELD=VALUE)")
    paths = [item.partition("=")[0].strip() for item in args.overrides]
    for name, path in TWINS.items():
        if name in given and path in paths:
            raise UserError(f"--{name}={vars(args)[name]}: expected it or --set {path}=..., not both")
    if args.sample:
        laid = [f"--{name}" for name in given if name in (*LAYOUT, *SEARCHES)]
        trains = [path for path in paths if path in FIELDS or path.startswith(("hardware.", "optimizer."))]
        for option in (*laid, *(f"--set {path}" for path in trains)):
            raise UserError(f"{option}: of training; --sample draws on one device")
    if args.tries is not None and not args.auto:
        raise UserError(f"tries={args.tries}: expected with --auto")


def asked_of(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Fields of the layout that are asked for, by their options or by --set.

    Raises:
      UserError: by both, and they differ.
    """
    paths = {item.partition("=")[0].strip() for item in args.overrides}
    asked = {}
    for path, name in FIELDS.items():
        given, there = vars(args)[name], vars(layout_of(run))[name]
        if path in paths and given not in (None, there):
            raise UserError(f"{name}={given}: --set {path}={there} says otherwise; expected one of them")
        if path in paths or given is not None:
            asked[name] = there if path in paths else given
    return asked


def laid_out(run: Run, target: Target, asked: Mapping[str, Any]) -> Run:
    """The run in the layout that is asked for; what that leaves open as counting likes it best."""
    possible, refused = ranked(run, target, asked)
    return (possible[0][0] if possible else refused[0].layout).of(run)


def _ask(args: argparse.Namespace, request: Request) -> dict[str, Any]:
    """The plan; what the compiler does not say of a program that it refuses is None."""
    nothing = dict.fromkeys(("argument_gib", "temporary_gib", "step_seconds", "mfu_bound"))
    return nothing | ask(request, args.memo or default_memo())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _searched(args: argparse.Namespace, run: Run, target: Target) -> tuple[dict[str, Any], list[Tried], int]:
    """The best layout's plan (where none fits, that of the one that needs least), others, and how many more there are.

    Raises:
      UserError: the compiler died of all that it was asked.
    """
    asked = asked_of(args, run)
    best, tried = search(run, target, lambda laid: _ask(args, Request(laid, target)), args.tries or 6, _say, asked)
    possible, refused = ranked(run, target, asked)
    more = len(possible) + len(refused) - len(tried)
    if best is not None:
        return best, tried, more
    plans = [item.plan for item in tried if item.plan is not None]
    if plans:
        return min(plans, key=lambda plan: plan["peak_gib"]), tried, more
    least = tried[0]
    if least.estimate.bytes <= ROOM * target.usable_bytes:  # it was asked for
        raise UserError(f"{least.layout}: {least.why}")
    return _ask(args, Request(least.layout.of(run), target)), tried, more


def _add_ways(plan: dict[str, Any], run: Run, target: Target, *, sampling: bool) -> None:
    """What would make it fit."""
    if sampling:
        plan["ways_to_fit"] = ways_to_draw(run, target, plan["peak_gib"])
    else:
        plan["ways_to_fit"] = ways_to_fit(layout_in(plan).of(run), target, plan["peak_gib"])


def _add_costs(plan: dict[str, Any], args: argparse.Namespace, devices: int, steps: int) -> None:
    """Seconds, days, device-hours and cost of all steps at the bound."""
    if plan["step_seconds"] is None:
        return
    seconds = plan["step_seconds"] * steps
    plan |= {"steps": steps, "seconds": seconds, "days": seconds / 86_400, "device_hours": seconds * devices / 3600}
    if args.price is not None:
        plan["cost"] = plan["device_hours"] * args.price


def _told(item: Tried) -> dict[str, Any]:
    layout = vars(item.layout)
    told = {"layout": layout, "counted_gib": item.estimate.bytes / GIB, "counted_seconds": item.estimate.seconds}
    if item.plan is not None:
        told |= {name: item.plan.get(name) for name in ("fits", "peak_gib", "step_seconds", "mfu_bound")}
    return told | {"why": item.why or "chosen"}


def _study(args: argparse.Namespace, target: Target) -> int:
    """A row a run; runs of the same program are compiled once, and told on stderr as they are."""
    study = load_study(args.study, args.overrides)
    rows = []
    for run in study.runs:
        row: dict[str, Any] = {"run_id": run.run_id, "name": run.name, "depth": run.model.depth}
        try:
            reason = why_not(run, layout_of(run), target)
            if reason is not None:
                raise UserError(reason)
            plan = _ask(args, Request(run, target))
            if not plan["memoised"]:
                _say(f"{run.name}: {outcome(plan)}")
            _add_costs(plan, args, target.devices, run.steps)
            if not plan["fits"]:
                _add_ways(plan, run, target, sampling=False)
            row |= plan
        except UserError as error:
            row |= {"fits": False, "error": str(error)}
        rows.append(row)
    if args.json:
        print(json.dumps({"study": study.name, "topology": target.name, "runs": rows}))
    else:
        print("\n".join(study_lines(study.name, target.name, rows)))
    return 0
