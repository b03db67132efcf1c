"""``mmdit recommend``: what to spend a budget on, by the laws of the runs that are done and the plans of the pod."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from launch.doubts import mixed, passes, repeated, unlike
from launch.fit import LAWS, column_options, fit, of_run
from launch.recommend_text import as_json, sentence, shown
from launch.tables import EXIT_OK, on_host, resampling_options, text_table
from mmdit_jax.config import Run
from mmdit_jax.errors import UserError

if TYPE_CHECKING:
    from scaling.laws import Law
    from scaling.recommend import Recommendation

EXAMPLES = """examples:
  mmdit recommend studies/ladder_small/results.csv --study ladder_small --flops 1e15 --depths 4-16
  mmdit recommend results.csv --flops 1e22 --batch 4096 --resolution 256              the paper's sizes
  mmdit recommend results.csv --by formulation --hours 72 --topology v5p:8x8x4        what a pod does in three days
"""
PAPER_DEPTHS = (15, 18, 21, 24, 30, 38)
MOST_STEPS = 10**9


def add_parsers(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "recommend",
        help="which size, how many steps and which recipe a budget should be spent on, and the regret of being wrong",
        description="Fit a law to each recipe's runs, ask it for every size that the budget could be spent on, and say "
        "which is best, how surely, and what a wrong choice costs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", help="CSV or Parquet file of finished runs")
    budget = parser.add_argument_group("the budget")
    budget.add_argument("--flops", type=float, metavar="F", help="of training, per-stream count")
    budget.add_argument("--hours", type=float, metavar="H", help="of the pod --topology, at the speed of its plans")
    budget.add_argument("--topology", metavar="T", help="as of mmdit plan: which sizes fit, and how long they take")
    budget.add_argument("--memo", type=Path, metavar="DIR", help="where plans are kept (~/.cache/mmdit-jax/plans)")
    sizes = parser.add_argument_group("the sizes")
    sizes.add_argument("--study", help="sizes of this study's model at other depths (default: the paper's)")
    sizes.add_argument("--depths", type=_depths, metavar="D,D-D", help="which (the study's own, or the paper's)")
    sizes.add_argument("--batch", type=int, metavar="N", help="images a step (the study's, or 4096)")
    sizes.add_argument("--resolution", type=int, metavar="PX", help="side of an image, without --study (256)")
    parser.add_argument("--by", metavar="COL", help="recipes: a law for each value of this column, as formulation")
    parser.add_argument("--law", choices=LAWS, default="joint", help="which (%(default)s)")
    column_options(parser)
    parser.add_argument("--drop-highest", metavar="K", type=int, default=0, help="leave out the K highest losses")
    parser.add_argument("--group", metavar="COL", help="rows of one value are resampled together")
    resampling_options(parser)
    parser.set_defaults(run=run_recommend, starts=100, resample="auto")


def run_recommend(args: argparse.Namespace) -> int:
    """Print the choices, best first, and one sentence."""
    from scaling.recommend import Option, recommend
    from scaling.tables import read_table, where

    _check(args)
    on_host()
    table = where(read_table(args.table), args.where)
    runs = candidates(args, table)
    sized: dict[str, tuple[Run, dict[str, Any]]] = {}
    for run, (steps, told) in zip(runs, budgets(args, runs), strict=True):
        if steps is None:
            print(f"d{run.model.depth}: left out, {told['why']}", file=sys.stderr)
            continue
        sized[f"d{run.model.depth}"] = replace(run, steps=steps), told
    _check_sizes(args, sized)
    laws, refused = _laws(table, args)
    if len(laws) * len(sized) < 2:
        raise UserError(
            f"depths={', '.join(sized)}: nothing to compare; expected two or more --depths, or --by with two or more "
            "recipes"
        )
    options = []
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for size, (run, told) in sized.items():
        row = _described(run)
        for recipe, law in laws.items():
            at = {"N": row["params"], "D": row["images"], "C": row["train_flops"]}
            at |= {x: of_run(row, args, x) for x in law.kind.abscissae}
            options.append(Option(recipe, size, at["N"], at["D"], at["C"]))
            rows[recipe, size] = {**row, **told}
    found = recommend(laws, options)
    doubts = (*refused, *found.doubts, *_doubts(args, table, found, {size: run for size, (run, _) in sized.items()}))
    if args.json:
        print(json.dumps(as_json(found, rows, doubts)))
        return EXIT_OK
    print(text_table(shown(found, rows, several=len(laws) > 1)))
    print(sentence(found, rows, several=len(laws) > 1))
    for doubt in doubts:
        print(f"before you rely on it: {doubt}")
    return EXIT_OK


def candidates(args: argparse.Namespace, table: pd.DataFrame) -> list[Run]:
    """A run of each depth, its steps still open; all else as in the first of the study's runs that is in the table."""
    if args.study is None:
        from launch.planning.paper import planned_run

        return [
            planned_run(depth, resolution=args.resolution or 256, batch=args.batch)
            for depth in args.depths or PAPER_DEPTHS
        ]
    from launch.studies import load_study

    runs = load_study(args.study).runs
    known = set(table["run_id"].astype(str)) if "run_id" in table.columns else set()
    base = next((run for run in runs if run.run_id in known), runs[0])
    depths = sorted({run.model.depth for run in runs})
    grown = {run.model.depth: run.model for run in runs}
    if args.depths is not None:
        strange = [depth for depth in args.depths if depth not in grown]
        rules = {(model.num_heads / model.depth, model.head_size) for model in grown.values()}
        share = rules.pop()[0] if len(rules) == 1 else math.nan  # heads a block
        for depth in strange:
            if not (share * depth).is_integer():
                raise UserError(
                    f"depths={depth}: not in study {args.study!r}, whose widths do not follow from the depth; "
                    f"expected some of {', '.join(map(str, depths))}"
                )
            grown[depth] = replace(base.model, depth=depth, heads=None if share == 1 else int(share * depth))
        depths = list(args.depths)
    return [replace(base, model=grown[depth], batch=args.batch or base.batch) for depth in depths]


