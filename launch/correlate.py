"""``mmdit correlate``: correlations with intervals that know which rows belong together, on any CSV or Parquet file."""

from __future__ import annotations

import argparse
import json
import math
import re
from typing import TYPE_CHECKING

from launch.tables import EXIT_OK, command_parser, natural, table_options, text_table

if TYPE_CHECKING:
    from scaling.bins import Bins
    from scaling.correlation import Coefficient, Correlation
    from scaling.correlation_pairs import Pair


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = command_parser(
        subparsers,
        "correlate",
        "Pearson, Spearman and Kendall correlations of columns with intervals, partial ones, bins beside their mean",
        "mmdit correlate studies/ladder_small/results.csv --x val_loss --y 'geneval*,elo' \\\n"
        "    --group formulation,depth --given train_flops --bins",
    )
    parser.add_argument("table", help="CSV or Parquet file")
    parser.add_argument(
        "--x", metavar="COL[,COL]", required=True, help="first column; several, or patterns (val_loss_*)"
    )
    parser.add_argument(
        "--y", metavar="COL[,COL]", required=True, help="second column; several, or patterns (geneval_*)"
    )
    parser.add_argument(
        "--group",
        metavar="COL[,COL]",
        action="append",
        default=[],
        help="rows that are the same in all these columns depend on each other; repeatable, for factors that cross",
    )
    parser.add_argument(
        "--given",
        metavar="COL[,COL]",
        action="append",
        default=[],
        help="partial correlation too, these held fixed; log(COL): its logarithm, taken anyway of what spans a decade",
    )
    parser.add_argument(
        "--given-degree", metavar="N", type=int, choices=(1, 2, 3), default=1, help="their powers up to N (%(default)s)"
    )
    parser.add_argument(
        "--within",
        metavar="COL[,COL]",
        action="append",
        default=[],
        help="partial correlation too, of rows that are the same in these columns",
    )
    parser.add_argument("--bins", action="store_true", help="x_0, x_1, …, each beside x: is one the better predictor?")
    table_options(parser)
    parser.add_argument("--seed", metavar="N", type=natural, default=0, help="of the random permutations (%(default)s)")
    parser.set_defaults(run=run_correlate)


def run_correlate(args: argparse.Namespace) -> int:
    """Print the coefficients of two columns, or a row a pair of many; as text or as one JSON object.

    The object is that of the pair, or has ``pairs`` where several are asked for, or a pattern.
    """
    from scaling.correlation_pairs import Question, ask, column_of, expand, is_pattern
    from scaling.errors import TableError
    from scaling.tables import read_table, require, where

    table = where(read_table(args.table), args.where)
    first, second = args.x.split(","), args.y.split(",")
    factors, given, within = (
        [tuple(word.split(",")) for word in words] for words in (args.group, args.given, args.within)
    )
    for columns in (*factors, *given, *within):
        require(table, map(column_of, columns))
    if args.given_degree > 1 and not given:
        raise TableError(f"given-degree={args.given_degree}: of nothing; say what is held fixed with --given")
    question = Question(
        x=expand(table, first),
        y=expand(table, second),
        groups=tuple(factors),
        given=tuple(name for names in given for name in names),
        within=tuple(name for names in within for name in names),
        degree=args.given_degree,
        bins=args.bins,
        seed=args.seed,
    )
    pairs, why = ask(table, question)
    if not pairs:
        raise TableError(next(iter(why.values()), f"x={args.x!r}: the same as y; expected another column"))
    single = len(first) == len(second) == 1 and not is_pattern(args.x + args.y)
    if args.json:
        skipped = [{"x": x, "y": y, "why": reason} for (x, y), reason in why.items()]
        many = {"pairs": [pair.to_json() for pair in pairs], "adjusted": _adjusted(pairs), "skipped": skipped}
        print(json.dumps(pairs[0].to_json() if single else many))
        return EXIT_OK
    print(_one(pairs[0]) if single else _many(pairs, why))
    return EXIT_OK


def _adjusted(pairs: list[Pair]) -> str | None:
    return f"p_holm: Holm over {len(pairs)} pairs, each coefficient by itself" if len(pairs) > 1 else None


def _one(pair: Pair) -> str:
    from scaling.correlation_pairs import percent

    lines = _lines(pair.correlation)
    if pair.partial is not None:
        left = f"{percent(pair.left_of_x)} of {pair.x}'s variance is left"
        lines += [f"{pair.held} ({left}):", *_lines(pair.partial)]
    if pair.bins is not None:
        lines += ["", *_bins(pair.bins, pair)]
    blank = f", {pair.left_out} left out for a blank" if pair.left_out else ""
    return "\n".join([*lines, f"{pair.correlation.rows} rows{blank}", *_few(pair)])


def _lines(found: Correlation) -> list[str]:
    named = (("Pearson", "r", found.pearson), ("Spearman", "r", found.spearman), ("Kendall", "τ", found.kendall))
    return [
        f"{name:8} {letter} = {c.r:+.3f}  [{c.low:+.3f}, {c.high:+.3f}] ({c.interval})  {_p_of(c)}"
        if math.isfinite(c.r)
        else f"{name:8} {c.interval}"
        for name, letter, c in named
    ]


