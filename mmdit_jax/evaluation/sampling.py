"""Images from trained weights: fixed noise by (seed, index), guidance, encoders that can be left out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from mmdit_jax.diffusion import Formulation, guided, sample, timesteps
from mmdit_jax.errors import UserError, unknown
from mmdit_jax.models import MMDiTConfig, apply
from mmdit_jax.models.text import assemble

STEPS_BOUND = 64
"""Every number of steps up to this runs the same compiled loop; beyond, up to the next power of two does."""

Text = Mapping[str, tuple[ArrayLike, ArrayLike]]


def sample_images(
    model_config: MMDiTConfig,
    params: Any,
    f: Formulation,
    text: Text,
    *,
    seed: int,
    indices: Sequence[int] | np.ndarray,
    resolution: int,
    channels: int = 3,
    steps: int = 25,
    guidance: float = 4.0,
    shift: float = 1.0,
    drop: Sequence[str] = (),
    chunk: int = 64,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """One image a caption, by Euler steps from noise with classifier-free guidance.

    Compiles once per model, image shape, chunk and whether there is guidance; steps, guidance, shift, seed, dropped
    encoders and the numbers of the formulation change nothing compiled.

    Args:
        model_config: shape of the network.
        params: its parameters, usually the moving average.
        f: the formulation it was trained under.
        text: by encoder, tokens [N, L, width] and pooled [N, pooled_width].
        seed: of the noise.
        indices: N integers in [0, 2³¹). The noise of image i is a function of (seed, indices[i]) and of nothing else.
        resolution: height and width.
        channels: channels of an image.
        steps: Euler steps, 1 or more.
        guidance: 1 is none, at half the work; the unconditional side sees zeros for every encoder, as in training.
        shift: resolution shift of the timesteps.
        drop: encoders whose states are replaced by zeros.
        chunk: images made at a time.
        mesh: devices to spread the chunks over; None for where ``params`` are.

    Returns:
        uint8 [N, resolution, resolution, channels].

    Raises:
        UserError: steps, chunk, shift or guidance out of range, an encoder to drop that ``text`` lacks, or text of
            another number of examples than ``indices``.
    """
    index = np.asarray(indices, np.int32)
    if chunk < 1:
        raise UserError(f"chunk={chunk}: expected 1 or more")
    if not math.isfinite(guidance):
        raise UserError(f"guidance={guidance}: expected a finite number (1 for none)")
    states = _without(text, drop)
    for name, arrays in states.items():
        if any(len(array) != len(index) for array in arrays):
            raise UserError(f"text[{name!r}]={len(arrays[0])} examples: expected {len(index)}, one an index")
    times = timesteps(steps, shift)
    bound = max(STEPS_BOUND, 1 << (steps - 1).bit_length())
    times = np.pad(times, (0, bound - steps))
    if len(index) == 0:
        return np.zeros((0, resolution, resolution, channels), np.uint8)

    devices = 1 if mesh is None else mesh.size
    chunk = math.ceil(min(chunk, len(index)) / devices) * devices
    run = _compiled(model_config, (resolution, resolution, channels), guidance != 1, mesh)
    parts = []
    for start in range(0, len(index), chunk):
        rows = np.minimum(np.arange(start, start + chunk), len(index) - 1)  # the last chunk repeats its last image
        inputs = (index[rows], jax.tree.map(lambda array, rows=rows: array[rows], states))
        if mesh is not None:
            inputs = jax.tree.map(functools.partial(_spread, mesh=mesh), inputs)
        parts.append(run(params, f, *inputs, np.uint32(seed), times, np.int32(steps), np.float32(guidance)))
    return np.concatenate([np.asarray(part) for part in parts])[: len(index)]


def initial_noise(seed: ArrayLike, indices: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Standard normal float32 [N, *shape]; row i is a function of (seed, indices[i])."""
    key = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32))(indices)


@functools.lru_cache(maxsize=16)
def _compiled(
    config: MMDiTConfig, shape: tuple[int, ...], with_guidance: bool, mesh: Mesh | None
) -> Callable[..., Array]:
    """The jitted loop: noise to uint8 images, conditional and unconditional side in one batch."""

    def run(
        params: Any, f: Formulation, index: Array, text: Text, seed: Array, times: Array, steps: Array, guidance: Array
    ) -> Array:
        context, pooled = assemble(text)
        if with_guidance:
            context, pooled = _beside_zeros(context), _beside_zeros(pooled)

        def network(z: Array, t: Array) -> Array:
            if not with_guidance:
                return apply(config, params, z, t, context, pooled)
            both = apply(config, params, jnp.repeat(z, 2, axis=0), jnp.repeat(t, 2), context, pooled)
            # on raw outputs, which every velocity is affine in: the same as on velocities
            return guided(both[0::2], both[1::2], guidance)

        x = sample(f, network, initial_noise(seed, index, shape), times, steps)
        return jnp.clip(jnp.round((x + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)

    return jax.jit(run, out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def _beside_zeros(array: Array) -> Array:
    """[N, ...] -> [2N, ...]: every row followed by a row of zeros, so that a pair stays on one device."""
    return jnp.stack([array, jnp.zeros_like(array)], axis=1).reshape(-1, *array.shape[1:])


def _without(text: Text, drop: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The states as numpy arrays, those of dropped encoders as zeros."""
    for name in drop:
        if name not in text:
            unknown("drop", name, text)
    arrays = {name: (np.asarray(tokens), np.asarray(pooled)) for name, (tokens, pooled) in text.items()}
    return {
        name: (np.zeros_like(tokens), np.zeros_like(pooled)) if name in drop else (tokens, pooled)
        for name, (tokens, pooled) in arrays.items()
    }


def _spread(array: np.ndarray, mesh: Mesh) -> Array:
    """The whole array, known to every process, as a global one with its rows over all devices of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback(array.shape, sharding, lambda piece: array[piece])
