"""The text tower of a small contrastive model, and the `tower` encoder made of it: the part of SD3's CLIPs.

The judge's text tower is the same class with other weights, trained from another seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmdit_jax.models.text import weights
from mmdit_jax.models.text.interface import TextStates
from mmdit_jax.models.text.tokens import LENGTH, token_ids, word_vectors

WEIGHTS = Path(__file__).parent / "tower.npz"
TRAINER = "python -m mmdit_jax.evaluation.train_judge --model encoder"
_VERSION = "tower-1"
_CHUNK = 256


class Block(nnx.Module):
    """A pre-norm transformer block on [N, T, width], with a mask of the keys that are there [N, T]."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, there: jax.Array | None = None) -> jax.Array:
        rows, tokens, width = x.shape
        # Tokens are flattened and attention is two einsums over [rows·heads]: on a CPU, faster than the general form.
        flat = x.reshape(-1, width)
        qkv = self.qkv(self.norm1(flat)).reshape(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4).reshape(3, rows * self.heads, tokens, width // self.heads)
        scores = jnp.einsum("ntd,nsd->nts", q, k) * (width // self.heads) ** -0.5
        if there is not None:
            scores = jnp.where(jnp.repeat(there, self.heads, axis=0)[:, None, :], scores, -1e30)
        seen = jnp.einsum("nts,nsd->ntd", jax.nn.softmax(scores, axis=-1), v)
        seen = seen.reshape(rows, self.heads, tokens, -1).transpose(0, 2, 1, 3).reshape(-1, width)
        flat = flat + self.out(seen)
        return (flat + self.down(jax.nn.relu(self.up(self.norm2(flat))))).reshape(x.shape)


class TextTower(nnx.Module):
    """Hashed words to token states and one embedding.

    A word enters as a learned row of a hashed table plus a projection of its frozen letter-trigram vector, so that
    words never met in training still mean something.
    """

    buckets = 4096
    width = 64
    embedding = 64
    vector_width = 64

    def __init__(self, *, rngs: nnx.Rngs):
        self.table = nnx.Embed(self.buckets, self.width, embedding_init=nnx.initializers.normal(0.5), rngs=rngs)
        self.spelling = nnx.Linear(self.vector_width, self.width, use_bias=False, rngs=rngs)
        self.position = nnx.Param(0.1 * jax.random.normal(rngs.params(), (LENGTH, self.width)))
        self.blocks = nnx.List([Block(self.width, 4, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(self.width, rngs=rngs)
        self.project = nnx.Linear(self.width, self.embedding, use_bias=False, rngs=rngs)

    def __call__(self, ids: jax.Array, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Token states before the last block (as SD3 takes CLIP's penultimate layer), and the embedding.

        Args:
            ids: int32 [N, 16] hashed words, 0 where there is none.
            vectors: float [N, 16, 64] frozen word vectors.

        Returns:
            states [N, 16, 64] without final norm; embedding [N, 64], a mean over words, not normalised.
        """
        there = ids > 0
        x = self.table(ids) + self.spelling(vectors.astype(jnp.float32)) + self.position[...]
        x = jnp.where(there[..., None], x, 0.0)
        # A caption without words would leave attention nothing to attend to.
        attended = there.at[:, 0].set(True)
        for block in list(self.blocks)[:-1]:
            x = block(x, attended)
        states = x
        x = self.norm(self.blocks[-1](x, attended)) * there[..., None]
        pooled = jnp.sum(x, axis=1) / jnp.maximum(jnp.sum(there, axis=1, keepdims=True), 1)
        return states, self.project(pooled)


def text_inputs(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What ``TextTower`` takes for captions: ids int32 [N, 16], vectors float32 [N, 16, 64]."""
    return token_ids(captions, TextTower.buckets), word_vectors(captions, TextTower.vector_width)


class TowerEncoder:
    """The frozen contrastive text tower as a conditioning encoder: token states and a pooled state, unit RMS."""

    name = "tower"
    length = LENGTH
    width = TextTower.width
    pooled_width = TextTower.embedding

    def __init__(self, tower: TextTower, fingerprint: str):
        self.fingerprint = fingerprint
        graph, state = nnx.split(tower)

        @jax.jit
        def states(ids: jax.Array, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
            tokens, pooled = nnx.merge(graph, state)(ids, vectors)
            return jnp.where((ids > 0)[..., None], _unit_rms(tokens), 0.0), _unit_rms(pooled)

        self._states = states

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> TowerEncoder:
        """The encoder with the weights at ``path``, those of the package by default.

        Raises:
            UserError: the file is missing or damaged.
        """
        tower = nnx.eval_shape(lambda: TextTower(rngs=nnx.Rngs(0)))
        return cls(tower, weights.fingerprint(_VERSION, weights.load(path, tower, TRAINER)))

    def encode(self, captions: Sequence[str]) -> TextStates:
        """States of captions: tokens float16 [N, 16, 64], pooled float16 [N, 64]."""
        tokens = np.zeros((len(captions), self.length, self.width), np.float16)
        pooled = np.zeros((len(captions), self.pooled_width), np.float16)
        for start in range(0, len(captions), _CHUNK):
            part = list(captions[start : start + _CHUNK])
            stop = start + len(part)
            # Always the same shape: one compilation, and a row's bits don't depend on how many stand beside it.
            ids, vectors = text_inputs(part + [""] * (_CHUNK - len(part)))
            new_tokens, new_pooled = self._states(ids, vectors)
            tokens[start:stop] = np.asarray(new_tokens[: len(part)])
            pooled[start:stop] = np.asarray(new_pooled[: len(part)])
        return TextStates(tokens, pooled)


def _unit_rms(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