def _p_of(c: Coefficient) -> str:
    return f"p = {c.p:.3g} ({c.p_method})" if math.isfinite(c.p) else f"no p{c.p_method.removeprefix('none')}"


def _bins(bins: Bins, pair: Pair) -> list[str]:
    """A table for Pearson's with R² beside it, one for Spearman's, and what each comes to."""
    import pandas as pd

    from scaling.bins import answer
    from scaling.coefficients import Kind

    kinds: tuple[Kind, ...] = ("pearson", "spearman")
    lines = []
    for kind in (kind for kind in kinds if kind in bins.rows):
        r, low, high = bins.mean[kind]
        rows = [{"": pair.x, kind.capitalize(): _r(r, low, high), "z beyond it": "", "p": "", "p of the best": ""}]
        for row in bins.rows[kind]:
            bounds = f" [{row.low:+.2f}, {row.high:+.2f}]" if math.isfinite(row.low) else ""
            rows.append(
                {
                    "": row.name,
                    kind.capitalize(): _r(row.r, row.r_low, row.r_high),
                    "z beyond it": f"{row.difference:+.2f}{bounds}",
                    "p": _p(row.p, 3),
                    "p of the best": _p(row.p_best, 3),
                }
            )
        frame = pd.DataFrame(rows)
        if kind == "pearson":
            frame["R² left out"] = [_number(bins.r2[name]) for name in ("mean", *(row.name for row in bins.rows[kind]))]
        best = bins.best(kind)
        lines += [text_table(frame), answer(bins, kind, pair.y, best.name), ""]
    if "control" in bins.r2:
        lines += [
            f"R² left out by that alone, without a loss: {_number(bins.r2['control'])}",
            "",
        ]
    return lines


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _p(p: float, digits: int) -> str:
    return f"{p:.{digits}g}" if math.isfinite(p) else "–"


def _r(r: float, low: float, high: float) -> str:
    return f"{r:+.2f} [{low:+.2f}, {high:+.2f}]" if math.isfinite(r) else "–"


def _many(pairs: list[Pair], why: dict[tuple[str, str], str]) -> str:
    """A row a pair: each coefficient with its interval and Holm's p; then partial ones, bins, and what was skipped."""
    import pandas as pd

    from scaling.bins import answer
    from scaling.coefficients import KINDS
    from scaling.correlation import DESCRIPTIVE
    from scaling.correlation_pairs import percent

    def cells(pair: Pair, found: Correlation, prefix: str) -> dict[str, str]:
        row = {"x": pair.x, "y": pair.y, "rows": str(found.rows)}
        for kind in KINDS:
            c: Coefficient = found.of(kind)
            letter = {"pearson": "r", "spearman": "ρ", "kendall": "τ"}[kind]
            row[f"{kind.capitalize()} {letter}"] = _r(c.r, c.low, c.high)
            row[f"p({letter})"] = _p(pair.adjusted.get(prefix + kind, c.p), 2)
        return row

    plain = [cells(pair, pair.correlation, "") for pair in pairs]
    parts = [text_table(pd.DataFrame(plain))]
    given = [(pair, pair.partial) for pair in pairs if pair.partial is not None]
    if given:
        rows: list[dict[str, str]] = []
        for pair, partial in given:
            rows.append({**cells(pair, partial, "given "), "left of x": percent(pair.left_of_x)})
        parts.append(f"{given[0][0].held}:\n{text_table(pd.DataFrame(rows))}")
    told = [
        answer(p.bins, "pearson", p.y, p.bins.best("pearson").name)
        for p in pairs
        if p.bins and "pearson" in p.bins.rows
    ]
    parts += ["\n".join(told)] if told else []
    coefficients = [found.pearson for pair in pairs for found in (pair.correlation, pair.partial) if found is not None]
    how = {re.sub(r" with \S+ df", "", c.interval) for c in coefficients}
    notes = [f"intervals: {'; '.join(sorted(how))}"]
    if len(pairs) > 1:
        notes.append(f"p by Holm's rule over {len(pairs)} pairs, each coefficient by itself")
    if any(partial.kendall.p_method == DESCRIPTIVE for _, partial in given):
        notes.append("Kendall given columns is descriptive: it isn't 0 where x says no more than they do, and has no p")
    notes += [f"skipped {x}, {y}: {reason}" for (x, y), reason in why.items()]
    return "\n\n".join([*parts, "\n".join([*notes, *_few(pairs[0])])])


def _few(pair: Pair) -> list[str]:
    """A word on factors of which next to nothing can be known."""
    return [
        f"{name}: two groups, one difference, is all there is to judge it by; --within {name.replace(' and ', ',')} "
        "compares runs of one of them instead"
        for name, count in pair.correlation.groups.items()
        if count == 2
    ]
