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

from launch.fit import LAWS, abscissa, column_options, fit
from launch.tables import EXIT_OK, ends, on_host, resampling_options, text_table
from mmdit_jax.config import Run
from mmdit_jax.errors import UserError
from scaling.plain import plain

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
    runs = candidates(args)
    spent = budgets(args, runs)
    laws, refused = _laws(table, args)
    options = []
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for run, (steps, told) in zip(runs, spent, strict=True):
        if steps is None:
            print(f"d{run.model.depth}: left out, {told['why']}", file=sys.stderr)
            continue
        sized = replace(run, steps=steps)
        row = pd.DataFrame([_described(sized)])
        for recipe in laws:
            n, d, c = (float(abscissa(row, args, x)[0]) for x in ("N", "D", "C"))
            options.append(Option(recipe, f"d{run.model.depth}", n, d, c))
            rows[recipe, f"d{run.model.depth}"] = {**_described(sized), **told}
    found = recommend(laws, options)
    doubts = (*refused, *found.doubts)
    if args.json:
        print(json.dumps(_told(found, rows, doubts)))
        return EXIT_OK
    print(text_table(_shown(found, rows, several=len(laws) > 1)))
    print(sentence(found, rows, several=len(laws) > 1))
    for doubt in doubts:
        print(f"before you rely on it: {doubt}")
    return EXIT_OK


def candidates(args: argparse.Namespace) -> list[Run]:
    """A run of each depth, its steps still open."""
    if args.study is None:
        from launch.planning.paper import planned_run

        return [
            planned_run(depth, resolution=args.resolution or 256, batch=args.batch)
            for depth in args.depths or PAPER_DEPTHS
        ]
    from launch.studies import load_study

    runs = load_study(args.study).runs
    base, depths = runs[0], sorted({run.model.depth for run in runs})
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


def sentence(found: Recommendation, rows: Mapping[tuple[str, str], dict[str, Any]], *, several: bool) -> str:
    """What to do, how surely, and what being wrong costs."""
    first, *others = found.choices
    row = rows[first.option.recipe, first.option.size]
    what = f"{first.option.size} {first.option.recipe}" if several else first.option.size
    second = others[0]
    then = f"{second.option.size} {second.option.recipe}" if several else second.option.size
    return (
        f"Spend it on {what} for {row['steps']:,} steps of {row['batch']:,}: loss {first.loss:.4g}, 95 % interval "
        f"{ends(first.low, first.high, digits=4)}. It is the best of {len(found.choices)} in {100 * first.best:.0f} % "
        f"of resampled laws; being wrong costs {100 * first.regret:.2g} % of loss on average "
        f"(95 % below {100 * first.regret_high:.2g} %), as much as {_waste(first.waste)} of the budget. "
        f"Next is {then}, with {100 * second.regret:.2g} %."
    )


def _waste(share: float) -> str:
    """A share of the budget; it is looked for up to all but the first of SHARES."""
    from scaling.recommend import SHARES

    return f"{'more than ' if share >= 1 - SHARES[0] else ''}{100 * share:.2g} %"


def _described(run: Run) -> dict[str, Any]:
    from launch.execute import describe

    return describe(run)


def _shown(found: Recommendation, rows: Mapping[tuple[str, str], dict[str, Any]], *, several: bool) -> pd.DataFrame:
    shown = []
    for choice in found.choices:
        row = rows[choice.option.recipe, choice.option.size]
        line: dict[str, str] = {"size": choice.option.size}
        if several:
            line["recipe"] = choice.option.recipe
        line |= {"parameters": f"{row['params']:,}", "steps": f"{row['steps']:,}", "FLOPs": f"{row['train_flops']:.2e}"}
        if "hours" in row:
            line["hours"] = f"{row['hours']:.3g}"
        line |= {
            "loss": f"{choice.loss:.4g}",
            "95 % interval": ends(choice.low, choice.high, digits=4),
            "best": f"{100 * choice.best:.0f} %",
            "regret": f"{100 * choice.regret:.2g} %",
            "of the budget": _waste(choice.waste),
        }
        shown.append(line)
    return pd.DataFrame(shown)


def _told(
    found: Recommendation, rows: Mapping[tuple[str, str], dict[str, Any]], doubts: Sequence[str]
) -> dict[str, Any]:
    told = []
    for choice in found.choices:
        row = rows[choice.option.recipe, choice.option.size]
        item: dict[str, Any] = {"size": choice.option.size, "recipe": choice.option.recipe}
        item |= {name: row[name] for name in ("depth", "params", "steps", "batch", "images", "train_flops")}
        item |= {name: row[name] for name in ("step_seconds", "hours", "peak_gib", "mfu_bound") if name in row}
        for name in ("loss", "low", "high", "best", "regret", "regret_high", "waste"):
            item[name] = plain(vars(choice)[name])
        told.append({**item, "beyond": list(choice.beyond)})
    return {"choices": told, "doubts": list(doubts)}


def _depths(text: str) -> tuple[int, ...]:
    """``4,8-10`` as 4, 8, 9, 10."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or int(first) < 1:
            raise argparse.ArgumentTypeError(f"{text!r}: expected depths, as 4,8-10")
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
