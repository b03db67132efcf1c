"""``mmdit fit``: a scaling law from any CSV or Parquet file."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from launch.tables import EXIT_OK, command_parser, resampling_options

if TYPE_CHECKING:
    from scaling.laws import PowerLaw


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command, which sets ``run``, a function of the parsed arguments that returns an exit code.

    Bad input raises ``scaling.errors.TableError``, which the caller prints as one line and turns into exit code 2.
    """
    fit = command_parser(
        subparsers,
        "fit",
        "fit a scaling law to a table",
        "mmdit fit studies/quickstart/results.csv --where dataset=scenes --c train_flops --loss val_loss --json",
    )
    fit.add_argument("table", help="CSV or Parquet file")
    fit.add_argument("--law", choices=["power"], default="power", help="power: L = floor + a·C^(-b)")
    fit.add_argument("--c", metavar="COL", required=True, help="column of compute (FLOPs, or parameters, or images)")
    fit.add_argument("--loss", metavar="COL", required=True, help="column of losses")
    fit.add_argument("--floor", action=argparse.BooleanOptionalAction, default=False, help="fit an irreducible loss")
    fit.add_argument("--huber", metavar="DELTA", type=float, default=1e-3, help="delta on log residuals (%(default)s)")
    fit.add_argument("--drop-highest", metavar="K", type=int, default=0, help="leave out the K highest losses")
    fit.add_argument("--group", metavar="COL", help="rows of one value are resampled together (run_id for curves)")
    resampling_options(fit)
    fit.set_defaults(run=run_fit)


def run_fit(args: argparse.Namespace) -> int:
    """Fit the law and print it, as text or as one JSON object (``law, params, intervals, objective, rows, …``)."""
    from scaling.laws import fit_power_law
    from scaling.tables import labels, numbers, read_table, where

    table = where(read_table(args.table), args.where)
    law = fit_power_law(
        numbers(table, args.c, positive=True),
        numbers(table, args.loss, positive=True),
        floor=args.floor,
        groups=None if args.group is None else labels(table, args.group),
        huber=args.huber,
        drop_highest=args.drop_highest,
        draws=args.bootstrap,
        seed=args.seed,
    )
    print(json.dumps(law.to_json()) if args.json else _law_text(law, args.c, args.loss))
    return EXIT_OK


def _law_text(law: PowerLaw, compute: str, loss: str) -> str:
    lines = [f"{loss} = floor + a * {compute}^(-b)   ({law.rows} rows, {law.groups} groups)"]
    for name, value in law.params.items():
        low, high = law.intervals[name]
        lines.append(f"{name:>6} = {value:<12.6g} 95 % interval [{low:.6g}, {high:.6g}]")
    lines.append(f"{law.draws} bootstraps of {law.bootstrap}; Huber delta {law.huber:g}; objective {law.objective:.6g}")
    lines += [f"not identifiable: {reason}" for reason in law.reasons]
    return "\n".join(lines)
