"""What a run is validated on: images in memory, or latents of several buckets read as they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np
from jax.typing import ArrayLike

from mmdit_jax.data.encoded import EncodedSplit, LatentSpace
from mmdit_jax.data.schedule import spread
from mmdit_jax.errors import UserError
from mmdit_jax.training.clean import Inputs, latents_of

Text = Mapping[str, tuple[ArrayLike, ArrayLike]]


class HeldOut(Protocol):
    """Held-out examples of one shape."""

    @property
    def index(self) -> np.ndarray:
        """Of each its place among all that are validated on, whatever their shape, int64 [N]; its noise follows."""

    def take(self, rows: np.ndarray) -> tuple[Inputs, Text]:
        """What they show and their text, at rows in 0 … N − 1, of which some may come twice."""


@dataclass(frozen=True)
class HeldOutImages:
    """All held-out examples of an image set."""

    images: np.ndarray
    """uint8 [N, R, R, 3]."""
    text: Text
    """By encoder, tokens [N, L, width] and pooled [N, pooled_width]."""

    def __post_init__(self) -> None:
        for name, states in self.text.items():
            counts = [len(np.asarray(array)) for array in states]
            if any(count != len(self.images) for count in counts):
                raise UserError(f"text[{name!r}]={counts[0]} examples: expected {len(self.images)}, one an image")

    @property
    def index(self) -> np.ndarray:
        return np.arange(len(self.images))

    def take(self, rows: np.ndarray) -> tuple[Inputs, Text]:
        text = {name: (np.asarray(tokens), np.asarray(pooled)) for name, (tokens, pooled) in self.text.items()}
        return {"image": self.images[rows]}, jax.tree.map(lambda array: array[rows], text)


@dataclass(frozen=True)
class HeldOutLatents:
    """Those of one bucket of an encoded set."""

    split: EncodedSplit
    space: LatentSpace
    bucket: int
    rows: np.ndarray
    """In the bucket, int64 [N]."""
    index: np.ndarray

    def take(self, rows: np.ndarray) -> tuple[Inputs, Text]:
        found = self.split.take(self.bucket, self.rows[rows])
        return {"latents": latents_of(found, self.space)}, found.text


def held_out_latents(split: EncodedSplit, space: LatentSpace, count: int) -> tuple[HeldOutLatents, ...]:
    """``count`` examples of a split, or all where it has fewer: of each bucket its share, in ascending order."""
    places = np.array(spread(split.sizes, count), np.int64).reshape(-1, 2)
    chosen = [np.flatnonzero(places[:, 0] == bucket) for bucket in range(len(split.sizes))]
    return tuple(
        HeldOutLatents(split, space, bucket, places[index, 1], index)
        for bucket, index in enumerate(chosen)
        if len(index)
    )
