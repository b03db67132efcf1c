"""``mmdit plan``: does this depth, mesh and batch fit that pod, and how fast can it be: compiled for the real chip."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from launch.planning.ask import ask, default_memo
from launch.planning.layout import Layout, layout_of, why_not
from launch.planning.paper import T5_PARAMETERS, planned_run
from launch.planning.request import Request
from launch.planning.search import Tried, ranked, search, ways_to_fit
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
    shape.add_argument("--resolution", type=int, default=256, metavar="PX", help="side of an image (%(default)s)")
    shape.add_argument("--factor", type=int, default=8, metavar="N", help="pixels a latent pixel (%(default)s)")
    shape.add_argument("--text-tokens", type=int, default=154, metavar="N", help="CLIP's 77 and T5's (%(default)s)")
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
    laid.add_argument("--tries", type=int, default=6, metavar="N", help="compilations of --auto (%(default)s)")
    parser.add_argument("--price", type=float, metavar="P", help="of a device and hour")
    parser.add_argument("--memo", type=Path, metavar="DIR", help="where answers are kept (~/.cache/mmdit-jax/plans)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> int:
    """Plan one run, or every run of a study; exit code 0 whether it fits or not: the answer says."""
    target = parse(args.topology)
    if (args.study is None) == (args.depth is None):
        raise UserError("plan: expected --depth N or a STUDY, one of them")
    for name in ("price", "tries", "steps", "batch"):
        value = vars(args)[name]
        if value is not None and value <= 0:
            raise UserError(f"{name}={value}: expected more than 0")
    if args.study is not None:
        return _study(args, target)
    run = planned_run(
        args.depth,
        resolution=args.resolution,
        batch=args.batch,
        steps=args.steps,
        factor=args.factor,
        text_tokens=args.text_tokens,
        sampling=args.sample,
        overrides=args.overrides,
    )
    tried: list[Tried] = []
    if args.sample:
        plan = _ask(args, Request(run, target, sampling=True))
    elif args.auto:
        plan, tried = _searched(args, run, target)
    else:
        plan = _ask(args, Request(laid_out(args, run, target), target))
    _add_costs(plan, args, 1 if args.sample else target.devices, run.steps)
    if args.sample:
        plan["peak_gib_beside_t5"] = plan["peak_gib"] + 2 * T5_PARAMETERS / GIB
    if not plan["fits"] and not args.sample:
        plan["ways_to_fit"] = ways_to_fit(laid_out(args, run, target), target, plan["peak_gib"])
    if args.json:
        print(json.dumps(plan | ({"tried": [_told(item) for item in tried]} if tried else {})))
    else:
        print("\n".join(plan_lines(plan, tried, sampling=args.sample)))
    return 0


def laid_out(args: argparse.Namespace, run: Run, target: Target) -> Run:
    """The run in the layout that the options ask for; what they leave open as counting likes it best."""
    asked = {name: vars(args)[name] for name in vars(Layout()) if vars(args)[name] is not None}
    if set(asked) == set(vars(Layout())):
        layout = Layout(**asked)
        reason = why_not(run, layout, target.devices)
        if reason is not None:
            raise UserError(f"{layout}: {reason}")
        return layout.of(run)
    possible, refused = ranked(run, target)
    every = [layout for layout, _ in possible] + [item.layout for item in refused]
    alike = [layout for layout in every if all(vars(layout)[name] == value for name, value in asked.items())]
    if not alike:
        told = ", ".join(f"{name}={value}" for name, value in asked.items())
        rest = {name: asked.get(name, value) for name, value in vars(every[0]).items()}
        reason = why_not(run, Layout(**rest), target.devices) or "no such layout"
        raise UserError(f"{told}: {reason}")
    return alike[0].of(run)


def _ask(args: argparse.Namespace, request: Request) -> dict[str, Any]:
    return ask(request, args.memo or default_memo())


def _searched(args: argparse.Namespace, run: Run, target: Target) -> tuple[dict[str, Any], list[Tried]]:
    """The best layout's plan; where none fits, that of the one that needs least."""
    best, tried = search(
        run,
        target,
        lambda laid: _ask(args, Request(laid, target)),
        args.tries,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    if best is not None:
        return best, tried
    plans = [item.plan for item in tried if item.plan is not None]
    if plans:
        return min(plans, key=lambda plan: plan["peak_gib"]), tried
    least = tried[0].layout
    return _ask(args, Request(least.of(run), target)), tried


def _add_costs(plan: dict[str, Any], args: argparse.Namespace, devices: int, steps: int) -> None:
    """Seconds, days, device-hours and cost of all steps at the bound."""
    if "step_seconds" not in plan:
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
    """A row a run; runs of the same program are compiled once."""
    study = load_study(args.study, args.overrides)
    rows = []
    for run in study.runs:
        row: dict[str, Any] = {"run_id": run.run_id, "name": run.name, "depth": run.model.depth}
        try:
            reason = why_not(run, layout_of(run), target.devices)
            if reason is not None:
                raise UserError(reason)
            plan = _ask(args, Request(run, target))
            _add_costs(plan, args, target.devices, run.steps)
            if not plan["fits"]:
                plan["ways_to_fit"] = ways_to_fit(run, target, plan["peak_gib"])
            row |= plan
        except UserError as error:
            row |= {"fits": False, "error": str(error)}
        rows.append(row)
    if args.json:
        print(json.dumps({"study": study.name, "topology": target.name, "runs": rows}))
    else:
        print("\n".join(study_lines(study.name, target.name, rows)))
    return 0
