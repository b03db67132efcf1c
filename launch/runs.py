"""``mmdit train``, ``mmdit evaluate`` and ``mmdit sample``: one run of a study."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import geneval_tree, sample_checkpoint
from launch.compiled import keep_compiled_programs
from launch.drawing import drawing, live
from launch.execute import Handling, execute, restore_ema
from launch.places import CONFIG, Places, make_folder
from launch.runtime import add_handling, add_study, add_vae, check_handling, places_of
from launch.studies import find_run, load_study, trainings
from mmdit_jax.config import Run
from mmdit_jax.config_values import overridden
from mmdit_jax.copies import pull
from mmdit_jax.data import pipeline
from mmdit_jax.diffusion.sampler_config import METHODS
from mmdit_jax.errors import Held, Preempted, UserError, unknown
from mmdit_jax.evaluation.evaluate import evaluate, generate
from mmdit_jax.evaluation.latent import no_autoencoder
from mmdit_jax.evaluation.official.tree import write_image
from mmdit_jax.host import process_began
from mmdit_jax.processes import is_first, join
from mmdit_jax.training.data import LatentData, training_data

EXAMPLES = {
    "train": "example: mmdit train quickstart --run d2-rf",
    "evaluate": "example: mmdit evaluate quickstart --run d2-rf --drop tower --out /tmp/without-tower --json",
    "sample": 'example: mmdit sample quickstart --run d2-rf "a red circle above a blue square" --out samples; '
    'mmdit sample --checkpoint sd3_medium_incl_clips.safetensors --tokenizers sd3 "a red circle" --height 512; '
    "mmdit sample --checkpoint sd3/ --geneval evaluation_metadata.jsonl --batch 8 --part 1/4 --out tree",
}


def _interval(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected two noise levels, as 0.1,0.8") from error


SAMPLER_OPTIONS: dict[str, tuple[Any, str]] = {
    "steps": (int, "sampler steps"),
    "guidance": (float, "guidance scale, 1 for none"),
    "method": (str, f"one of {', '.join(METHODS)}"),
    "shift": (float, "resolution shift of the steps"),
    "shift_applied": (str, "once, or twice as the public reference samplers do"),
    "variables": (str, "what steps are straight in: straight, or the path's own"),
    "interval": (_interval, "LOW,HIGH: noise levels between which guidance acts"),
    "rescale": (float, "guidance rescale, 0 to 1"),
}


def add_parsers(commands: Any) -> None:
    """Register the three commands."""
    for name, run, text in (
        ("train", train_run, "train and evaluate one run, or go on where it was: what executors call"),
        ("evaluate", evaluate_run, "score a trained run anew, with other settings if given"),
        ("sample", sample_run, "images from a trained run's EMA weights, or from an SD3 checkpoint"),
    ):
        parser = commands.add_parser(name, help=text, description=text, epilog=EXAMPLES[name])
        add_study(parser, named=name != "sample")
        needed = name != "sample"
        parser.add_argument("--run", dest="run_key", required=needed, metavar="ID", help="id or name of the run")
        if name != "sample":
            add_vae(parser)
        if name == "train":
            add_handling(parser)
            parser.add_argument(
                "--lock-seconds",
                type=float,
                default=0.0,
                metavar="S",
                help="where another attempt is at the run, wait so long for it to end, then exit with 75",
            )
        else:
            parser.add_argument(
                "--drop", action="append", default=[], metavar="ENCODER", help="leave a text encoder out"
            )
            _add_sampler(parser, "the run's" if name == "evaluate" else "the run's, or SD3's")
            parser.add_argument("--seed", type=int, help="seed of the noise (default: the run's, or 0)")
        if name == "evaluate":
            parser.add_argument("--out", type=Path, required=True, help="folder for the image tree")
            parser.add_argument("--json", action="store_true", help="print one JSON object")
        if name == "sample":
            parser.intermixed = True
            parser.add_argument("words", nargs="*", metavar="[STUDY] PROMPT", help="with --checkpoint prompts alone")
            sample_checkpoint.add_options(parser)
            geneval_tree.add_options(parser)
            parser.add_argument("--count", type=int, help="images a prompt (default: 1; with --geneval 4)")
            parser.add_argument("--out", type=Path, default=Path("samples"), help="folder (default: %(default)s)")
        parser.set_defaults(run=run)


def train_run(args: argparse.Namespace) -> int:
    """Train and evaluate one run, alone or as one of its processes; prints where its result lies."""
    check_handling(args)
    if args.lock_seconds < 0:
        raise UserError(f"lock-seconds={args.lock_seconds:g}: expected 0 or more")
    join()  # before anything else: a run's id takes the encoders' weights, and so a device
    study = load_study(args.study)
    run = overridden(find_run(study, args.run_key, args.overrides), args.overrides)
    places = places_of(args, study, fetch=False)
    handling = Handling(args.quiet, args.rewinds, args.hang_seconds, args.lock_seconds, process_began())
    try:
        execute(run, places, handling)
    except Held as error:
        if args.lock_seconds:
            raise Preempted(str(error)) from error
        raise
    if is_first():
        print(places.run_dir(run) / "result.json")
    return 0


def evaluate_run(args: argparse.Namespace) -> int:
    """Print a row a task; the run's own result.json stays as it is."""
    run, run_id, ema, places = _trained(args)
    make_folder(args.out, "out")
    data = training_data(run, places.data)
    found = drawing(run, data, places.vae)
    if found is None:
        assert isinstance(data, LatentData)  # images need no autoencoder
        raise no_autoencoder(data.source)
    scores = evaluate(run, ema, args.out, found.captions, drop=tuple(args.drop), latent=found.latent)
    if args.json:
        print(json.dumps({"run_id": run_id, "name": run.name, **scores}))
        return 0
    for row in (*scores["geneval"], *scores.get("typography", ())):
        print(
            f"{row['task']:14} {row['rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  chance {row['chance']:.3f}  "
            f"graded {row['graded']:.3f}  chance {row['chance_graded']:.3f}"
            + (f"  by {row['reader']}" if "reader" in row else "")
        )
    for row in scores.get("compbench", ()):
        print(
            f"{row['task']:14} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  chance {row['chance']:.3f}"
            "  (compbench)"
        )
    print(f"judge_match    {scores['judge_match']:.3f}  chance {scores['judge_match_chance']:.3f}")
    return 0


