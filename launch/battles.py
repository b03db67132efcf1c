"""``mmdit battles``: judges over trees of images, to a table of battles that ``mmdit elo`` and ``winrate`` read."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.tables import EXIT_OK, command_parser
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.meetings import MOST, every_pair

if TYPE_CHECKING:
    from mmdit_jax.evaluation.battles import Battle
    from mmdit_jax.evaluation.rewards import Judge

TIE = 0.02
"""A tie by default: the model gives neither image more than 52 %."""
_EVERY = 10.0
"""Seconds between lines of progress."""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = command_parser(
        subparsers,
        "battles",
        "let judges decide between the images of runs, pair by pair, into a table for mmdit elo",
        "mmdit battles studies/my_study --judge pickscore=/models/PickScore_v1 --judge scorer --out judged.csv\n"
        "  mmdit elo judged.csv --where judge=pickscore",
    )
    parser.add_argument(
        "trees",
        metavar="TREE",
        nargs="+",
        type=Path,
        help="a study's directory (all of its finished runs), a run's, or a folder of NNNNN/metadata.jsonl and "
        "NNNNN/samples/NNNN.png",
    )
    parser.add_argument(
        "--names", metavar="A,B,…", help="of the trees (a run's from its config.json, else the folder's)"
    )
    parser.add_argument(
        "--judge",
        metavar="JUDGE",
        action="append",
        required=True,
        help="pickscore=FOLDER, hpsv2=FOLDER, imagereward=FOLDER, scorer (scenes), contrastive (scenes, emoji); "
        "repeatable. What a folder holds: docs/judges.md",
    )
    parser.add_argument(
        "--question",
        metavar="TEXT",
        help="what rows say was asked (reward models: preference, others: prompt following)",
    )
    parser.add_argument(
        "--tie",
        metavar="MARGIN",
        type=float,
        default=TIE,
        help="reward models: a tie where the probability that the model gives to either image is within MARGIN of 0.5 "
        "(%(default)s); the others have ties of their own",
    )
    parser.add_argument(
        "--most",
        metavar="N",
        type=int,
        default=MOST,
        help="battles a judge (%(default)s): of more, each tree meets some others on each image, by chance",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="CSV; scores go to FILE's name + _scores.csv"
    )
    parser.add_argument(
        "--append", action="store_true", help="keep the rows that FILE has, but for those that are decided anew"
    )
    parser.add_argument(
        "--device", metavar="NAME", help="of reward models: cpu, cuda, cuda:N (a GPU where torch sees one)"
    )
    parser.add_argument(
        "--batch", metavar="N", type=int, default=16, help="images at a time for reward models (%(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.intermixed = True  # type: ignore[attr-defined]
    parser.set_defaults(run=run_battles)


def run_battles(args: argparse.Namespace) -> int:
    """Score what is new, pair all, write the table, tell what there is."""
    from mmdit_jax.evaluation.rewards import (
        Options,
        ScoreFile,
        find_trees,
        image_hash,
        open_judge,
        pair,
        probability_margin,
        read_tree,
        score_pictures,
        shown,
        tie_lead,
    )
    from mmdit_jax.host import sigterm_noted

    probability_margin(args.tie)
    for name in ("batch", "most"):
        if (number := getattr(args, name)) < 1:
            raise UserError(f"{name}={number}: expected 1 or more")
    fields, kept = _earlier(args.out, args.append)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch may want the same GPU as the small judge
    names = None if args.names is None else [name.strip() for name in args.names.split(",")]
    trees = find_trees(args.trees, names)
    every = [picture for tree in trees for picture in read_tree(tree)]
    shared = Counter((picture.prompt, picture.sample) for picture in every)
    pictures = [picture for picture in every if shared[picture.prompt, picture.sample] > 1]
    if not pictures:
        raise UserError(
            f"trees={', '.join(str(tree.folder) for tree in trees)}: no two share a prompt and a sample's number"
        )
    judges = [open_judge(spec, Options(args.device, args.batch)) for spec in args.judge]
    if twice := [name for name, count in Counter(judge.name for judge in judges).items() if count > 1]:
        raise UserError(f"judge={twice[0]}: given twice; their rows could not be told apart: take an --out for each")

    hashes = {picture.path: image_hash(picture.path) for picture in pictures}
    rows: list[Battle] = []
    told: list[dict[str, Any]] = []
    with ScoreFile(args.out.with_name(f"{args.out.stem}_scores.csv")) as file, sigterm_noted() as stop:
        for judge in judges:
            tell = _progress(judge.name, args.quiet)
            scores, counts = score_pictures(judge, pictures, hashes, file, stop=stop, tell=tell)
            question = args.question or judge.question
            found = pair(scores, judge=judge.name, question=question, tie=tie_lead(judge, args.tie), most=args.most)
            rows += found
            own = {"pairings": every_pair(shown(scores)), **dataclasses.asdict(counts)}
            told.append(_summary(judge, question, found, tie_lead(judge, args.tie), own))
            if judge.name == "contrastive":
                told[-1]["foreign_prompts"] = _foreign(prompt for known in scores.values() for prompt, _ in known)
    if not rows:
        raise UserError(
            f"judge={', '.join(judge.name for judge in judges)}: can't judge any prompt that two trees share"
        )
    again = {(row.judge, row.question, frozenset((row.left, row.right))) for row in rows}
    kept = [row for row in kept if (row["judge"], row["question"], frozenset((row["left"], row["right"]))) not in again]
    _write(args.out, fields, [*kept, *map(dataclasses.asdict, rows)])
    result = {
        "out": str(args.out),
        "scores": str(file.path),
        "battles": len(rows),
        "kept": len(kept),
        "names": [tree.name for tree in trees],
        "unpaired": len(every) - len(pictures),
        "without": _without(rows, [tree.name for tree in trees]),
        "tie": args.tie,
        "judges": told,
    }
    print(json.dumps(result) if args.json else _text(result))
    return EXIT_OK


def _earlier(out: Path, append: bool) -> tuple[list[str], list[dict[str, str]]]:
    """Columns of the table to write, and the rows that it has.

    Raises UserError where there is a table and ``append`` isn't said, or where it is none of battles.
    """
    from mmdit_jax.evaluation.battles import Battle

    columns = [field.name for field in dataclasses.fields(Battle)]
    if not out.exists():
        return columns, []
    if out.is_dir():
        raise UserError(f"out={out}: is a folder; expected a file's name, as {out / 'battles.csv'}")
    if not append:
        raise UserError(
            f"out={out}: is there already; --append keeps its rows and adds to them, or choose another name"
        )
    with out.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise UserError(f"out={out}: has no column {missing[0]!r}; --append expects {', '.join(columns)}")
    return list(reader.fieldnames or ()), rows


def _write(out: Path, fields: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    from mmdit_jax.files import write_atomic

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(out, text.getvalue())


def _summary(
    judge: Judge, question: str, rows: Sequence[Battle], lead: float, counts: dict[str, int]
) -> dict[str, Any]:
    ties = sum(row.outcome == "tie" for row in rows)
    return {"judge": judge.name, "question": question, "battles": len(rows), "ties": ties, "tie_lead": lead, **counts}


def _foreign(prompts: Iterable[str]) -> int:
    """How many are no captions of the sets that the small judge was trained on."""
    from mmdit_jax.evaluation.judge import knows

    return sum(not knows(prompt) for prompt in set(prompts))


def _without(rows: Sequence[Battle], names: Sequence[str]) -> list[str]:
    met = {name for row in rows for name in (row.left, row.right)}
    return [name for name in names if name not in met]


def _text(result: dict[str, Any]) -> str:
    lines = []
    for item in result["judges"]:
        ties = 100 * item["ties"] / max(item["battles"], 1)
        of = f" of {item['pairings']:,} by chance" if item["battles"] < item["pairings"] else ""
        lines.append(
            f"{item['judge']}, {item['question']}: {item['battles']:,} battles{of}, {ties:.1f} % ties (a lead of "
            f"{item['tie_lead']:.3g} or less); {item['scored']:,} images scored, {item['known']:,} known"
            + (f", {item['unseen']:,} with prompts it can't judge" if item["unseen"] else "")
        )
        if foreign := item.get("foreign_prompts", 0):
            lines.append(
                f"warning: {foreign:,} prompt{'s are no captions' * (foreign != 1) or ' is no caption'} of scenes or "
                f"emoji, which is all that {item['judge']} was trained on: what it says of others is untested"
            )
    if result["unpaired"]:
        lines.append(f"{result['unpaired']:,} images left out: no other tree has that prompt and sample")
    if result["without"]:
        lines.append(f"no battle of {', '.join(result['without'])}")
    if result["kept"]:
        lines.append(f"{result['kept']:,} rows kept")
    return "\n".join([*lines, result["out"]])


def _progress(name: str, quiet: bool) -> Callable[[int, int], None]:
    """Lines on stderr, at most one in ten seconds, and one at the end."""
    begun = last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if not quiet and (done == total or now - last >= _EVERY):
            last = now
            rate = f", {done / (now - begun):.1f} a second with loading" if now > begun else ""
            print(f"{name}: {done:,} of {total:,} images{rate}", file=sys.stderr, flush=True)

    return tell
