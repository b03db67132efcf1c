"""``mmdit geneval prompts | score | read``: GenEval itself, from prompts to a table, without its scorer's packages."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from launch.tables import natural, text_table
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.official.classes import OBJECTS, TABLE_5, TASKS
from mmdit_jax.evaluation.official.prompts import SIZES, generate
from mmdit_jax.evaluation.official.provenance import claim, fingerprint_of_files, made_by
from mmdit_jax.evaluation.official.results import begin_results, image_key, line, read_results, table
from mmdit_jax.evaluation.official.rules import Rules, judge, kept
from mmdit_jax.evaluation.official.tree import DRAWN_BY, Asked, Part, gaps, read_image, walk
from mmdit_jax.files import write_atomic

EXAMPLES = {
    "prompts": "example: mmdit geneval prompts --out mine.jsonl --seed 1; "
    "mmdit sample --checkpoint sd3/ --geneval mine.jsonl --out tree",
    "score": "example: mmdit geneval score tree --detector models/mask2former --clip models/clip --out results.jsonl",
    "read": "example: mmdit geneval read d18=results18.jsonl d24=results24a.jsonl d24=results24b.jsonl "
    "--out geneval.csv",
}


def add_parsers(commands: Any) -> None:
    """Register ``geneval`` and its actions."""
    text = "GenEval itself: prompts of its kind, a scorer by a detector, results to a table"
    geneval = commands.add_parser("geneval", help=text, description=text, epilog=EXAMPLES["score"])
    actions = geneval.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, told, options in (
        ("prompts", write_prompts, "a prompt set of GenEval's kind over COCO's objects", _prompt_options),
        ("score", score, "decide a tree's images by a detector and CLIP, as GenEval's scorer does", _score_options),
        (
            "read",
            read,
            "pass rates by task with intervals, from result files of GenEval's scorer or of score",
            _read_options,
        ),
    ):
        action = actions.add_parser(name, help=told, description=told, epilog=EXAMPLES[name])
        options(action)
        action.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        action.set_defaults(run=run)


def _prompt_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="metadata to write, a line a prompt")
    parser.add_argument("--seed", type=natural, default=0, help="of the choice (default: %(default)s)")
    parser.add_argument(
        "--sizes",
        default=",".join(map(str, SIZES)),
        metavar="N[,N…]",
        help=f"prompts of {', '.join(TASKS)}, or of each (default: %(default)s, the official set's)",
    )


def _score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tree", type=Path, metavar="TREE", help="images, as mmdit sample --geneval draws them")
    parser.add_argument(
        "--detector",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="transformers' folder of a detector trained on COCO: Mask2Former as the official, or DETR, RT-DETR, …",
    )
    parser.add_argument(
        "--clip", type=Path, required=True, metavar="FOLDER", help="transformers' folder of a CLIP; officially ViT-L/14"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="results, a line an image; goes on")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="every N-th prompt from the K-th on, for N hosts")
    parser.add_argument("--batch", type=int, default=4, help="images at a time (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU, where torch sees one)")
    numbers = parser.add_argument_group("other numbers than the official ones, which suit its own detector")
    for field in dataclasses.fields(Rules):
        kind = int if isinstance(field.default, int) else float
        numbers.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help="%(default)s")


def _read_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        nargs="+",
        metavar="[NAME=]RESULTS",
        help="a model's result file; several of one NAME are parts (default: the file's name)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="CSV to write, with the columns of a study's geneval.csv"
    )


def write_prompts(args: argparse.Namespace) -> int:
    """Write the set; print its size, or one JSON object (``path``, ``prompts``, ``tasks``)."""
    try:
        sizes = [int(word) for word in args.sizes.split(",")]
    except ValueError as error:
        raise UserError(f"sizes={args.sizes}: expected {len(TASKS)} whole numbers, or one for each task") from error
    questions = generate(sizes * len(TASKS) if len(sizes) == 1 else sizes, args.seed)
    write_atomic(args.out, "".join(f"{question.to_json()}\n" for question in questions))
    tasks = {task: sum(question.task == task for question in questions) for task in TASKS}
    if args.json:
        print(json.dumps({"path": str(args.out), "prompts": len(questions), "tasks": tasks}))
    else:
        print(f"{args.out}: {len(questions)} prompts ({', '.join(f'{task} {n}' for task, n in tasks.items())})")
    return 0


def score(args: argparse.Namespace) -> int:
    """Append a line an image, those that are there left out; then print the table of the file."""
    from mmdit_jax.evaluation.rewards.torch_files import choose_device, need

    rules = Rules(**{field.name: vars(args)[field.name] for field in dataclasses.fields(Rules)})
    if args.batch < 1:
        raise UserError(f"batch={args.batch}: expected 1 or more")
    part = Part.parse(args.part)
    asked = walk(args.tree, part)
    _tell_gaps(str(args.tree), [one.number for one in asked], part)
    names = sorted({clause.name for one in asked for clause in one.question.include + one.question.exclude})
    strange = [name for name in names if name not in OBJECTS]
    if strange:
        raise UserError(f"tree={args.tree}: asks for {', '.join(strange[:3])}: not among GenEval's {len(OBJECTS)}")
    need("geneval", ("torch", "transformers"))
    device = choose_device("geneval", args.device)
    from mmdit_jax.evaluation.official.colours import load_clip
    from mmdit_jax.evaluation.official.detector import load_detector

    detector, clip = load_detector(args.detector, device), load_clip(args.clip, device)
    told = {
        "tree": args.tree.name,
        "drawn_by": made_by(args.tree / DRAWN_BY, "tree"),
        "part": args.part,
        "rules": dataclasses.asdict(rules),
        "detector": [args.detector.name, fingerprint_of_files(args.detector)],
        "clip": [args.clip.name, fingerprint_of_files(args.clip)],
    }
    # All of this before the file is touched: it may be another's.
    if not _told(args.out).exists() and args.out.exists() and args.out.stat().st_size:
        raise UserError(f"results={args.out}: not begun by this command; give another --out")
    claim(_told(args.out), told, "results")
    images = [(one, path) for one in asked for path in one.images]
    done = begin_results(args.out, {image_key(str(path)): path for _, path in images})
    left = len(images) - len(done)
    with args.out.open("a", encoding="utf-8") as file:
        for number, text in enumerate(_decided(images, done, detector, clip, rules, args.batch), start=1):
            file.write(text)
            file.flush()
            if number % 100 == 0 or number == left:
                print(f"{number} of {left} scored", file=sys.stderr)
    return _show(args, table(read_results(args.out), args.tree.name))


def _decided(
    images: Sequence[tuple[Asked, Path]], done: Collection[str], detector: Any, clip: Any, rules: Rules, batch: int
) -> Iterator[str]:
    """The lines of the results, image by image, without those that are ``done``.

    Batches are the same ones whatever is done: in another, an image's scores would differ in their last bits.
    """
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        if all(image_key(str(path)) in done for _, path in some):
            continue
        pixels = [read_image(path) for _, path in some]
        found = detector(pixels, [rules.least_score(one.question.task) for one, _ in some])
        for (one, path), image, detections in zip(some, pixels, found, strict=True):
            if image_key(str(path)) in done:
                continue
            objects = kept(detections, one.question.task, rules)
            verdict = judge(one.question, objects, functools.partial(clip, image), rules)
            yield line(path, one.question, verdict, objects, fingerprint_of_files(path))


def _told(results: Path) -> Path:
    """What says by which detector and from which tree, beside a result file of ours."""
    return results.with_suffix(".by.json")


def _refuse_mixed(name: str, paths: Sequence[Path]) -> None:
    """UserError where two files of one name are told to be of two trees or scorers; the official one's tell nothing."""
    first: tuple[Path, dict[str, Any]] | None = None
    for path in paths:
        told = made_by(_told(path), "results")
        if told is None:
            continue
        if first is None:
            first = path, told
        for field in sorted({*told, *first[1]} - {"part"}):
            before, now = first[1].get(field), told.get(field)
            if before != now:
                raise UserError(
                    f"results of {name}: {first[0]} has {field}={before!r}, {path} {now!r}; expected parts of one "
                    "tree by one scorer"
                )


