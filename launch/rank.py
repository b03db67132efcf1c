"""``mmdit rank`` and ``mmdit efficiency``: the SD3 paper's protocol on any CSV or Parquet file of scores."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launch.tables import EXIT_OK, check_out, command_parser, enough, out_option, resampling_options, text_table

if TYPE_CHECKING:
    import pandas as pd

    from scaling.correlation import Coefficient
    from scaling.ranking import RankTable
    from scaling.reference import Agreement

AHEAD, NEXT = 3, 4
"""The text says how surely each of the first AHEAD names beats the NEXT ones after it."""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register both commands; each sets ``run``, a function of the parsed arguments that returns an exit code.

    Bad input raises ``scaling.errors.TableError``, which the caller prints as one line and turns into exit code 2.
    """
    rank = command_parser(
        subparsers,
        "rank",
        "rank runs by their average Pareto front over settings, with intervals",
        "mmdit rank studies/schedules_small/scores.parquet --reference sd3 --out figures\n"
        "  mmdit rank sd3-table2 --reference sd3      (what the paper prints, ranked by the paper's protocol)",
    )
    rank.add_argument("table", help="CSV or Parquet file with a row a (name, setting[, seed][, draw]), or sd3-table2")
    rank.add_argument("--up", metavar="COL", default="clip", help="score to be high (%(default)s)")
    rank.add_argument("--down", metavar="COL", default="fid", help="score to be low (%(default)s)")
    rank.add_argument("--name", metavar="COL", default="name", help="what is ranked (%(default)s)")
    rank.add_argument("--setting", metavar="COL", default="setting", help="what is averaged over (%(default)s)")
    rank.add_argument(
        "--by", metavar="COL", help="rank over each value of it too (steps, where there is such a column)"
    )
    rank.add_argument(
        "--reference", metavar="sd3|FILE", help="compare with the paper's Table 1, or with a file's columns name, rank"
    )
    rank.add_argument("--among", metavar="sd3|FILE", help="rank only the names of the paper's Table 1, or of a file")
    rank.add_argument(
        "--complete", action="store_true", help="rank the names, settings and seeds that are complete; say what is not"
    )
    out_option(rank)
    resampling_options(rank, count=enough)
    rank.set_defaults(run=run_rank)

    efficiency = command_parser(
        subparsers,
        "efficiency",
        "score lost with fewer sampling steps, in % of that with the most, and path length",
        "mmdit efficiency studies/efficiency_small/scores.parquet --where dataset=scenes --where weights=ema "
        "--where guidance=5",
    )
    efficiency.add_argument("table", help="CSV or Parquet file with a row a (group, steps[, seed][, draw])")
    efficiency.add_argument("--group", metavar="COL", default="depth", help="what is compared (%(default)s)")
    efficiency.add_argument("--steps", metavar="COL", default="steps", help="sampling steps (%(default)s)")
    efficiency.add_argument("--score", metavar="COL", default="clip", help="score to be high (%(default)s)")
    efficiency.add_argument("--path", metavar="COL", help="path length (path_length, where there is such a column)")
    out_option(efficiency)
    resampling_options(efficiency, count=enough)
    efficiency.set_defaults(run=run_efficiency)


def run_rank(args: argparse.Namespace) -> int:
    """Rank, compare, write figures and tables, and print as text or as one JSON object (``rows``: best first)."""
    from scaling.complete import complete
    from scaling.errors import TableError
    from scaling.published import SCORES, scores
    from scaling.ranking import rank
    from scaling.reference import among
    from scaling.tables import read_table, where

    check_out(args.out)
    rows = where(scores() if args.table == SCORES else read_table(args.table), args.where)
    if args.among is not None:
        rows = among(rows, _reference(args.among), args.among, args.name)
    if args.complete:
        cut = complete(rows, name=args.name, setting=args.setting)
        for line in cut.left_out:
            print(line, file=sys.stderr)
        rows = cut.table
        if rows.empty:
            raise TableError(f"complete: no {args.name} has every {args.setting} and seed that most have")
    table = rank(
        rows,
        up=args.up,
        down=args.down,
        name=args.name,
        setting=args.setting,
        by=args.by,
        bootstrap=args.bootstrap,
        seed=args.seed,
    )
    agreement = None if args.reference is None else _compare(table, args.reference, args.seed)
    if args.out is not None:
        _write_ranks(table, args.out)
    if args.json:
        reference = {} if agreement is None else {"reference": agreement.to_json()}
        print(json.dumps({**table.to_json(), **reference}))
    else:
        print(_rank_text(table, agreement))
    return EXIT_OK


