"""What the loop feeds on: images or latents, record by record, and the frozen encoders' states of every caption."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import mmdit_jax.data.pipeline as pipeline
from mmdit_jax.config import DataConfig, Run, context_tokens, text_shapes
from mmdit_jax.data.batches import batches, encoded_batches
from mmdit_jax.data.encoded import EncodedSet, EncodedSplit
from mmdit_jax.errors import UserError
from mmdit_jax.models.text import TextStates, encode_all, text_encoder
from mmdit_jax.sharding import own_rows, shard_batch
from mmdit_jax.training.clean import latents_of
from mmdit_jax.training.held_out import HeldOut, HeldOutImages, held_out_latents


@dataclass(frozen=True)
class ImageData:
    """An image set ready for training: both splits, and text states aligned with the record indices."""

    train: pipeline.Split
    train_text: Mapping[str, TextStates]
    held_out: tuple[HeldOut, ...]
    captions: tuple[str, ...]
    """Of the held-out examples."""

    def batches(
        self, batch: int, seed: int, start_step: int, rows: np.ndarray | None = None
    ) -> Iterator[dict[str, Any]]:
        """``rows`` (None: all) of the batches from ``start_step`` on, as ``step_function`` takes them."""
        for found in batches(self.train, batch=batch, seed=seed, start_step=start_step, rows=rows):
            index = found["index"]
            text = {name: (states.tokens[index], states.pooled[index]) for name, states in self.train_text.items()}
            yield {"image": found["image"], "text": text}


@dataclass(frozen=True)
class LatentData:
    """An encoded set ready for training; text states come with the records."""

    source: EncodedSet
    train: EncodedSplit
    validation: EncodedSplit
    held_out: tuple[HeldOut, ...]

    def batches(
        self, batch: int, seed: int, start_step: int, rows: np.ndarray | None = None
    ) -> Iterator[dict[str, Any]]:
        """As of ``ImageData``; a batch is of one bucket."""
        for _, found in encoded_batches(self.train, batch=batch, seed=seed, start_step=start_step, rows=rows):
            text = {name: tuple(states) for name, states in found.text.items()}
            yield {"latents": latents_of(found, self.source.latents), "text": text}

    def prompts(self, count: int) -> tuple[list[str], dict[str, TextStates]]:
        """Captions of the first ``count`` held-out examples, or of all, and their states.

        These are of all buckets; the states of a caption have nothing to do with a shape.
        """
        parts = held_out_latents(self.validation, self.source.latents, count)
        found = [self.validation.take(part.bucket, part.rows) for part in parts]
        order = np.argsort(np.concatenate([part.index for part in parts]))
        captions = np.concatenate([item.captions for item in found])[order].tolist()

        def joined(*arrays: np.ndarray) -> np.ndarray:
            return np.concatenate(arrays)[order]

        return captions, jax.tree.map(joined, *(item.text for item in found))


TrainingData = ImageData | LatentData


def training_data(run: Run, data_dir: Path) -> TrainingData:
    """The data of a run: built where it is not there yet, opened, and its captions encoded once.

    Raises:
        UserError: there is no such set, or it is damaged, or an encoded set does not suit the run.
    """
    data = _opened(run.data, data_dir)
    if isinstance(data, LatentData):
        check_fits(run, data)
    return data


@functools.lru_cache(maxsize=2)
def _opened(config: DataConfig, data_dir: Path) -> TrainingData:
    found = pipeline.open_encoded(config.name, data_dir)
    if found is not None:
        encoders = [name for name in config.text_encoders if name in found.text]  # what it lacks is told of later
        validation = found.split("validation", encoders)
        held_out = held_out_latents(validation, found.latents, config.validation_examples)
        return LatentData(found, found.split("train", encoders), validation, held_out)
    pipeline.prepare(config.name, data_dir, resolution=config.resolution, examples=config.examples)
    data = pipeline.load(config.name, data_dir, resolution=config.resolution, examples=config.examples)
    train, split = data.split("train"), data.split("validation")
    items = [split[i] for i in range(min(config.validation_examples, len(split)))]
    captions = tuple(item["caption"] for item in items)
    images = HeldOutImages(np.stack([item["image"] for item in items]), encode(captions, config.text_encoders))
    return ImageData(train, encode(tuple(train.captions), config.text_encoders), (images,), captions)


def encode(captions: tuple[str, ...], encoders: tuple[str, ...]) -> dict[str, TextStates]:
    """The states of ``captions`` under each named encoder."""
    return {name: encode_all(text_encoder(name), captions) for name in encoders}


def check_fits(run: Run, data: LatentData) -> None:
    """Refuse an encoded set that the run's model was not made for.

    Raises:
        UserError: another latent size or number of channels, an encoder that the set lacks or has in another shape, or
            a bucket that does not divide into patches or is larger than the position table, or fewer held-out examples
            than the evaluation's settings draw.
    """
    source, config = data.source, run.data
    name, space = config.name, source.latents
    if config.resolution != source.latent_size:
        raise UserError(
            f"data.resolution={config.resolution}: {name} has latents of {source.latent_size} ({source.size} px, "
            f"{space.factor} a latent pixel); set data.resolution={source.latent_size}"
        )
    if run.model.in_channels != space.channels:
        raise UserError(f"model.in_channels={run.model.in_channels}: expected {space.channels}, as latents of {name}")
    for encoder, shape in text_shapes(config.text_encoders, config.text_shapes).items():
        if encoder not in source.text:
            raise UserError(f"text_encoders={encoder!r}: {name} has the states of {', '.join(source.text)}")
        there = source.text[encoder].shape
        if shape != there:
            all_there = tuple((key, *source.text[key].shape) for key in config.text_encoders if key in source.text)
            raise UserError(
                f"text_encoders={encoder!r}: {name} has states of length, width and pooled width {tuple(there)}, the "
                f"run expects {tuple(shape)}; set data.text_shapes={all_there!r}"
            )
    wanted = run.evaluation.settings_images if run.evaluation.settings else 0
    if wanted > len(data.validation):
        count = len(data.validation)
        raise UserError(f"evaluation.settings_images={wanted}: {name} holds out {count}; use that or fewer")
    for bucket in (*data.train.buckets, *data.validation.buckets):
        try:
            run.model.flops_per_image(*bucket, context_tokens(run))
        except UserError as error:
            told = f"bucket {bucket[0]}x{bucket[1]} does not suit the model: {error}"
            raise UserError(f"data.name={name!r}: {told}") from None


def flops_beside_square(run: Run, data: LatentData) -> float:
    """FLOPs of an epoch of the set's own shapes over those of as many square latents, which ``train_flops`` counts."""
    length = context_tokens(run)
    flops = [run.model.flops_per_image(*bucket, length) for bucket in data.train.buckets]
    mean = sum(x * n for x, n in zip(flops, data.train.sizes, strict=True)) / len(data.train)
    return mean / run.model.flops_per_image(run.data.resolution, run.data.resolution, length)


def global_batches(run: Run, data: TrainingData, start_step: int, mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Batches for the training step over ``mesh``, from ``start_step`` on.

    The examples of a step, and their bucket where there are several, are a pure function of (seed, step).
    """
    if jax.process_count() == 1:  # the compiled step shards numpy arrays itself, in a twentieth of the time
        yield from data.batches(run.batch, run.seed, start_step)
        return
    for own in data.batches(run.batch, run.seed, start_step, own_rows(mesh, run.batch)):
        yield shard_batch(own, mesh)
