"""``mmdit elo``: ratings with intervals, win rates against one player, and which battle to run next."""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from launch.elo_text import APART, GROUP, Key, elo_text, label, others
from launch.tables import EXIT_OK, check_out, command_parser, enough, natural, out_option, resampling_options
from scaling.plain import plain

if TYPE_CHECKING:
    from scaling.elo import EloTable
    from scaling.win_rates import WinRates

POOLED = ("question", "judge")
"""Columns whose values are different measurements: said on stderr where several are rated as one."""
Parts = dict[Key, pd.DataFrame]
"""Battles by the values of --by."""


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
        "--cluster",
        metavar="COL[,COL]",
        default="prompt",
        help="battles that belong together, as prompt,judge (%(default)s)",
    )
    parser.add_argument("--against", metavar="NAME", help="how often NAME wins against each, by question")
    parser.add_argument("--next", metavar="K", type=natural, default=0, help="the K battles that would tell most")
    out_option(parser)
    resampling_options(parser, count=enough)
    parser.set_defaults(run=run_elo)


def run_elo(args: argparse.Namespace) -> int:
    """Rate the runs and print them best first, as text or as one JSON object.

    The object has ``ratings``, a list; with --by, or with runs that never met, ``tables`` of such.
    """
    from scaling.tables import read_table, where

    check_out(args.out)
    by, cluster = words(args.by), words(args.cluster)
    sides = [args.side_bias] if args.side_bias not in (None, "all") else []
    battles = where(read_table(args.battles, text=(*by, *cluster, *sides)), args.where)
    if not args.pool:
        for line in pooled(battles, (*by, *cluster)):
            print(line, file=sys.stderr)
    parts = split(battles, by)
    anchors = _anchors(args.anchor)
    tables = _rated(parts, by, anchors, args)
    won = _against(battles, by, args) if args.against is not None else {}
    following = _following(parts, by, args.next) if args.next else []
    rated_by = by if len(next(iter(tables))) == len(by) else (*by, GROUP)
    if args.out is not None:
        _write(tables, rated_by, won, args.against, args.out)
    if args.json:
        print(json.dumps(_object(tables, rated_by, won, following, args)))
    else:
        print(elo_text(tables, rated_by, won, following, args.against))
    return EXIT_OK


def pooled(battles: pd.DataFrame, heeded: Sequence[str]) -> list[str]:
    """A line for each column that tells measurements apart, has several values, and isn't in ``heeded``."""
    lines = []
    for column in POOLED:
        if column not in heeded and column in battles.columns and (count := battles[column].nunique()) > 1:
            values = [str(value) for value in battles[column].dropna().unique()[:3]]
            listed = ", ".join(values) + (", …" if count > len(values) else "")
            lines.append(
                f"mmdit elo: {count} {column}s rated as one ({listed}); --by {column} rates each, "
                f"--where {shlex.quote(f'{column}={values[0]}')} one, --pool says that it is meant"
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


def _rated(parts: Parts, by: Sequence[str], anchors: dict[str, float], args: argparse.Namespace) -> dict[Key, EloTable]:
    """A table for each part; where any has runs that never met, for each group of each, whose number ends the key."""
    from scaling.elo import rate
    from scaling.errors import TableError

    found: dict[tuple[Key, int], EloTable] = {}
    for key, part in parts.items():
        try:
            for number, group in enumerate(_groups(part, anchors), 1):
                own = part[part["left"].astype(str).isin(group)].reset_index(drop=True)
                found[key, number] = rate(
                    own,
                    draws=args.bootstrap,
                    seed=args.seed,
                    anchors={name: elo for name, elo in anchors.items() if name in group},
                    side_bias=args.side_bias,
                    covariates=args.covariate,
                    cluster=words(args.cluster),
                )
        except TableError as error:
            raise TableError(f"{label(by, key)}: {error}" if by else str(error)) from None
    if len(found) == len(parts):
        return {key: table for (key, _), table in found.items()}
    return {(*key, str(number)): table for (key, number), table in found.items()}


def _groups(battles: pd.DataFrame, anchors: dict[str, float]) -> list[list[str]]:
    """Runs that battles link, or, where several are given, known ratings. Raises TableError for those of no run."""
    from scaling.components import components
    from scaling.errors import TableError

    groups = components(battles)
    names = sorted(name for group in groups for name in group)
    if absent := [name for name in anchors if name not in names]:
        raise TableError(f"anchor={absent[0]!r}: no battle of it; expected one of {', '.join(names)}")
    held = [group for group in groups if len(anchors) > 1 and anchors.keys() & set(group)]
    merged = [sorted(name for group in held for name in group)] if held else []
    return sorted([*merged, *(group for group in groups if group not in held)])


def words(text: str) -> tuple[str, ...]:
    """An option's ``COL,COL``."""
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


def _against(battles: pd.DataFrame, by: Sequence[str], args: argparse.Namespace) -> dict[Key, WinRates]:
    """Win rates by question, for each value of the other columns of ``by``."""
    from scaling.win_rates import win_rates

    question = ("question",) if "question" in battles.columns else ()
    parts = split(battles, others(by))
    return {
        key: win_rates(
            part, args.against, by=question, cluster=words(args.cluster), draws=args.bootstrap, seed=args.seed
        )
        for key, part in parts.items()
    }


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
    tables: dict[Key, EloTable],
    by: Sequence[str],
    won: dict[Key, WinRates],
    following: list[dict[str, Any]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if by:
        shown["tables"] = [{**dict(zip(by, key, strict=True)), **table.to_json()} for key, table in tables.items()]
        if GROUP in by:
            shown["note"] = APART
    else:
        shown = dict(tables[()].to_json())
    if args.against is not None:
        from scaling.win_bars import baseline_frame

        shown["against"] = args.against
        shown["win_rates"] = [
            {**dict(zip(others(by), key, strict=True)), **plain(row)}
            for key, found in won.items()
            for row in baseline_frame(found).to_dict("records")
        ]
    if args.next:
        shown["next"] = following
    return shown


def _write(
    tables: dict[Key, EloTable],
    by: Sequence[str],
    won: dict[Key, WinRates],
    against: str | None,
    folder: Path,
) -> None:
    from scaling.figures import elo_figure
    from scaling.look import save
    from scaling.win_bars import baseline_frame, win_bars

    # Ratings of runs that never met have no axis in common: a figure for each group.
    groups: dict[str, dict[str, EloTable]] = {}
    for key, table in tables.items():
        own, group = (key[:-1], f"_group{key[-1]}") if GROUP in by else (key, "")
        groups.setdefault(group, {})[", ".join(own)] = table
    for group, series in groups.items():
        save(elo_figure(series), folder, f"elo{group}")
    drawn = tuple(dict.fromkeys(name for series in groups.values() for name in series))
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
        save(win_bars(frame, str(against), beside=drawn), folder, name)
        frame.to_csv(folder / f"{name}.csv", index=False)
