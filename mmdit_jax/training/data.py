"""What the loop feeds on: images, record by record, and the frozen encoders' states of every caption."""

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
from mmdit_jax.config import DataConfig, Run
from mmdit_jax.models.text import TextStates, encode_all, text_encoder
from mmdit_jax.training.sharding import shard_batch


@dataclass(frozen=True)
class TrainingData:
    """A data set ready for training: both splits, and text states aligned with the record indices."""

    train: Any
    """Random-access source of {"image": uint8 [R, R, 3], "caption": str}."""
    train_text: Mapping[str, TextStates]
    validation_images: np.ndarray
    """uint8 [N, R, R, 3]."""
    validation_captions: tuple[str, ...]
    validation_text: Mapping[str, TextStates]


def encode(captions: tuple[str, ...], encoders: tuple[str, ...]) -> dict[str, TextStates]:
    """The states of ``captions`` under each named encoder."""
    return {name: encode_all(text_encoder(name), captions) for name in encoders}


@functools.lru_cache(maxsize=2)
def training_data(config: DataConfig, data_dir: Path) -> TrainingData:
    """Build the data set where it is not there yet, open it, and encode its captions once."""
    pipeline.prepare(config.name, data_dir, resolution=config.resolution, examples=config.examples)
    data = pipeline.load(config.name, data_dir, resolution=config.resolution, examples=config.examples)
    train, validation = data.split("train"), data.split("validation")
    held_out = [validation[i] for i in range(min(config.validation_examples, len(validation)))]
    captions = tuple(item["caption"] for item in held_out)
    return TrainingData(
        train=train,
        train_text=encode(tuple(train.captions), config.text_encoders),
        validation_images=np.stack([item["image"] for item in held_out]),
        validation_captions=captions,
        validation_text=encode(captions, config.text_encoders),
    )


def global_batches(run: Run, data: TrainingData, start_step: int, mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Batches for the training step over ``mesh``, from ``start_step`` on.

    The examples of a step are a pure function of (seed, step).
    """
    stream = pipeline.batches(
        data.train,
        batch=run.batch,
        seed=run.seed,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in stream:
        index = batch["index"]
        text = {name: (states.tokens[index], states.pooled[index]) for name, states in data.train_text.items()}
        local = {"image": batch["image"], "text": text}
        # Of one process, the compiled step shards numpy arrays itself, in a twentieth of the time.
        yield local if jax.process_count() == 1 else shard_batch(local, mesh)
