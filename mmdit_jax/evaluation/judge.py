"""The judge: how well an image fits a caption, by a small contrastive model whose weights ship with the package."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from mmdit_jax.data.emoji import assets
from mmdit_jax.data.scenes.vocabulary import BACKGROUNDS, COLOURS, NUMBERS, RELATIONS, SHAPES, phrase
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation import contrastive
from mmdit_jax.models.text import weights
from mmdit_jax.models.text.tokens import words
from mmdit_jax.models.text.tower import text_inputs

WEIGHTS = Path(__file__).parent / "judge.npz"
TRAINER = "python -m mmdit_jax.evaluation.train_judge"
_VERSION = "judge-1"
_CHUNK = 128


class Judge:
    """Similarity of images and captions; higher fits better. It knows `scenes` and `emoji`, at 32 px.

    ``tie`` is the median difference in similarity of two held-out scenes that the same caption describes: a smaller
    difference says nothing.

    It sees colours, numbers, backgrounds and most shapes, but not which object has which colour or which stands left
    of the other (near misses of these kinds: at chance). Those are the analytic scorer's to judge.
    """

    name = "contrastive"

    def __init__(self, model: contrastive.Contrastive, fingerprint: str, tie: float = 0.0):
        self.fingerprint = fingerprint
        self.tie = tie
        graph, state = nnx.split(model)

        @jax.jit
        def embed_images(images: jax.Array) -> jax.Array:
            return nnx.merge(graph, state).embed_images(images.astype(np.float32) / 127.5 - 1)

        @jax.jit
        def embed_texts(ids: jax.Array, vectors: jax.Array) -> jax.Array:
            return nnx.merge(graph, state).embed_texts(ids, vectors)

        self._images, self._texts = embed_images, embed_texts

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Judge:
        """The judge with the weights at ``path``, those of the package by default.

        Raises:
            UserError: the file is missing or damaged; the message names the script that makes it.
        """
        model = contrastive.abstract()
        arrays = weights.load(path, model, TRAINER, extra=("tie",))
        return cls(model, weights.fingerprint(_VERSION, arrays), float(arrays["tie"]))

    def similarity(self, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """Cosine similarity of image i and caption i: float32 [N], in [-1, 1].

        Args:
            images: uint8 [N, R, R, 3]; R a multiple of 32 (averaged down).
            captions: N captions.

        Raises:
            UserError: other shapes or numbers.
        """
        if len(images) != len(captions):
            raise UserError(f"captions={len(captions)}: expected one for each of {len(images)} images")
        return np.sum(self.embed_images(images) * self.embed_texts(captions), axis=1)

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Unit embeddings float32 [N, 64] of images uint8 [N, R, R, 3]."""
        size, at = contrastive.RESOLUTION, images.shape
        if len(at) != 4 or at[1] != at[2] or at[1] % size or at[3] != 3 or images.dtype != np.uint8:
            raise UserError(f"images={images.dtype}{list(at)}: expected uint8 [N, R, R, 3], R a multiple of {size}")
        if at[1] != size:
            blocks = images.reshape(at[0], size, at[1] // size, size, at[1] // size, 3)
            images = np.round(blocks.mean(axis=(2, 4))).astype(np.uint8)
        out = np.zeros((len(images), contrastive.TextTower.embedding), np.float32)
        for start in range(0, len(images), _CHUNK):
            part = images[start : start + _CHUNK]
            # Always one shape: one compilation, and bits that don't depend on how many are judged together.
            padded = np.zeros((_CHUNK, size, size, 3), np.uint8)
            padded[: len(part)] = part
            out[start : start + len(part)] = np.asarray(self._images(padded))[: len(part)]
        return out

    def embed_texts(self, captions: Sequence[str]) -> np.ndarray:
        """Unit embeddings float32 [N, 64] of captions."""
        distinct = sorted(set(captions))
        out = np.zeros((len(distinct), contrastive.TextTower.embedding), np.float32)
        for start in range(0, len(distinct), _CHUNK):
            part = distinct[start : start + _CHUNK]
            ids, vectors = text_inputs(part + [""] * (_CHUNK - len(part)))
            out[start : start + len(part)] = np.asarray(self._texts(ids, vectors))[: len(part)]
        row = {caption: i for i, caption in enumerate(distinct)}
        return out[[row[caption] for caption in captions]]


def knows(caption: str) -> bool:
    """Whether it is a caption of the sets that the judge was trained on: made of the words of `scenes`, or the label of
    an emoji, be it followed by tags.

    Words alone don't tell: labels and tags have thousands, and photographs are described by the same ones.
    """
    said, parts = words(caption), caption.split(", ")
    if said and _scene_words().issuperset(said):
        return True
    return any(", ".join(parts[: count + 1]).lower() in _emoji_labels() for count in range(len(parts)))


@functools.cache
def _scene_words() -> frozenset[str]:
    shapes = [phrase(shape, count) for shape in SHAPES for count in (1, 2)]
    told = [*shapes, *COLOURS, *BACKGROUNDS, *RELATIONS, *NUMBERS, "a", "an", "and", "on", "background"]
    return frozenset(word for text in told for word in words(text))


@functools.cache
def _emoji_labels() -> frozenset[str]:
    return frozenset(row.label.lower() for row in assets.load()[0])


@functools.cache
def packaged_judge() -> Judge:
    """``Judge.load()``, once a process: its programs are compiled once for all runs of a study."""
    return Judge.load()
