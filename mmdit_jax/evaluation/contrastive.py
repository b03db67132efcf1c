"""A small CLIP-like model: an image tower and a text tower that meet in one embedding (Radford et al. 2021)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mmdit_jax.models.text.tower import Block, TextTower

RESOLUTION = 32
"""Pixels a side that the image tower reads."""


class ImageTower(nnx.Module):
    """Overlapping patches of 8×8 pixels every 4, merged two by two to a 4×4 grid; three transformer blocks; an average.

    A grid of 16 keeps a step cheap on two cores, where attention over 64 would cost most of it.
    """

    width = 96

    def __init__(self, *, rngs: nnx.Rngs):
        self.patch = nnx.Linear(8 * 8 * 3, 64, rngs=rngs)
        self.place = nnx.Param(0.1 * jax.random.normal(rngs.params(), (64, 64)))
        self.merge = nnx.Linear(4 * 64, self.width, rngs=rngs)
        self.position = nnx.Param(0.1 * jax.random.normal(rngs.params(), (16, self.width)))
        self.blocks = nnx.List([Block(self.width, 4, rngs=rngs) for _ in range(3)])
        self.norm = nnx.LayerNorm(self.width, rngs=rngs)
        self.project = nnx.Linear(self.width, TextTower.embedding, use_bias=False, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images float [N, 32, 32, 3] in [-1, 1] to embeddings [N, 64], not normalised."""
        blocks = _merge(jnp.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge"), 4)
        corners = [blocks[:, y : y + 8, x : x + 8] for y in (0, 1) for x in (0, 1)]
        patches = jnp.concatenate(corners, axis=-1).reshape(-1, 64, 192)
        x = jax.nn.relu(self.patch(patches) + self.place[...]).reshape(-1, 8, 8, 64)
        x = self.merge(_merge(x, 2).reshape(-1, 16, 256)) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm(x).mean(axis=1))


def _merge(x: jax.Array, size: int) -> jax.Array:
    """[N, H, W, C] to [N, H/size, W/size, size²·C]."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // size, w // size, size * size * c)


class Contrastive(nnx.Module):
    """Both towers and the temperature of their similarities."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.image = ImageTower(rngs=rngs)
        self.text = TextTower(rngs=rngs)
        self.log_scale = nnx.Param(jnp.log(jnp.array(10.0)))

    def embed_images(self, images: jax.Array) -> jax.Array:
        """Unit embeddings [N, 64] of images float [N, 32, 32, 3] in [-1, 1]."""
        return unit(self.image(images))

    def embed_texts(self, ids: jax.Array, vectors: jax.Array) -> jax.Array:
        """Unit embeddings [N, 64] of captions as ``text_inputs`` gives them."""
        return unit(self.text(ids, vectors)[1])

    def scale(self) -> jax.Array:
        """What similarities are multiplied with in the loss; at most 100, as in CLIP."""
        return jnp.exp(jnp.minimum(self.log_scale[...], jnp.log(100.0)))


def unit(x: jax.Array) -> jax.Array:
    """Rows scaled to length 1; a zero row stays zero."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


@functools.partial(jax.jit, static_argnums=0)
def _initial(seed: int) -> nnx.State:
    return nnx.state(Contrastive(rngs=nnx.Rngs(seed)))


def abstract() -> Contrastive:
    """The model's structure, with shapes in place of weights."""
    return nnx.eval_shape(lambda: Contrastive(rngs=nnx.Rngs(0)))


def blank(seed: int = 0) -> Contrastive:
    """A model with random weights."""
    model = abstract()
    nnx.update(model, _initial(seed))
    return model


def contrastive_loss(
    similarities: jax.Array, same: jax.Array, wrong_texts: jax.Array, wrong_images: jax.Array
) -> jax.Array:
    """Mean cross entropy of matching images to captions and captions to images, hard negatives included.

    Args:
        similarities: [N, N], image i against caption j, times the scale; the diagonal matches.
        same: bool [N, N], pairs off the diagonal whose captions are equal: neither right nor wrong.
        wrong_texts: [M, K], the first M images against near-miss captions of their own, times the scale.
        wrong_images: [N], caption i against a damaged copy of image i, times the scale; -inf where there is none.
    """
    masked = jnp.where(same, -jnp.inf, similarities)
    right = jnp.diagonal(similarities)
    per_image = jax.nn.logsumexp(masked, axis=1) - right
    per_text = jax.nn.logsumexp(jnp.concatenate([masked.T, wrong_images[:, None]], axis=1), axis=1) - right
    # The near misses on their own: among a hundred easy captions they would hardly count.
    own = right[: len(wrong_texts)]
    near = jax.nn.logsumexp(jnp.concatenate([own[:, None], wrong_texts], axis=1), axis=1) - own
    return jnp.mean(per_image + per_text) / 2 + jnp.mean(near)
