"""``mmdit data build | inspect NAME``; ``encode``, ``duplicates`` and ``autoencoder`` have files of their own."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import Any

import numpy as np

import mmdit_jax.data.pipeline as pipeline
from launch.autoencoder import add_autoencoder
from launch.duplicates import add_duplicates
from launch.encode import add_encode
from launch.inspect_encoded import inspect_encoded
from launch.runtime import add_places, add_vae, data_folder
from mmdit_jax.config import DataConfig
from mmdit_jax.evaluation.grids import grid_png

EXAMPLE = "example: mmdit data build scenes --resolution 32; mmdit data inspect scenes --out scenes.png"


def add_parsers(commands: Any) -> None:
    """Register ``data`` and its actions."""
    data = commands.add_parser("data", help="build, encode and look at data sets", epilog=EXAMPLE)
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, text, names in (
        ("build", build, "build a data set, where it is not there yet", "scenes, signs, signs_fixed or emoji"),
        (
            "inspect",
            inspect,
            "what is in a data set, and a picture of some examples",
            "scenes, signs, signs_fixed, emoji or an encoded set",
        ),
    ):
        action = actions.add_parser(name, help=text, description=text, epilog=EXAMPLE)
        action.add_argument("name", metavar="NAME", help=names)
        action.add_argument("--resolution", type=int, default=32)
        action.add_argument("--examples", type=int, default=DataConfig.examples, help="of a procedural set")
        add_places(action)
        if name == "inspect":
            action.add_argument("--out", type=Path, help="PNG to write")
            add_vae(action)
        action.set_defaults(run=run)
    add_encode(actions)
    add_duplicates(actions)
    add_autoencoder(actions)


def _open(args: argparse.Namespace) -> Any:
    folder = data_folder(args)
    pipeline.prepare(args.name, folder, resolution=args.resolution, examples=args.examples)
    return pipeline.load(args.name, folder, resolution=args.resolution, examples=args.examples)


def build(args: argparse.Namespace) -> int:
    """Build, and print the split sizes."""
    data = _open(args)
    for split in ("train", "validation"):
        print(f"{args.name} {split}: {len(data.split(split)):,} examples")
    return 0


def inspect(args: argparse.Namespace) -> int:
    """Print what is in a set; draw the first examples."""
    encoded = pipeline.open_encoded(args.name, data_folder(args))
    if encoded is not None:
        return inspect_encoded(encoded, args.out, args.vae)
    data = _open(args)
    for split in ("train", "validation"):
        source = data.split(split)
        words = collections.Counter(word for caption in source.captions for word in caption.lower().split())
        common = ", ".join(f"{word} {count:,}" for word, count in words.most_common(8))
        print(f"{args.name} {split}: {len(source):,} examples, {len(words):,} words ({common}, …)")
    if args.out:
        items = [source[i] for i in range(min(12, len(source)))]
        grid_png(
            np.stack([item["image"] for item in items])[None],
            [args.name],
            [item["caption"] for item in items],
            args.out,
        )
        print(args.out)
    return 0
