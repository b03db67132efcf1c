"""``mmdit sample --geneval METADATA.jsonl``: images of all its prompts, in the tree that GenEval's scorer walks."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.places import make_folder
from mmdit_jax.config import Run
from mmdit_jax.data import pipeline
from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.evaluate import states
from mmdit_jax.evaluation.latent import Latent
from mmdit_jax.evaluation.official.metadata import Question, read_metadata
from mmdit_jax.evaluation.official.provenance import claim
from mmdit_jax.evaluation.official.tree import (
    DRAWN_BY,
    Part,
    image_path,
    noise_indices,
    wanted,
    write_image,
    write_questions,
)
from mmdit_jax.evaluation.sampling import sample_images
from mmdit_jax.models.text import ENCODERS
from mmdit_jax.models.text.tokens import words

log = logging.getLogger(__name__)
COUNT = 4
"""Images a prompt, as in GenEval."""
_BATCH = 64
_SHOWN = 5


@dataclass(frozen=True)
class Tree:
    """What is to be drawn into which tree."""

    folder: Path
    questions: list[Question]
    count: int
    part: Part
    images: list[tuple[int, int]]
    """(prompt, sample) of those to draw."""

    @property
    def captions(self) -> list[str]:
        """Of each image to draw, its prompt."""
        return [self.questions[prompt].prompt for prompt, _ in self.images]

    @property
    def total(self) -> int:
        """Images of the whole tree, whoever draws them."""
        return len(self.questions) * self.count

    def begin(self, told: Mapping[str, Any]) -> None:
        """Write what draws it, and the prompts.

        Raises:
            UserError: it was begun by something else, or with other prompts.
        """
        claim(self.folder / DRAWN_BY, told, "tree")
        write_questions(self.folder, self.questions, filter(self.part.holds, range(len(self.questions))))

    def path(self, i: int) -> Path:
        """Where the i-th image to draw goes."""
        return image_path(self.folder, *self.images[i])

    def tell(self, args: argparse.Namespace) -> int:
        """Print the end of it; returns the exit code."""
        if args.json:
            there = sum(map(self.part.holds, range(len(self.questions)))) * self.count
            print(json.dumps({"tree": str(self.folder), "images": there, "drawn": len(self.images)}))
        else:
            print(self.folder)
        return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of a tree."""
    group = parser.add_argument_group("GenEval's tree instead of single images")
    group.add_argument(
        "--geneval",
        type=Path,
        metavar="FILE",
        help=f"GenEval's metadata, or what `mmdit geneval prompts` wrote: draw all its prompts, --count of each "
        f"(default: {COUNT}), as NNNNN/samples/NNNN.png",
    )
    group.add_argument("--part", metavar="K/N", help="with --geneval: every N-th prompt from the K-th on, for N hosts")
    group.add_argument(
        "--only-missing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with --geneval: keep the images that are there (default)",
    )


def tree_of(args: argparse.Namespace) -> Tree | None:
    """The tree asked for, or none.

    Raises:
        UserError: options of a tree without one, or prompts beside it; metadata that can't be read.
    """
    if args.geneval is None:
        if args.part is not None or not args.only_missing:
            option = "--part" if args.part is not None else "--no-only-missing"
            raise UserError(f"{option}: expected --geneval FILE with it")
        return None
    questions = read_metadata(args.geneval)
    count = COUNT if args.count is None else args.count
    part = Part() if args.part is None else Part.parse(args.part)
    images = wanted(args.out, len(questions), count, part, only_missing=args.only_missing)
    make_folder(args.out, "out")
    return Tree(args.out, questions, count, part, images)


def draw_run(tree: Tree, run: Run, params: Any, latent: Latent | None, drop: Sequence[str]) -> None:
    """Draw what is missing of a tree by a run's weights; each image is on disk before the next batch is begun."""
    evaluation = run.evaluation
    tree.begin(
        {
            "run": run.name,
            "weights": fingerprint(params),
            "sampler": dataclasses.asdict(evaluation.sampler),
            "seed": evaluation.seed,
            "drop": sorted(drop),
            "autoencoder": None if latent is None else latent.autoencoder.fingerprint,
        }
    )
    if not tree.images:
        return
    captions = tree.captions
    distinct = list(dict.fromkeys(captions))
    row = {caption: i for i, caption in enumerate(distinct)}
    text = states(run, distinct, latent)
    batch = min(_BATCH, tree.total)  # whatever is missing: so an image has the same bits whenever it is drawn
    for start in range(0, len(captions), batch):
        chosen = [min(i, len(captions) - 1) for i in range(start, start + batch)]
        rows = np.array([row[captions[i]] for i in chosen])
        drawn, _ = sample_images(
            run.model,
            params,
            formulation(run.formulation),
            {name: (found.tokens[rows], found.pooled[rows]) for name, found in text.items()},
            evaluation.sampler,
            seed=evaluation.seed,
            indices=noise_indices([tree.images[i] for i in chosen]),
            resolution=run.data.resolution,
            channels=run.model.in_channels,
            drop=drop,
            chunk=batch,
            layout=run.data.text_layout,
            sides=None if latent is None else latent.sides,
        )
        images = drawn if latent is None else latent.decode(drawn)
        done = min(start + batch, len(captions))
        for i in range(start, done):
            write_image(tree.path(i), images[i - start])
        print(f"{done} of {len(captions)} drawn", file=sys.stderr)


def tell_new_words(run: Run, data_dir: Path, captions: Sequence[str]) -> None:
    """Say in a line which words the run can't have learned: of embedded encoders, those of no training caption.

    Nothing where a large encoder knows them, or where the captions are not at hand.
    """
    if not set(run.data.text_encoders) <= set(ENCODERS) or pipeline.open_encoded(run.data.name, data_dir) is not None:
        return
    try:
        data = pipeline.load(run.data.name, data_dir, resolution=run.data.resolution, examples=run.data.examples)
    except UserError:
        return
    known = {word for caption in data.split("train").captions for word in words(caption)}
    new = {caption: [word for word in words(caption) if word not in known] for caption in dict.fromkeys(captions)}
    unseen = sorted({word for found in new.values() for word in found})
    if unseen:
        some = ", ".join([*unseen[:_SHOWN], *(["…"] if len(unseen) > _SHOWN else [])])
        with_one = sum(map(bool, new.values()))
        log.warning(
            f"geneval: {with_one} of {len(new)} prompts have words that no caption of {run.data.name} has ({some}): "
            "the run has never seen them"
        )


def fingerprint(params: Any) -> str:
    """Of trained weights: a hash of their shapes and of some numbers of each; training leaves none as it was."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        some = np.asarray(leaf[(0,) * (leaf.ndim - 1)][:256] if leaf.ndim else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode() + some.tobytes())
    return digest.hexdigest()[:16]
