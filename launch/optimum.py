"""``mmdit optimum``: where a hyperparameter is best at each size, and its drift, from any CSV or Parquet file."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from launch.tables import EXIT_OK, check_out, command_parser, natural, out_option, table_options, text_table

if TYPE_CHECKING:
    import pandas as pd

    from scaling.optimum import Drift, Optimum


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = command_parser(
        subparsers,
        "optimum",
        "where a learning rate, or another hyperparameter, is best at each size of a model, and how that drifts",
        "mmdit optimum studies/mup_small/results.csv --by width --split parametrization --out figures",
    )
    parser.add_argument("table", help="CSV or Parquet file with a row a run")
    parser.add_argument("--x", metavar="COL", default="learning_rate", help="the hyperparameter (%(default)s)")
    parser.add_argument("--loss", metavar="COL", default="val_loss", help="score to be low (%(default)s)")
    parser.add_argument("--by", metavar="COL", required=True, help="the size, a number: width, depth, params")
    parser.add_argument("--split", metavar="COL", help="an answer for each value of this column: parametrization")
    parser.add_argument("--pair", metavar="COL", default="seed", help="runs of the same share a level (%(default)s)")
    parser.add_argument(
        "--reach",
        metavar="N",
        type=natural,
        default=2,
        help="values on either side of the lowest that the parabola goes through (%(default)s)",
    )
    out_option(parser)
    table_options(parser)
    parser.set_defaults(run=run_optimum)


def run_optimum(args: argparse.Namespace) -> int:
    """Print the optima and their drifts, or one JSON object (``optima``: a row a size; ``drift``: a row a split)."""
    from scaling.errors import TableError
    from scaling.optimum import drift, optima
    from scaling.tables import labels, read_table, where

    check_out(args.out)
    if args.reach < 1:
        raise TableError(f"reach={args.reach}: expected 1 or more")
    table = where(read_table(args.table), args.where)
    tables = {args.loss: table}
    if args.split is not None:
        kinds = labels(table, args.split)
        tables = {kind: table[kinds == kind] for kind in dict.fromkeys(kinds)}
    found = {
        kind: optima(part, args.x, args.loss, args.by, pair=args.pair, reach=args.reach)
        for kind, part in tables.items()
    }
    drifts = {kind: drift(own) for kind, own in found.items()}
    if args.out is not None:
        from scaling.look import save
        from scaling.optimum_figure import optimum_figure

        save(optimum_figure(tables, found, drifts, args.x, args.loss, args.by), args.out, "optimum")
        rows(found, args.by).to_csv(args.out / "optimum.csv", index=False)
    if args.json:
        frame = rows(found, args.by).astype(object)
        lines = [{"split": kind, **_numbers(own)} for kind, own in drifts.items()]
        told = frame.where(frame.notna(), None).to_dict("records")
        print(json.dumps({"x": args.x, "loss": args.loss, "by": args.by, "optima": told, "drift": lines}))
        return EXIT_OK
    print(text_table(_text(found, args)))
    for kind, own in drifts.items():
        print(f"{kind}: {_sentence(own, args)}")
    return EXIT_OK


def rows(found: dict[str, list[Optimum]], by: str) -> pd.DataFrame:
    """A row a split and size, for CSV and JSON."""
    import pandas as pd

    kept = ("best", "low", "high", "loss", "error", "freedom", "edge")
    return pd.DataFrame(
        [
            {"split": kind, by: item.size, **{name: vars(item)[name] for name in kept}}
            for kind, own in found.items()
            for item in own
        ]
    )


def _numbers(line: Drift) -> dict[str, Any]:
    """JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and value != value else value
        for name, value in dataclasses.asdict(line).items()
        if name != "middle"
    }


def _text(found: dict[str, list[Optimum]], args: argparse.Namespace) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        [
            {
                args.split or "of": kind,
                args.by: f"{item.size:g}",
                f"best {args.x}": f"{item.best:.3g}",
                "95 %": f"{item.low:.3g} to {item.high:.3g}" if item.bounded else _unbounded(item),
                args.loss: f"{item.loss:.4g}",
            }
            for kind, own in found.items()
            for item in own
        ]
    )


def _unbounded(item: Optimum) -> str:
    return "at the end of the grid" if item.edge else "not bounded"


def _sentence(line: Drift, args: argparse.Namespace) -> str:
    if line.slope != line.slope:
        return f"no drift to tell: {line.sizes} of the optima bounded, expected 2 or more"
    return (
        f"best {args.x} ∝ {args.by}^({line.slope:+.2f}), 95 % {line.low:+.2f} to {line.high:+.2f}, "
        f"through {line.sizes} optima"
    )
