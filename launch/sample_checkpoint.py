"""``mmdit sample --checkpoint``: images from an SD3 checkpoint, its text encoders and its autoencoder."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import jax

from launch.compiled import keep_compiled_programs
from launch.geneval_tree import Tree
from launch.places import make_folder
from mmdit_jax.diffusion import SamplerConfig, formulation
from mmdit_jax.errors import UserError, unknown
from mmdit_jax.evaluation.official.provenance import fingerprint_of_files
from mmdit_jax.evaluation.official.tree import noise_indices, write_image
from mmdit_jax.evaluation.text_to_image import (
    ENCODERS,
    condition,
    draw_latents,
    encode_prompts,
    expected_shapes,
    latent_sides,
)
from mmdit_jax.models.autoencoder import Autoencoder, holds_autoencoder, load_autoencoder
from mmdit_jax.models.sd3 import load_sd3, open_checkpoint
from mmdit_jax.models.text import TextEncoder, shapes_of
from mmdit_jax.models.text.places import find_encoder
from mmdit_jax.models.text.pretrained import load_text_encoder
from mmdit_jax.models.text.tokenizer import given_tokenizer

STEPS, GUIDANCE, SHIFT = 50, 5.0, 3.0
"""Of SD3's samples: 50 steps (section 5.3.3), guidance 5 (section 5.1), α = 3 at 1024² px (section 5.3.2)."""
ONLY: dict[str, Any] = {
    "tokenizers": None, "t5_length": 77, "height": 1024, "width": 1024, "negative": "", "batch": 1, "dtype": None,
    "tile": None, "json": False,
}  # fmt: skip
"""Options that a run of a study does not take, and their defaults."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of a checkpoint, which a run of a study does not have."""
    group = parser.add_argument_group("from a checkpoint instead of a run")
    group.add_argument("--checkpoint", type=Path, metavar="PATH", help="SD3: a safetensors file, a folder of shards, "
                       "a diffusers repository, or what mmdit convert wrote")  # fmt: skip
    group.add_argument("--text", type=Path, metavar="PATH", help="folder with text_encoder, text_encoder_2, "
                       "text_encoder_3 and tokenizers, folder of clip_l.safetensors and so on, or a checkpoint that "
                       "includes encoders (default: the checkpoint's)")  # fmt: skip
    group.add_argument("--tokenizers", type=Path, metavar="PATH", help="folder with tokenizer, tokenizer_2, "
                       "tokenizer_3: those that it has are taken")  # fmt: skip
    for name in ENCODERS:
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, dest=name, type=Path, metavar="PATH", help=f"folder or file of {name} alone")
    group.add_argument("--vae", type=Path, metavar="PATH", help="folder or file (default: the checkpoint's)")
    group.add_argument("--t5-length", type=int, metavar="N", help="tokens of T5: 77, or diffusers' 256 (%(default)s)")
    group.add_argument("--height", type=int, help="pixels, a multiple of 64 (%(default)s)")
    group.add_argument("--width", type=int, help="pixels, a multiple of 64 (%(default)s)")
    group.add_argument("--negative", metavar="TEXT", help="what guidance leads away from (default: empty)")
    group.add_argument("--batch", type=int, help="images at a time (%(default)s)")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, else bfloat16")
    group.add_argument("--tile", type=int, metavar="PX", help="decode in tiles of so many pixels, to save memory")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of paths")
    parser.set_defaults(**ONLY)


def refuse_options(args: argparse.Namespace) -> None:
    """Raises UserError if options of a checkpoint were given for a run, which would not look at them."""
    for name, default in ONLY.items():
        if vars(args)[name] != default and not (name == "json" and args.geneval is not None):
            raise UserError(f"--{name.replace('_', '-')}: expected --checkpoint with it; a run has its own")


