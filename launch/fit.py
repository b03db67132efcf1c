"""``mmdit fit``: scaling laws from any CSV or Parquet file."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from launch.approaches import APPROACHES, OPTIONS, run_approach, without_highest
from launch.doubts import beyond, few_draws, mixed, repeated
from launch.fit_text import compare_text, law_text, point_text
from launch.tables import EXIT_OK, check_out, on_host, out_option, resampling_options
from scaling.errors import TableError
from scaling.plain import plain

if TYPE_CHECKING:
    from scaling.hold_out import HoldOut
    from scaling.laws import Law

EXAMPLES = """examples:
  mmdit fit studies/ladder_small/results.csv --law joint --n params --d images --loss val_loss --at N=1e7,D=1e6
  mmdit fit studies/quickstart/curves.csv --c train_flops --loss val_loss --group run_id --json
  mmdit fit results.csv --law power --floor --loss 'val_loss_*'           a law for every bin of t
  mmdit fit results.csv --law joint --compare                             which form foretells the largest runs best
  mmdit fit curves.csv --law envelope --group run_id                      best sizes along the frontier (approach 1)
  mmdit fit results.csv --law isoflop                                     best sizes at equal compute (approach 2)
"""
LAWS = {
    "power": "L = floor + a·C^(−b), without floor unless --floor",
    "parameters": "L = E + A·N^(−alpha)",
    "data": "L = E + B·D^(−beta)",
    "joint": "L = E + A·N^(−alpha) + B·D^(−beta) (Hoffmann's approach 3)",
}
COLUMNS = {"C": "c", "N": "n", "D": "d"}
"""Abscissae and the options that name their columns."""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "fit",
        help="fit a scaling law to a table",
        description="Fit a scaling law to a table. "
        + "; ".join(f"{name}: {text}" for name, text in LAWS.items())
        + ".",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", help="CSV or Parquet file")
    parser.add_argument("--law", choices=[*LAWS, *APPROACHES], default="power", help="which (%(default)s)")
    column_options(parser)
    parser.add_argument(
        "--tolerance", metavar="T", type=float, help="of log C in a budget (isoflop: 0.1), log D/N on a ladder (0.15)"
    )
    parser.add_argument("--drop-highest", metavar="K", type=int, default=0, help="leave out the K highest losses")
    parser.add_argument("--group", metavar="COL", help="rows of one value are resampled together (run_id for curves)")
    parser.add_argument("--starts", metavar="N", type=int, default=100, help="starts of every fit (%(default)s)")
    parser.add_argument(
        "--resample",
        default="auto",
        metavar="WHAT",
        help="runs (groups), residuals, seeds (repeated runs about their mean), or auto: runs where there are 10",
    )
    parser.add_argument("--at", metavar="N=…,D=…", action="append", default=[], help="the loss there; repeatable")
    parser.add_argument("--compare", action="store_true", help="forms by how well they foretell the largest runs")
    out_option(parser)
    resampling_options(parser)
    parser.set_defaults(run=run_fit, unset={name: parser.get_default(name) for name in OPTIONS})


def column_options(parser: argparse.ArgumentParser) -> None:
    """Which columns a law is of, and what is fitted: shared by the commands that fit one."""
    parser.add_argument("--c", metavar="COL", default="train_flops", help="compute (%(default)s)")
    parser.add_argument("--n", metavar="COL", default="params", help="parameters (%(default)s)")
    parser.add_argument("--d", metavar="COL", default="images", help="data (%(default)s)")
    parser.add_argument("--tokens-per-image", metavar="K", type=_positive, help="count D in image tokens: --d times K")
    parser.add_argument(
        "--loss", metavar="COL", default="val_loss", help="losses; several by commas or * (%(default)s)"
    )
    parser.add_argument("--floor", action=argparse.BooleanOptionalAction, help="an irreducible loss")
    parser.add_argument(
        "--huber", metavar="DELTA", type=float, default=1e-3, help="delta on log residuals (%(default)s)"
    )


def run_fit(args: argparse.Namespace) -> int:
    """Fit and print, as text or as one JSON object (``law, params, intervals, objective, rows, …``)."""
    from scaling.tables import read_table, where
    from scaling.units import matching

    check_out(args.out)
    on_host()
    table = where(read_table(args.table), args.where)
    args.points = points = [parse_point(text) for text in args.at]
    losses = matching(table, args.loss)
    doubts = repeated(table, (args.c, args.n, args.d, *losses)) + mixed(table)
    if args.law in APPROACHES:
        return run_approach(table, args, _one(losses), units(args), doubts)
    if args.tolerance is not None:
        raise TableError(f"tolerance={args.tolerance:g}: --law {args.law} takes no --tolerance")
    told = []
    for loss in losses:
        law = fit(table, args, args.law, loss)
        told.append((loss, law, [at_point(law, point) for point in points]))
    # Whether every law's intervals are profiles depends on the rows' groups alone.
    doubts += few_draws(args.bootstrap) if told[0][1].interval.startswith("bootstrap") else []
    compared = compare(table, args) if args.compare else None
    if args.out is not None:
        from scaling.law_figures import write_laws

        write_laws({loss: (law, law_rows(table, args, law, loss)) for loss, law, _ in told}, args.out, units(args))
    if args.json:
        objects = [
            {
                **law.to_json(),
                "loss": loss,
                "columns": told_columns(args, law, loss),
                "doubts": doubts,
                **({"at": at} if at else {}),
            }
            for loss, law, at in told
        ]
        whole: dict[str, Any] = objects[0] if len(objects) == 1 else {"laws": objects}
        print(json.dumps({**whole, **({"compare": compared.to_json()} if compared is not None else {})}))
        return EXIT_OK
    for loss, law, at in told:
        print(law_text(law, loss, told_columns(args, law, loss)))
        for found in at:
            print(point_text(found))
        print("".join(f"before you rely on it: {doubt}\n" for doubt in doubts))
    if compared is not None:
        print(compare_text(compared))
    return EXIT_OK


def fit(table: pd.DataFrame, args: argparse.Namespace, name: str, loss: str) -> Law:
    """The law ``name`` of ``loss`` by the options of ``column_options`` and ``add_parsers``."""
    from scaling.law_kinds import KINDS
    from scaling.laws import fit_law
    from scaling.tables import labels, numbers, require

    kind = KINDS[name]
    require(table, [loss])
    blank = table[loss].isna().to_numpy()
    if blank.any():
        raise TableError(
            f"{loss}=blank in {int(blank.sum())} of {len(table)} rows (the first is row {int(blank.argmax()) + 1}), as "
            f"of runs that are not done: expected a loss in each; leave them out with --where '{loss}>0'"
        )
    return fit_law(
        kind,
        [abscissa(table, args, x) for x in kind.abscissae],
        numbers(table, loss, positive=True),
        floor=(name != "power") if args.floor is None else args.floor,
        groups=None if args.group is None else labels(table, args.group),
        huber=args.huber,
        drop_highest=args.drop_highest,
        draws=args.bootstrap,
        starts=args.starts,
        resample=args.resample,
        seed=args.seed,
    )


def abscissa(table: pd.DataFrame, args: argparse.Namespace, name: str) -> Any:
    """C, N or D as a column of numbers above zero."""
    from scaling.tables import numbers

    found = numbers(table, vars(args)[COLUMNS[name]], positive=True)
    return found * args.tokens_per_image if name == "D" and args.tokens_per_image is not None else found


def of_run(run: Mapping[str, Any], args: argparse.Namespace, name: str) -> float:
    """C, N or D of a run that a law is asked about, as ``launch.execute.describe`` tells it.

    Raises TableError where it is not told under the name of the rows' column.
    """
    column = vars(args)[COLUMNS[name]]
    if column not in run:
        raise TableError(
            f"{COLUMNS[name]}={column!r}: no column of a run's own, which has params, images, train_flops and "
            "train_flops_6nd; rename the table's column"
        )
    return float(abscissa(pd.DataFrame([run]), args, name)[0])


def units(args: argparse.Namespace) -> dict[str, str]:
    """What C, N and D are counted in."""
    from scaling.units import unit

    return {
        name: unit(vars(args)[column], args.tokens_per_image if name == "D" else None)
        for name, column in COLUMNS.items()
    }


def told_columns(args: argparse.Namespace, law: Law, loss: str) -> dict[str, dict[str, str]]:
    """Column and unit of each abscissa and of the loss."""
    from scaling.units import unit

    counted = units(args)
    found = {x: {"column": str(vars(args)[COLUMNS[x]]), "unit": counted[x]} for x in law.kind.abscissae}
    return {**found, "L": {"column": loss, "unit": unit(loss)}}


def law_rows(table: pd.DataFrame, args: argparse.Namespace, law: Law, loss: str) -> pd.DataFrame:
    """What was fitted: a column an abscissa, L, and whether a row was dropped."""
    from scaling.tables import numbers

    frame = pd.DataFrame({x: abscissa(table, args, x) for x in law.kind.abscissae})
    frame["L"] = numbers(table, loss, positive=True)
    frame["dropped"] = frame.index.isin(law.dropped)
    return frame


def parse_point(text: str) -> dict[str, float]:
    """``N=1e9,D=1e12`` as numbers. Raises TableError where it is not such."""
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if name.strip() not in COLUMNS or not 0 < number < float("inf"):
            raise TableError(f"at={text!r}: expected C=…, or N=…,D=… with numbers above 0")
        found[name.strip()] = number
    return found


def at_point(law: Law, point: dict[str, float]) -> dict[str, Any]:
    """The law's loss at a point, with the interval of the law and that of one new run.

    Raises TableError where the point lacks an abscissa of the law.
    """
    missing = [x for x in law.kind.abscissae if x not in point]
    if missing:
        raise TableError(f"at={point}: {missing[0]} is missing; expected {', '.join(law.kind.abscissae)}")
    at = [point[x] for x in law.kind.abscissae]
    (low,), (high,) = (end.reshape(-1) for end in law.profile_band(*at))
    (new_low,), (new_high,) = (end.reshape(-1) for end in law.new_run(*at))
    return {
        **{x: value for x, value in zip(law.kind.abscissae, at, strict=True)},
        "loss": float(law.predict(*at)),
        "law": plain([low, high]),
        "new_run": plain([new_low, new_high]),
        "beyond": beyond(law, point),
    }


def compare(table: pd.DataFrame, args: argparse.Namespace) -> HoldOut:
    """Leave the largest out, for all forms that the table has columns for."""
    from scaling.hold_out import leave_largest_out
    from scaling.tables import labels, numbers
    from scaling.units import matching

    loss = matching(table, args.loss)[0]
    table, _ = without_highest(table, loss, args.drop_highest)
    columns = {"loss": numbers(table, loss, positive=True), "C": abscissa(table, args, "C")}
    columns |= {x: abscissa(table, args, x) for x in ("N", "D") if vars(args)[COLUMNS[x]] in table.columns}
    groups = None if args.group is None else labels(table, args.group)
    return leave_largest_out(columns, groups=groups, huber=args.huber)


def _one(losses: list[str]) -> str:
    """Raises TableError for several columns of losses."""
    if len(losses) > 1:
        raise TableError(f"loss={', '.join(losses)!r}: expected one column for this law")
    return losses[0]


def _positive(text: str) -> float:
    """An argument that is a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value
