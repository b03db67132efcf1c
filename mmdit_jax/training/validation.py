"""Validation loss: velocity error on held-out examples at fixed noise levels, the number that scaling curves plot."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from mmdit_jax.diffusion import Formulation
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, apply
from mmdit_jax.models.text import assemble
from mmdit_jax.sharding import batch_parts, batch_sharding, placed_on, replicated
from mmdit_jax.training.clean import Inputs, clean
from mmdit_jax.training.held_out import HeldOut, Text

CHUNK = 32
"""Examples a forward pass takes, each at every level; the same for every run, so that batch size can't move it."""
NOISE_SEED = 403_03206
"""Key of the validation noise, which no run's seed changes."""

POSTERIOR_SEED = 403_03207
"""Key of the noise that held-out latents are sampled with."""


def validation_loss(
    model_config: MMDiTConfig,
    params: Any,
    f: Formulation,
    held_out: Sequence[HeldOut],
    *,
    levels: int = 8,
    mesh: Mesh | None = None,
    layout: str = "channels",
) -> np.ndarray:
    """Mean squared velocity error at ``levels`` noise levels equidistant in t: (i + 1/2) / levels (section 5.3).

    The error is that of ε − x0, the velocity of the straight path, at the log-SNR which `rf` has at that t. For `rf`
    and its densities that is their own path and time; for the others it makes the losses comparable. Density and weight
    of the formulation do not enter. The noise of an example depends on its ``index`` and the level alone, and the
    sample drawn of a latent on its ``index``. The mean is over examples: a bucket counts by how many it has.

    A level that the path does not reach is measured at the path's end, whose error is another: of the paper's 61,
    levels 13/16 and 15/16 of edm(-1.20,0.60) at 0.796, 15/16 of edm(-0.60,0.60) at 0.876 and of edm(0.00,0.60) at
    0.928. The mean of these three is not comparable with others'. LDM-linear's 15/16 is measured at 0.936.

    Args:
        model_config: shape of the network.
        params: its parameters, usually the moving average.
        f: the formulation it was trained under.
        held_out: examples, by shape; no text is dropped.
        levels: number of noise levels.
        layout: how the encoders' states lie in the context (``models.text.assemble``).
        mesh: devices to spread the work over; None for where ``params`` are. Changes the result by rounding only.

    Returns:
        float64 [levels], from the least noisy level to the noisiest.

    Raises:
        UserError: no examples.
    """
    if not sum(len(part.index) for part in held_out):
        raise UserError("held_out=0: expected 1 or more examples to validate on")
    devices = 1 if mesh is None else batch_parts(mesh)
    whole = devices // math.gcd(devices, levels)  # the rows, chunk x levels, are to divide among the devices
    errors = _compiled(model_config, levels, mesh, layout)
    found = []
    for part in held_out:
        count = len(part.index)
        chunk = math.ceil(min(CHUNK, count) / whole) * whole
        for start in range(0, count, chunk):
            rows = np.minimum(np.arange(start, start + chunk), count - 1)  # the last chunk repeats its last example
            given, text = part.take(rows)
            inputs = (given, {name: tuple(states) for name, states in text.items()}, part.index[rows].astype(np.int32))
            done = errors(params, f, *(inputs if mesh is None else jax.device_put(inputs, replicated(mesh))))
            found.append(np.asarray(done)[: count - start])
    return np.concatenate(found).mean(axis=0, dtype=np.float64)


@functools.lru_cache(maxsize=16)
def _compiled(config: MMDiTConfig, levels: int, mesh: Mesh | None, layout: str) -> Callable[..., Array]:
    """Squared velocity error [chunk, levels] of a chunk of examples, jitted; every formulation of a path shares it."""

    def errors(params: Any, f: Formulation, inputs: Inputs, text: Text, index: Array) -> Array:
        once = clean(inputs, lambda shape: posterior_noise(index, shape[1:]))
        x0 = _per_level(once, levels)
        level = jnp.tile((jnp.arange(levels, dtype=jnp.float32) + 0.5) / levels, len(once))
        eps = validation_noise(index, levels, once.shape[1:]).reshape(x0.shape)
        context, pooled = (_per_level(array, levels) for array in assemble(text, layout=layout))
        if mesh is not None:
            rows = batch_sharding(mesh)
            x0, level, eps, context, pooled = jax.lax.with_sharding_constraint((x0, level, eps, context, pooled), rows)
        t = f.time_at(level)
        z = f.mix(x0, eps, t)
        with placed_on(mesh):
            output = apply(config, params, f.network_input(z, t), t, context, pooled).astype(jnp.float32)
        error = f.straight_velocity(output, z, t) - (eps - x0)
        return jnp.mean(error**2, axis=(1, 2, 3)).reshape(len(once), levels)

    return jax.jit(errors, out_shardings=None if mesh is None else replicated(mesh))


def posterior_noise(index: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Noise float32 [len(index), *shape] that held-out latents are sampled with: a function of the index alone."""

    def draw(i: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.key(POSTERIOR_SEED), i), shape, jnp.float32)

    return jax.vmap(draw)(jnp.asarray(index))


def validation_noise(index: ArrayLike, levels: int, shape: tuple[int, ...]) -> Array:
    """Noise float32 [len(index), levels, *shape]; that of an image at a level is a function of the two alone."""

    def draw(i: Array, level: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(NOISE_SEED), i), level)
        return jax.random.normal(key, shape, jnp.float32)

    by_level = jax.vmap(draw, in_axes=(None, 0))
    return jax.vmap(by_level, in_axes=(0, None))(jnp.asarray(index), jnp.arange(levels))


def _per_level(array: Array, levels: int) -> Array:
    """[chunk, ...] -> [chunk * levels, ...], every example ``levels`` times in a row."""
    return jnp.repeat(array, levels, axis=0)
