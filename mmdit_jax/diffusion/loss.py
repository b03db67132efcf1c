"""The training objective of every formulation."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mmdit_jax.diffusion.formulation import Formulation

Network = Callable[[Array, Array], Array]


def training_loss(f: Formulation, network: Network, x0: Array, key: Array) -> tuple[Array, Array]:
    """One draw of t and ε per example, and the weighted mean squared error of the network's output there.

    Its expectation over t and ε is the paper's L_w (equation 8) over the number of elements of an example.

    Args:
        f: the formulation.
        network: (z [B, ...] float32, t [B] float32 in (0, 1)) -> raw output [B, ...].
        x0: float32 [B, ...], data (images in [-1, 1] or normalised latents).
        key: a jax random key.

    Returns:
        (loss [B], t [B]), float32; the batch's loss is the mean of the first.
    """
    t, eps = draw(f, x0.shape, key)
    return loss_at(f, network, x0, t, eps), t


def draw(f: Formulation, shape: tuple[int, ...], key: Array) -> tuple[Array, Array]:
    """t [B] by the formulation's density, and ε of ``shape`` [B, ...], both float32."""
    key_t, key_eps = jax.random.split(key)
    return f.sample_t(key_t, shape[:1]), jax.random.normal(key_eps, shape, jnp.float32)


def loss_at(f: Formulation, network: Network, x0: Array, t: Array, eps: Array) -> Array:
    """``training_loss`` [B] of these t [B] and ε, shaped as ``x0``."""
    output = network(f.network_input(f.mix(x0, eps, t), t), t)
    error = output.astype(jnp.float32) - f.target(x0, eps, t)
    return f.weight(t) * jnp.mean(error**2, axis=tuple(range(1, x0.ndim)))
