"""``mmdit compare``: groups of runs against one of them, seed by seed, from any CSV or Parquet file of results."""

from __future__ import annotations

import argparse
import json

from launch.tables import EXIT_OK, check_out, command_parser, out_option, table_options, text_table

SCORES = (["val_loss"], ["geneval_graded"])
"""What is low and what is high where neither is asked for: columns of a study's results.csv."""
X = "train_flops"


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = command_parser(
        subparsers,
        "compare",
        "compare groups of runs with one of them, seed by seed, with intervals",
        "mmdit compare studies/architectures_small/results.csv --by architecture --baseline mmdit \\\n"
        "    --curves studies/architectures_small/curves.csv --out figures",
    )
    parser.add_argument("table", help="CSV or Parquet file with a row a run")
    parser.add_argument("--by", metavar="COL", required=True, help="what is compared: architecture, formulation, depth")
    parser.add_argument("--baseline", metavar="NAME", required=True, help="the group that the others are compared with")
    parser.add_argument(
        "--down", metavar="COL", action="append", default=[], help="score to be low; repeatable (val_loss)"
    )
    parser.add_argument(
        "--up", metavar="COL", action="append", default=[], help="score to be high; repeatable (geneval_graded)"
    )
    parser.add_argument("--pair", metavar="COL", default="seed", help="runs of the same are paired (%(default)s)")
    parser.add_argument("--curves", metavar="FILE", help="table of the runs' way, to draw the first score over --x")
    parser.add_argument("--x", metavar="COL", default=X, help="column of --curves (%(default)s)")
    out_option(parser)
    table_options(parser)
    parser.set_defaults(run=run_compare)


def run_compare(args: argparse.Namespace) -> int:
    """Print a row a group, best first by the first score, or one JSON object (``rows``: a row a score and group)."""
    from scaling.errors import TableError
    from scaling.group_tables import compared_figure, compared_frame, compared_text
    from scaling.groups import compare, curves
    from scaling.tables import read_table, where

    check_out(args.out)
    if args.curves is not None and args.out is None:
        raise TableError(f"curves={args.curves!r}: are only drawn; say where with --out")
    results = where(read_table(args.table), args.where)
    down, up = args.down, args.up
    if not down and not up:
        down, up = ([score for score in scores if score in results.columns] for scores in SCORES)
    scores = [*down, *up]
    twice = sorted({score for score in scores if scores.count(score) > 1})
    if twice or not scores:
        raise TableError(f"score={twice[0]!r}: asked for twice" if twice else "scores: none given; say --down or --up")
    found = {score: compare(results, args.by, score, args.baseline, pair=args.pair) for score in scores}
    for score in up:
        found[score].reverse()
    order = [place.name for place in found[scores[0]]]
    text = compared_text(results, args.by, found, args.baseline)
    if args.out is not None:
        from scaling.look import save

        way = {}
        if args.curves is not None:
            way = curves(where(read_table(args.curves), args.where), args.by, args.x, scores[0])
            if not set(way) & set(order):
                raise TableError(f"curves={args.curves!r}: {args.by} is none of {', '.join(order)} there")
        save(compared_figure(results, args.by, order, scores, way, args.x), args.out, "compare")
        compared_frame(found).to_csv(args.out / "compare.csv", index=False)
    if args.json:
        frame = compared_frame(found).astype(object)
        rows = frame.where(frame.notna(), None).to_dict("records")
        print(json.dumps({"by": args.by, "baseline": args.baseline, "pair": args.pair, "rows": rows}))
        return EXIT_OK
    print(text_table(text))
    pairs = sorted({place.pairs for place in found[scores[0]] if place.name != args.baseline})
    print(
        f"differences to {args.baseline} of the same {args.pair}, {' to '.join(map(str, pairs))} pairs; Student's t, "
        f"each interval alone; p by Holm's rule for the {len(order) - 1} of a score"
    )
    return EXIT_OK