def budgets(args: argparse.Namespace, runs: Sequence[Run]) -> list[tuple[int | None, dict[str, Any]]]:
    """Of each run the steps that the budget pays for, and what is known of its time; None where it does not fit."""
    found: list[tuple[int | None, dict[str, Any]]] = []
    for run in runs:
        told: dict[str, Any] = {}
        seconds = None
        if args.topology is not None:
            told = _planned(run, args)
            if not told["fits"]:
                found.append((None, {"why": told.get("why", f"it needs {told['peak_gib']:.1f} GiB a device")}))
                continue
            seconds = told["step_seconds"]
        one = run.train_flops(1)
        steps = args.flops / one if args.flops is not None else args.hours * 3600 / (seconds or math.nan)
        if not 1 <= steps <= MOST_STEPS:
            found.append((None, {"why": f"the budget pays for {steps:.3g} steps"}))
            continue
        told = {name: told[name] for name in ("step_seconds", "peak_gib", "mfu_bound") if name in told}
        if seconds is not None:
            told["hours"] = int(steps) * seconds / 3600
        found.append((int(steps), told))
    return found


def _planned(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    from launch.plan import laid_out
    from launch.planning.ask import ask, default_memo
    from launch.planning.request import Request
    from launch.planning.target import parse

    target = parse(args.topology)
    try:
        return ask(Request(laid_out(run, target, {}), target), args.memo or default_memo())
    except UserError as error:
        if "install" in str(error) or "topology" in str(error):
            raise
        return {"fits": False, "why": str(error)}


def _laws(table: pd.DataFrame, args: argparse.Namespace) -> tuple[dict[str, Law], list[str]]:
    """A law a recipe, and why others have none."""
    from scaling.errors import TableError
    from scaling.tables import labels
    from scaling.units import matching

    losses = matching(table, args.loss)
    if len(losses) > 1:
        raise TableError(f"loss={args.loss!r}: several columns; expected one")
    (loss,) = losses
    if args.by is None:
        return {"": fit(table, args, args.law, loss)}, []
    names = labels(table, args.by)
    laws, refused = {}, []
    for index, recipe in enumerate(dict.fromkeys(names)):
        # With one seed for all, two recipes of as many runs would be resampled alike.
        own = argparse.Namespace(**{**vars(args), "seed": args.seed + index})
        try:
            laws[recipe] = fit(table[names == recipe].reset_index(drop=True), own, args.law, loss)
        except TableError as error:
            refused.append(f"{recipe} has no law: {error}")
    if not laws:
        raise TableError(f"by={args.by!r}: no recipe has a law ({refused[0]})")
    return laws, refused


def _doubts(
    args: argparse.Namespace, table: pd.DataFrame, found: Recommendation, sized: Mapping[str, Run]
) -> list[str]:
    """What the rows and the best size say against it, beside what the laws do."""
    from scaling.tables import labels

    best = found.choices[0].option
    run = sized[best.size]
    own = table if args.by is None else table[labels(table, args.by) == best.recipe]
    # The recipe's own columns are those of the rows; what is spent is counted by these of the study's.
    counted = ("architecture", "dataset", "batch") if args.study is not None else ("batch",)
    doubts = mixed(table, by=args.by, parts=True)
    doubts += repeated(table, (args.c, args.n, args.d, args.loss, args.by or ""))
    doubts += unlike(_described(run), own, [name for name in counted if name != args.by])
    if args.by != "dataset" or best.recipe == run.data.name:
        doubts += passes(run, own)
        others = [other for size, other in sized.items() if size != best.size]
        again = sum(bool(passes(other, own)) for other in others)
        doubts += [f"images are repeated so at {again} of the {len(others)} other sizes"] if again else []
    if args.topology is not None:
        bound = "step times are a bound that no real step reaches"
        doubts.append(f"{bound}; what a step costs at any size slows small models most")
    return doubts


def _described(run: Run) -> dict[str, Any]:
    from launch.execute import describe

    return describe(run)


def _depths(text: str) -> tuple[int, ...]:
    """``4,8-10`` as 4, 8, 9, 10."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or int(first) < 1 or int(last or first) < int(first):
            raise argparse.ArgumentTypeError(f"{text!r}: expected depths from low to high, as 4,8-10")
        found += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(found))


def _check(args: argparse.Namespace) -> None:
    if (args.flops is None) == (args.hours is None):
        raise UserError("recommend: expected --flops F or --hours H, one of them")
    for name in ("flops", "hours", "batch", "resolution"):
        value = vars(args)[name]
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name}={value:g}: expected a number above 0")
    if args.hours is not None and args.topology is None:
        raise UserError(f"hours={args.hours:g}: of which pod? expected --topology T (see mmdit plan --help)")
    if args.study is not None and args.resolution is not None:
        raise UserError(f"resolution={args.resolution}: the study has its own; expected it without --study")


def _check_sizes(args: argparse.Namespace, sized: Mapping[str, object]) -> None:
    if not sized:
        raise UserError("depths: none is left; expected one that the budget can be spent on")
    if len(sized) > 1 and args.law != "joint":
        raise UserError(
            f"law={args.law!r}: cannot choose among {len(sized)} sizes, as it knows no trade of N against D; expected "
            "--law joint, or one of --depths and --by"
        )
