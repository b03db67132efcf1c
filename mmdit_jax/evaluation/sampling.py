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

from mmdit_jax.diffusion import Formulation, Plan, SamplerConfig, plan, sample
from mmdit_jax.errors import UserError, unknown
from mmdit_jax.models import MMDiTConfig, apply
from mmdit_jax.models.products import check_products
from mmdit_jax.models.text import assemble
from mmdit_jax.pauses import pause

EVALUATIONS_BOUND = 128
"""Every sampler of so many evaluations or fewer runs the same compiled loop; beyond, up to the next power of two."""

Text = Mapping[str, tuple[ArrayLike, ArrayLike]]


def sample_images(
    model_config: MMDiTConfig,
    params: Any,
    f: Formulation,
    text: Text,
    sampler: SamplerConfig,
    *,
    seed: int,
    indices: Sequence[int] | np.ndarray,
    resolution: int,
    channels: int = 3,
    drop: Sequence[str] = (),
    chunk: int = 64,
    mesh: Mesh | None = None,
    layout: str = "channels",
    sides: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One image a caption, from noise.

    Compiles once per model, image shape, chunk and whether there is guidance; method, steps, guidance, shift, seed,
    dropped encoders and the formulation change nothing compiled.

    Args:
        model_config: shape of the network.
        params: its parameters, usually the moving average.
        f: the formulation it was trained under.
        text: by encoder, tokens [N, L, width] and pooled [N, pooled_width].
        sampler: method, steps, guidance. The unconditional side of guidance sees zeros for every encoder, as in
            training.
        seed: of the noise.
        indices: N integers in [0, 2³¹). The noise of image i is a function of (seed, indices[i]) and of nothing else.
        resolution: height and width.
        channels: channels of an image.
        drop: encoders whose states are replaced by zeros.
        chunk: images made at a time.
        mesh: devices to spread the chunks over; None for where ``params`` are.
        layout: how the encoders' states lie in the context (``models.text.assemble``).
        sides: height and width of latents, for a model of latents; ``resolution`` is then not looked at.

    Returns:
        Images uint8 [N, resolution, resolution, channels], or with ``sides`` latents float32 [N, *sides, channels] in
        the model's space; and the length of each one's path, float32 [N] (``diffusion.sample``).

    Raises:
        UserError: chunk out of range, an encoder to drop that ``text`` lacks, or text of another number of examples
            than ``indices``.
    """
    index = np.asarray(indices, np.int32)
    shape = (*(sides or (resolution, resolution)), channels)
    if chunk < 1:
        raise UserError(f"chunk={chunk}: expected 1 or more")
    states = _without(text, drop)
    for name, arrays in states.items():
        if any(len(array) != len(index) for array in arrays):
            raise UserError(f"text[{name!r}]={len(arrays[0])} examples: expected {len(index)}, one an index")
    if len(index) == 0:
        return np.zeros((0, *shape), np.float32 if sides else np.uint8), np.zeros(0, np.float32)
    bound = max(EVALUATIONS_BOUND, 1 << (sampler.evaluations - 1).bit_length())
    table = plan(f, sampler, bound)

    devices = 1 if mesh is None else mesh.size
    chunk = math.ceil(min(chunk, len(index)) / devices) * devices
    run = _compiled(model_config, shape, sampler.guidance != 1, mesh, layout, sides is None)
    parts = []
    for start in range(0, len(index), chunk):
        pause()
        rows = np.minimum(np.arange(start, start + chunk), len(index) - 1)  # the last chunk repeats its last image
        inputs = (index[rows], jax.tree.map(lambda array, rows=rows: array[rows], states))
        if mesh is not None:
            inputs = jax.tree.map(functools.partial(_spread, mesh=mesh), inputs)
        # Each is waited for: else they would all be in the device's queue when SIGTERM comes.
        parts.append(jax.block_until_ready(run(params, table, *inputs, np.uint32(seed))))
    images, lengths = (np.concatenate([np.asarray(part) for part in column]) for column in zip(*parts, strict=True))
    return images[: len(index)], lengths[: len(index)]


def initial_noise(seed: ArrayLike, indices: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Standard normal float32 [N, *shape]; row i is a function of (seed, indices[i])."""
    key = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32))(indices)


@functools.lru_cache(maxsize=16)
def _compiled(
    config: MMDiTConfig, shape: tuple[int, ...], with_guidance: bool, mesh: Mesh | None, layout: str, pixels: bool
) -> Callable[..., tuple[Array, Array]]:
    """The jitted loop: noise to x0, uint8 if these are ``pixels``; conditional and unconditional side in one batch."""
    check_products(config)

    def run(params: Any, table: Plan, index: Array, text: Text, seed: Array) -> tuple[Array, Array]:
        context, pooled = assemble(text, layout=layout)
        if with_guidance:
            context, pooled = _beside_zeros(context), _beside_zeros(pooled)

        def network(z: Array, t: Array) -> Array | tuple[Array, Array]:
            if not with_guidance:
                return apply(config, params, z, t, context, pooled)
            both = apply(config, params, jnp.repeat(z, 2, axis=0), jnp.repeat(t, 2), context, pooled)
            return both[0::2], both[1::2]

        x0, length = sample(table, network, initial_noise(seed, index, shape))
        if not pixels:
            return x0, length
        return jnp.clip(jnp.round((x0 + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8), length

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
