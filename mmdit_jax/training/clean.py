"""What a model learns from, x0: images scaled to [-1, 1], or latents drawn from their posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

if TYPE_CHECKING:  # the step needs none of what reads encoded sets
    from mmdit_jax.data.encoded import Examples, LatentSpace

Inputs = Mapping[str, Any]
"""Either "image", uint8 [N, H, W, C], or "latents": "mean" and "logvar", [N, h, w, C] in any float, of a posterior
before shift and scale, and "shift" and "scale", float32 [N]. Examples lie along the first axis of every array, so that
it can be sharded or stacked whatever it holds."""


def latents_of(examples: Examples, space: LatentSpace) -> dict[str, np.ndarray]:
    """The value of "latents" for examples of an encoded set."""
    count = len(examples.mean)
    return {
        "mean": examples.mean,
        "logvar": examples.logvar,
        "shift": np.full(count, space.shift, np.float32),
        "scale": np.full(count, space.scale, np.float32),
    }


def clean(inputs: Inputs, draw: Callable[[tuple[int, ...]], jax.Array]) -> jax.Array:
    """x0, float32 [N, H, W, C]; pure, fine inside jit.

    Latents are (z − shift)·scale with z = mean + exp(logvar / 2)·noise, the posterior's reparametrisation.

    Args:
        inputs: a batch, or part of one; anything else in it is left alone.
        draw: standard normal noise float32 of the shape it is given; called for latents only.
    """
    if "image" in inputs:
        image: jax.Array = jnp.asarray(inputs["image"]).astype(jnp.float32)
        return image / 127.5 - 1.0
    latents = inputs["latents"]
    mean, logvar = (jnp.asarray(latents[name]).astype(jnp.float32) for name in ("mean", "logvar"))
    z = mean + jnp.exp(0.5 * logvar) * draw(mean.shape)
    return (z - _per_example(latents["shift"])) * _per_example(latents["scale"])


def _per_example(array: ArrayLike) -> jax.Array:
    return jnp.asarray(array, jnp.float32)[:, None, None, None]


def sides(inputs: Inputs) -> tuple[int, int]:
    """Height and width of the images or latents; any axes may stand before the examples."""
    height, width, _ = np.shape(inputs["image"] if "image" in inputs else inputs["latents"]["mean"])[-3:]
    return height, width
