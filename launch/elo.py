"""``mmdit elo``: ratings with intervals, win rates against one player, and which battle to run next."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from launch.tables import EXIT_OK, check_out, command_parser, natural, out_option, resampling_options, text_table

if TYPE_CHECKING:
    from scaling.elo import EloTable
    from scaling.win_rates import WinRates

POOLED = ("question", "judge")
"""Columns whose values are different measurements: said on stderr where several are rated as one."""
Parts = dict[tuple[str, ...], pd.DataFrame]
"""Battles by the values of --by; the key is empty without it."""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command; bad input raises ``scaling.errors.TableError``, told in one line with exit code 2."""
    parser = command_parser(
        subparsers,
        "elo",
        "rate runs from pairwise battles (columns prompt, left, right, outcome = left, right or tie)",
        "mmdit elo studies/quickstart/battles.csv --where judge=scorer\n"
        "  mmdit elo votes.csv --by question --side-bias --cluster prompt,judge --against sd3 --next 5 --out figures",
    )
    parser.add_argument("battles", help="CSV or Parquet file; columns question, judge, seed may be there, too")
    parser.add_argument("--by", metavar="COL[,COL]", default="", help="a table for each value, as question,judge")
    parser.add_argument("--pool", action="store_true", help="several questions or judges are meant to be rated as one")
    parser.add_argument(
        "--anchor", metavar="NAME=ELO", action="append", default=[], help="a rating that is given; repeatable"
    )
    parser.add_argument(
        "--side-bias",
        metavar="COL",
        nargs="?",
        const="all",
        help="fit an advantage of the left side: one, or one for each value of COL (judge)",
    )
    parser.add_argument(
        "--covariate", metavar="COL", action="append", default=[], help="a number that may favour the left; repeatable"
    )
    parser.add_argument(
        "--cluster", metavar="COL[,COL]", default="prompt", help="battles that belong together (%(default)s)"
    )
    parser.add_argument("--against", metavar="NAME", help="how often NAME wins against each, by question")
    parser.add_argument("--next", metavar="K", type=natural, default=0, help="the K battles that would tell most")
    out_option(parser)
    resampling_options(parser)
    parser.set_defaults(run=run_elo)


def run_elo(args: argparse.Namespace) -> int:
    """Rate the runs and print them best first, as text or as one JSON object (``ratings``: a list)."""
    from scaling.elo import rate
    from scaling.errors import TableError
    from scaling.tables import read_table, where

    check_out(args.out)
    by = _words(args.by)
    battles = where(read_table(args.battles), args.where)
    if not args.pool:
        for line in pooled(battles, by):
            print(line, file=sys.stderr)
    parts = split(battles, by)
    tables: dict[tuple[str, ...], EloTable] = {}
    for key, part in parts.items():
        try:
            tables[key] = rate(
                part,
                draws=args.bootstrap,
                seed=args.seed,
                anchors=_anchors(args.anchor),
                side_bias=args.side_bias,
                covariates=args.covariate,
                cluster=_words(args.cluster),
            )
        except TableError as error:
            raise TableError(f"{_label(by, key)}: {error}" if by else str(error)) from None
    won = _against(battles, by, args) if args.against is not None else {}
    following = _following(parts, by, args.next) if args.next else []
    if args.out is not None:
        _write(tables, by, won, args.against, args.out)
    if args.json:
        print(json.dumps(_object(tables, by, won, following, args)))
    else:
        print(_text(tables, by, won, following, args.against))
    return EXIT_OK


