"""``mmdit winrate``: how often players beat one of them, from any CSV or Parquet file of battles."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING

import pandas as pd

from launch.elo import words
from launch.tables import EXIT_OK, command_parser, enough, resampling_options, text_table

if TYPE_CHECKING:
    from scaling.win_rates import WinRate


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = command_parser(
        subparsers,
        "winrate",
        "win rates against one player, ties as half, with intervals over prompts, judges and trainings",
        'mmdit winrate studies/text_encoders_small/without_battles.csv --against "all encoders" --by question,judge '
        "--trainings run",
    )
    parser.add_argument("battles", help="CSV or Parquet file with columns prompt, left, right, outcome")
    parser.add_argument("--against", metavar="NAME", required=True, help="the player to beat")
    parser.add_argument("--by", metavar="COL[,COL]", default="", help="tell these apart, as question,judge")
    parser.add_argument(
        "--cluster",
        metavar="COL[,COL]",
        default="prompt",
        help="battles that belong together, as prompt,judge (%(default)s)",
    )
    parser.add_argument("--trainings", metavar="COL", help="column that tells trainings of one recipe apart")
    resampling_options(parser, count=enough)
    parser.set_defaults(run=run_winrate)


def run_winrate(args: argparse.Namespace) -> int:
    """Print a row a player and question."""
    from scaling.tables import read_table, where
    from scaling.win_rates import win_rates

    by, cluster = words(args.by), words(args.cluster)
    text = (*by, *cluster, *([args.trainings] if args.trainings else []))
    found = win_rates(
        where(read_table(args.battles, text=text), args.where),
        args.against,
        by=by,
        trainings=args.trainings,
        cluster=cluster,
        draws=args.bootstrap,
        seed=args.seed,
    )
    if args.json:
        print(json.dumps(found.to_json()))
        return EXIT_OK
    print(text_table(pd.DataFrame([_shown(row) for row in found.rows])))
    prompts = f"{found.prompts} prompt{'s' * (found.prompts != 1)}"
    print(f"against {found.against}, 50 % is even; {prompts}, {found.how}")
    return EXIT_OK


def _shown(row: WinRate) -> dict[str, str]:
    shown = {"name": row.name, "question": row.question, "wins": f"{100 * row.rate:.1f} %"}
    shown["95 % interval"] = f"[{100 * row.low:.1f}, {100 * row.high:.1f}]" if math.isfinite(row.low) else ""
    return {key: text for key, text in shown.items() if text or key != "question"} | {"battles": f"{row.battles:,}"}