def sample_checkpoint(args: argparse.Namespace, tree: Tree | None) -> int:
    """Write PNGs, ``NNNNN_KK.png`` of prompt N and its image K, or those of a tree; prints a path a line, or its."""
    given = {name: vars(args)[name] for name in ("method", "shift_applied", "variables", "interval", "rescale")}
    sampler = SamplerConfig(
        steps=STEPS if args.steps is None else args.steps,
        guidance=GUIDANCE if args.guidance is None else args.guidance,
        shift=SHIFT if args.shift is None else args.shift,
        **{name: value for name, value in given.items() if value is not None},
    )
    count = 1 if args.count is None else args.count
    if args.batch < 1:
        raise UserError(f"batch={args.batch}: expected 1 or more")
    seed = args.seed or 0
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: expected a whole number, 0 to 2**32 - 1")
    if args.t5_length < 2:
        raise UserError(f"t5_length={args.t5_length}: expected 2 or more")
    for name in args.drop:
        if name not in ENCODERS:
            unknown("drop", name, ENCODERS)
    dtype = args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    make_folder(args.out, "out")
    keep_compiled_programs(args.root)

    checkpoint = open_checkpoint(args.checkpoint)  # reads no weights yet
    config = checkpoint.config
    autoencoder = load_autoencoder(_autoencoder(args), dtype=dtype, tile=args.tile)
    if autoencoder.channels != config.in_channels:
        raise UserError(
            f"vae={autoencoder.folder}: {autoencoder.channels} channels; the checkpoint has {config.in_channels}"
        )
    sides = latent_sides(config, args.height, args.width, autoencoder.factor)
    captions = [prompt for prompt in args.prompt for _ in range(count)] if tree is None else tree.captions
    encoders = _encoders(args, dtype)
    if tree is not None:
        tree.begin(_told(args, sampler, seed, dtype, encoders, autoencoder))
        if not tree.images:
            return tree.tell(args)
    asked = list(dict.fromkeys([*captions, args.negative]))
    with _timed("text"):
        states = encode_prompts(encoders, asked)
    conditioning = condition(states, expected_shapes(config, shapes_of(states), args.t5_length), len(asked))
    row = {caption: i for i, caption in enumerate(asked)}
    with _timed("checkpoint"):
        model = load_sd3(checkpoint, dtype=dtype)
    pairs = [(row[caption], row[args.negative]) for caption in captions]
    drawn = draw_latents(
        model,
        formulation("rf"),
        conditioning,
        pairs,
        sampler,
        seed=seed,
        indices=range(len(captions)) if tree is None else noise_indices(tree.images),
        sides=sides,
        batch=min(args.batch, len(captions) if tree is None else tree.total),
    )
    paths: list[Path] = []
    for latents in drawn:  # each image is on disk before the next is begun
        for image in autoencoder.decode(latents):
            number, k = divmod(len(paths), count)
            paths.append(args.out / f"{number:05d}_{k:02d}.png" if tree is None else tree.path(len(paths)))
            write_image(paths[-1], image)
            if tree is None and not args.json:
                print(paths[-1], flush=True)
        print(f"{len(paths)} of {len(captions)} drawn", file=sys.stderr)
    if tree is not None:
        return tree.tell(args)
    if args.json:
        images = [{"path": str(path), "prompt": caption} for path, caption in zip(paths, captions, strict=True)]
        print(json.dumps({"images": images, "sampler": sampler.label, "seed": seed, "encoders": list(states)}))
    return 0


def _told(
    args: argparse.Namespace,
    sampler: SamplerConfig,
    seed: int,
    dtype: str,
    encoders: Container[str],
    autoencoder: Autoencoder,
) -> dict[str, Any]:
    """What an image of a tree depends on."""
    places = _places(args)
    return {
        "checkpoint": args.checkpoint.name,
        "weights": fingerprint_of_files(args.checkpoint),
        "sampler": dataclasses.asdict(sampler),
        "seed": seed,
        "encoders": {name: fingerprint_of_files(place) for name, place in places.items() if place and name in encoders},
        "tokenizers": None if args.tokenizers is None else fingerprint_of_files(args.tokenizers),
        "autoencoder": autoencoder.fingerprint,
        **{name: vars(args)[name] for name in ("height", "width", "negative", "t5_length", "tile")},
        "dtype": dtype,
    }


def _encoders(args: argparse.Namespace, dtype: str) -> dict[str, Callable[[], TextEncoder]]:
    """How to load each encoder that is there and not dropped.

    Raises:
        UserError: none is there, and not all are dropped.
    """
    whole = args.checkpoint if args.text is None else args.text
    places = _places(args)
    if not any(places.values()) and not set(args.drop) >= set(ENCODERS):
        raise UserError(f"text={whole}: no text encoder there; give --text, or --clip-l and so on")
    found: dict[str, Callable[[], TextEncoder]] = {}
    for name, place in places.items():
        if name in args.drop:
            continue
        if place is None:
            print(f"{name}: none in {whole}; zeros in its place", file=sys.stderr)
            continue
        found[name] = functools.partial(
            load_text_encoder,
            name,
            place,
            length=args.t5_length if name == "t5" else None,
            dtype=dtype,
            tokenizer=given_tokenizer(args.tokenizers, name),
        )
    return found


def _places(args: argparse.Namespace) -> dict[str, Path | None]:
    """Where each encoder is; none where it isn't."""
    whole = args.checkpoint if args.text is None else args.text
    return {name: vars(args)[name] or find_encoder(name, whole) for name in ENCODERS}


def _autoencoder(args: argparse.Namespace) -> Path:
    """Where the autoencoder is.

    Raises:
        UserError: it is not given, and not with the checkpoint.
    """
    if args.vae is not None:
        return Path(args.vae)
    inside: Path = args.checkpoint / "vae"
    if inside.is_dir():
        return inside
    if args.checkpoint.is_file() and holds_autoencoder(args.checkpoint):
        return Path(args.checkpoint)
    raise UserError(f"vae: none in {args.checkpoint}; give --vae, a diffusers folder or a checkpoint that includes it")


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