def pooled(battles: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """A line for each column that tells measurements apart, has several values, and isn't in ``by``."""
    lines = []
    for column in POOLED:
        if column not in by and column in battles.columns and (count := battles[column].nunique()) > 1:
            values = [str(value) for value in battles[column].dropna().unique()[:3]]
            listed = ", ".join(values) + (", …" if count > len(values) else "")
            lines.append(
                f"mmdit elo: {count} {column}s rated as one ({listed}); --by {column} rates each, "
                f"--where {column}={values[0]} one, --pool says that it is meant"
            )
    return lines


def split(battles: pd.DataFrame, by: Sequence[str]) -> Parts:
    """Battles by the values of the columns ``by``, in order of appearance."""
    from scaling.tables import labels

    if not by:
        return {(): battles}
    keys = list(zip(*(labels(battles, column) for column in by), strict=True))
    index, unique = pd.factorize(pd.Index(keys, tupleize_cols=False))
    return {tuple(key): battles[index == place].reset_index(drop=True) for place, key in enumerate(unique)}


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _anchors(texts: Sequence[str]) -> dict[str, float]:
    from scaling.errors import TableError

    found = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            raise TableError(f"anchor={text!r}: expected NAME=ELO, as sd3=1000")
        if name in found:
            raise TableError(f"anchor={text!r}: {name!r} is given twice")
        found[name] = value
    return found


def _label(by: Sequence[str], key: Sequence[str]) -> str:
    return ", ".join(f"{column}={value}" for column, value in zip(by, key, strict=True))


def _against(battles: pd.DataFrame, by: Sequence[str], args: argparse.Namespace) -> dict[tuple[str, ...], WinRates]:
    """Win rates by question, for each value of the other columns of ``by``."""
    from scaling.win_rates import win_rates

    question = ("question",) if "question" in battles.columns else ()
    parts = split(battles, _others(by))
    return {
        key: win_rates(part, args.against, by=question, draws=args.bootstrap, seed=args.seed)
        for key, part in parts.items()
    }


def _others(by: Sequence[str]) -> tuple[str, ...]:
    return tuple(column for column in by if column != "question")


def _following(parts: Parts, by: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The ``count`` battles, of all tables, that lower their table's uncertainty most."""
    from scaling.next_battle import next_battles

    rows: list[dict[str, Any]] = [
        {**dict(zip(by, key, strict=True)), "left": left, "right": right, "drop": drop}
        for key, part in parts.items()
        for left, right, drop in next_battles(part, count)
    ]
    return sorted(rows, key=lambda row: -row["drop"])[:count]


def _object(
    tables: dict[tuple[str, ...], EloTable],
    by: Sequence[str],
    won: dict[tuple[str, ...], WinRates],
    following: list[dict[str, Any]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if by:
        shown["tables"] = [{**dict(zip(by, key, strict=True)), **table.to_json()} for key, table in tables.items()]
    else:
        shown = dict(tables[()].to_json())
    if args.against is not None:
        from scaling.win_bars import baseline_frame

        shown["against"] = args.against
        shown["win_rates"] = [
            {**dict(zip(_others(by), key, strict=True)), **_finite(row)}
            for key, found in won.items()
            for row in baseline_frame(found).to_dict("records")
        ]
    if args.next:
        shown["next"] = following
    return shown


def _finite(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): None if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}


def _write(
    tables: dict[tuple[str, ...], EloTable],
    by: Sequence[str],
    won: dict[tuple[str, ...], WinRates],
    against: str | None,
    folder: Path,
) -> None:
    from scaling.figures import elo_figure
    from scaling.look import save
    from scaling.win_bars import baseline_frame, win_bars

    save(elo_figure({", ".join(key): table for key, table in tables.items()}), folder, "elo")
    frames = []
    for key, table in tables.items():
        frame = pd.DataFrame([vars(rating) for rating in table.ratings])
        for place, column in enumerate(by):
            frame.insert(place, column, key[place])
        frames.append(frame)
    pd.concat(frames).to_csv(folder / "ratings.csv", index=False)
    for key, found in won.items():
        name = "_".join(["win_rates", *(re.sub(r"[^\w.-]+", "-", value) for value in key)])
        frame = baseline_frame(found)
        save(win_bars(frame, str(against)), folder, name)
        frame.to_csv(folder / f"{name}.csv", index=False)


def _text(
    tables: dict[tuple[str, ...], EloTable],
    by: Sequence[str],
    won: dict[tuple[str, ...], WinRates],
    following: list[dict[str, Any]],
    against: str | None,
) -> str:
    parts = []
    for key, table in tables.items():
        parts.append("\n".join([*([_label(by, key)] if by else []), _ratings_text(table)]))
    for key, found in won.items():
        parts.append("\n".join([*([_label(_others(by), key)] if key else []), _won_text(found, str(against))]))
    if following:
        frame = pd.DataFrame(following).rename(columns={"drop": "lowers error by"})
        frame["lowers error by"] = frame["lowers error by"].map("{:.3g}".format)
        parts.append(
            "battles to run next, by how much one more of each lowers the root mean square error of a rating "
            f"difference (Elo)\n{text_table(frame)}"
        )
    return "\n\n".join(parts)


def _ratings_text(table: EloTable) -> str:
    percent = f"{100 * table.level:g} %"
    rows = []
    for rating in table.ratings:
        row = {"name": rating.name, "elo": f"{rating.elo:.0f}"}
        if table.intervals == "bootstrap":
            row[f"{percent} bootstrap"] = _range(rating.low, rating.high)
        if table.intervals != "none":
            row[f"{percent} sandwich"] = _range(rating.sandwich_low, rating.sandwich_high)
            row[f"{percent} rank"] = (
                f"{rating.rank_low}–{rating.rank_high}" if rating.rank_low < rating.rank_high else f"{rating.rank_low}"
            )
        rows.append(row | {"battles": f"{rating.battles:,}"})
    lines = [text_table(pd.DataFrame(rows))]
    for effect in table.effects:
        bounds = f" [{effect.low:+.1f}, {effect.high:+.1f}]" if math.isfinite(effect.low) else ""
        lines.append(f"{effect.name}: {effect.elo:+.1f} Elo{bounds}".replace("-", "−"))
    clusters = " × ".join(f"{count} {column}s" for column, count in table.clusters.items())
    drawn = f"{len(table.samples)} bootstraps over {clusters}" if table.intervals == "bootstrap" else f"over {clusters}"
    if table.intervals == "none":
        drawn = f"no intervals from {clusters.removesuffix('s')} alone"
    lines.append(f"{table.battles:,} battles on {table.prompts} prompts, {drawn}; {table.scale}")
    return "\n".join(lines)


def _won_text(found: WinRates, against: str) -> str:
    from scaling.win_bars import baseline_frame

    frame = baseline_frame(found)
    rows = []
    for row in frame.to_dict("records"):
        shown = {
            f"{against} against": row["opponent"],
            "question": row["question"],
            "wins": f"{100 * row['rate']:.1f} %",
        }
        if not row["question"]:
            del shown["question"]
        if math.isfinite(row["low"]):
            shown["95 % interval"] = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        rows.append(shown | {"battles": f"{row['battles']:,}"})
    return f"{text_table(pd.DataFrame(rows))}\nties as half, 50 % is even; {found.prompts} prompts, {found.how}"


def _range(low: float, high: float) -> str:
    return f"{low:.0f} … {high:.0f}"