def read(args: argparse.Namespace) -> int:
    """Print a row a model and, with --out, write a row a model and task."""
    rows = []
    for name, paths in _by_model(args.results).items():
        _refuse_mixed(name, paths)
        results = [one for path in paths for one in read_results(path)]
        rows += table(results, name)
        _tell_gaps(name, [int(one.prompt[0]) for one in results if one.prompt[0].isdecimal()], Part())
    if args.out is not None:
        write_atomic(args.out, pd.DataFrame(rows).to_csv(index=False))
    return _show(args, rows)


def _by_model(results: Sequence[str]) -> dict[str, list[Path]]:
    """Files of each model, from words as NAME=FILE or FILE.

    Raises:
        UserError: no name before "=", or two files without a name whose own names are the same.
    """
    files: dict[str, list[Path]] = {}
    unnamed: dict[str, str] = {}
    for given in results:
        name, equals, path = given.partition("=")
        if not equals or Path(given).exists():
            name, path = Path(given).stem, given
            if unnamed.setdefault(name, given) != given:
                raise UserError(f"results={given}: called {name!r}, as {unnamed[name]} is; give each as NAME={given}")
        elif not name:
            raise UserError(f"results={given}: no name before '='; expected NAME={path}")
        files.setdefault(name, []).append(Path(path))
    return files


def _tell_gaps(what: str, numbers: Sequence[int], part: Part) -> None:
    """A line where numbers of prompts are left out, as by a host that hasn't begun: a score is of the others alone."""
    lacking = gaps(numbers, part)
    if lacking:
        some = ", ".join([*(f"{number:05d}" for number in lacking[:3]), *(["…"] if len(lacking) > 3 else [])])
        whole = len(lacking) + len(set(numbers))
        print(
            f"{what}: {len(lacking)} of {whole} prompts are not there ({some}), and not in the score", file=sys.stderr
        )


def _show(args: argparse.Namespace, rows: list[dict[str, Any]]) -> int:
    by_model: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["name"], {})[row["task"]] = row
    for name, found in by_model.items():
        lacking = [task for task in TASKS if task not in found]
        if lacking:
            print(f"{name}: no images of {', '.join(lacking)}; overall is the mean of the other tasks", file=sys.stderr)
    if args.json:
        print(json.dumps({"rows": rows}))
        return 0
    shown = []
    for name, found in by_model.items():
        cells = {"name": name, "images": f"{found['overall']['n']:,}"}
        for head, task in zip(("overall", *TABLE_5), ("overall", *TASKS), strict=True):
            cells[head] = "–"
            if task in found:
                cells[head] = "{rate:.2f} [{low:.2f}, {high:.2f}]".format(**found[task])
        shown.append(cells)
    print(text_table(pd.DataFrame(shown)))
    return 0