def sample_run(args: argparse.Namespace) -> int:
    """Write PNGs; prints a path a line, or that of the tree."""
    if (args.checkpoint is None) == (args.run_key is None):
        raise UserError("sample: expected STUDY and --run ID, or --checkpoint PATH")
    if args.count is not None and args.count < 1:
        raise UserError(f"count={args.count}: expected 1 or more")
    if args.checkpoint is not None:
        if args.overrides:
            raise UserError(f"--set {args.overrides[0]}: expected a run with it; a checkpoint has no such field")
        args.prompt = args.words
    else:
        sample_checkpoint.refuse_options(args)
        if not args.words:
            raise UserError("sample: expected STUDY, a name in experiments/ or the path of a study file")
        args.study, *args.prompt = args.words
    tree = geneval_tree.tree_of(args)
    if tree is not None and args.prompt:
        raise UserError(f"prompt={args.prompt[0]!r}: expected none with --geneval; its prompts are in {args.geneval}")
    if tree is None and not args.prompt:
        after = f" after STUDY={args.study}" if args.checkpoint is None else ""
        raise UserError(f"prompt: none{after}; give one or more")
    if args.checkpoint is not None:
        return sample_checkpoint.sample_checkpoint(args, tree)
    run, _, ema, places = _trained(args)
    latent = None
    if pipeline.open_encoded(run.data.name, places.data) is not None:
        folders = {name: vars(args)[name] or args.text for name in sample_checkpoint.ENCODERS}
        data = training_data(run, places.data)
        assert isinstance(data, LatentData)
        latent = live(run, data, places.vae, folders, args.drop)
    if tree is not None:
        geneval_tree.tell_new_words(run, places.data, tree.captions)
        geneval_tree.draw_run(tree, run, ema, latent, args.drop)
        return tree.tell(args)
    make_folder(args.out, "out")
    images = generate(
        run, ema, args.prompt, 1 if args.count is None else args.count, drop=tuple(args.drop), latent=latent
    )
    for i, row in enumerate(images):
        for k, image in enumerate(row):
            path = args.out / f"{i:05d}_{k:02d}.png"
            write_image(path, image)
            print(path)
    return 0


def _trained(args: argparse.Namespace) -> tuple[Run, str, Any, Places]:
    """The run as it is to be evaluated, the id by which it was trained, its EMA weights, and where it lies.

    How it is evaluated may differ from what it was trained with, whose id it keeps (``trainings``).
    """
    study = load_study(args.study)
    found, places = find_run(study, args.run_key, args.overrides), places_of(args, study, fetch=False)
    run, *_ = ways = trainings(found, args.overrides)
    for trained in ways:
        pull(places.run_dir(trained))
        if (places.run_dir(trained) / CONFIG).exists():
            break
    for name in args.drop:
        if name not in run.data.text_encoders:
            unknown("drop", name, run.data.text_encoders)
    given = {name: vars(args)[name] for name in SAMPLER_OPTIONS if vars(args)[name] is not None}
    settings = replace(run.evaluation, sampler=replace(run.evaluation.sampler, **given))
    if args.seed is not None:
        settings = replace(settings, seed=args.seed)
    ema = restore_ema(run, places.run_dir(trained))
    keep_compiled_programs(places.root)
    return replace(run, evaluation=settings), trained.run_id, ema, places


def _add_sampler(parser: argparse.ArgumentParser, default: str) -> None:
    """Options that replace fields of a sampler, whose ``default`` is told."""
    for name, (convert, text) in SAMPLER_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=convert, help=f"{text} (default: {default})")