def run_efficiency(args: argparse.Namespace) -> int:
    """Compute the losses, write figure and table, and print as text or as one JSON object."""
    from scaling.efficiency import efficiency
    from scaling.efficiency_tables import losses_frame, losses_text
    from scaling.tables import read_table, where

    check_out(args.out)
    rows = where(read_table(args.table), args.where)
    path = args.path if args.path is not None else "path_length" if "path_length" in rows.columns else None
    table = efficiency(
        rows,
        group=args.group,
        steps=args.steps,
        score=args.score,
        path=path,
        bootstrap=args.bootstrap,
        seed=args.seed,
    )
    if args.out is not None:
        from scaling.look import save
        from scaling.rank_figures import efficiency_figure

        save(efficiency_figure(table, args.group), args.out, "efficiency")
        losses_frame(table, args.group).to_csv(args.out / "efficiency.csv", index=False)
    if args.json:
        print(json.dumps(table.to_json()))
    else:
        print(text_table(losses_text(table, args.group)))
        print(f"loss of {args.score} in % of that at {table.steps[-1]} steps; {table.how}")
    return EXIT_OK


def _compare(table: RankTable, name: str, seed: int) -> Agreement:
    from scaling.reference import agree

    return agree(table, _reference(name), name, seed=seed)


def _reference(name: str) -> pd.DataFrame:
    """Table 1 where ``name`` is sd3, else the file of that name."""
    from scaling.published import REFERENCE, ranks
    from scaling.tables import read_table

    return ranks() if name == REFERENCE else read_table(name)


def _write_ranks(table: RankTable, folder: Path) -> None:
    from scaling.look import save
    from scaling.rank_figures import fronts_figure, ranks_figure
    from scaling.rank_tables import pairs_frame, ranks_frame, scores_frame

    save(fronts_figure(table), folder, "fronts")
    save(ranks_figure(table), folder, "ranks")
    for name, frame in (
        ("table1", ranks_frame(table)),
        ("table2", scores_frame(table)),
        ("pairs", pairs_frame(table)),
    ):
        if len(frame.columns) > 1:
            frame.to_csv(folder / f"{name}.csv", index=False)


def _rank_text(table: RankTable, agreement: Agreement | None) -> str:
    from scaling.rank_tables import ranks_text, scores_text, shown_settings

    parts = ["average rank, lower is better", text_table(ranks_text(table))]
    settings = table.front.shape[1]
    parts.append(f"{len(table.places)} names, {settings} setting{'s' * (settings != 1)}; {table.how}")
    shown = shown_settings(table)
    if shown:
        labels = [str(table.settings["setting"][place]) for place in shown.values()]
        parts += ["", f"scores at {', '.join(labels)}", text_table(scores_text(table))]
    if len(table.samples):
        parts += ["", "probability of a better rank", _pairs_text(table)]
    if agreement is not None:
        parts += ["", _agreement_text(agreement)]
    return "\n".join(parts)


def _pairs_text(table: RankTable) -> str:
    lines = []
    for i in range(min(AHEAD, len(table.places) - 1)):
        others = range(i + 1, min(i + 1 + NEXT, len(table.places)))
        beaten = ", ".join(f"{table.names[j]} {table.pairs[i, j]:.2f}" for j in others)
        lines.append(f"{table.names[i]}: over {beaten}; best of all {table.places[i].p_best:.2f}")
    return "\n".join(lines)


def _agreement_text(found: Agreement) -> str:
    spearman = found.spearman
    if not math.isfinite(spearman.r):
        return f"Spearman with {found.source} over {len(found.names)} names: none, since all ranks are equal"
    source = found.source + f" ({found.column})" * (found.column != "rank")
    text = (
        f"Spearman with {source} over {len(found.names)} names: {_signed(spearman)} over the names "
        f"({spearman.interval}), p = {spearman.p:.2g}"
    )
    if math.isfinite(found.low):
        text += f"; [{found.low:+.2f}, {found.high:+.2f}] over the {found.resampled}"
    parts = [
        f"{label}: {_signed(part.spearman)}" for label, part in found.groups.items() if math.isfinite(part.spearman.r)
    ]
    return text + (f"\nover its settings of {found.by}={', '.join(parts)} over the names" if parts else "")


def _signed(found: Coefficient) -> str:
    return f"{found.r:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
