"""Prompts to images by an SD3 checkpoint: text encoders, then the sampler on latents, then the autoencoder.

Of the large networks one is in memory at a time: states of the prompts are kept, on the host, their encoders are not.
Noise of an image is a function of (seed, its index).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmdit_jax.diffusion import Formulation, Plan, SamplerConfig, plan, sample
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.sampling import initial_noise
from mmdit_jax.models import MMDiTConfig, apply
from mmdit_jax.models.products import check_products
from mmdit_jax.models.sd3 import SD3
from mmdit_jax.models.text import TextEncoder, TextShape, TextStates, assemble, context_shape, text_encoder

CLIPS, T5 = ("clip_l", "clip_g"), "t5"
ENCODERS = (*CLIPS, T5)
MULTIPLE = 64
"""Of an image's sides, in pixels."""
_ROWS = 64  # that are assembled at a time


class Conditioning(NamedTuple):
    """What the model is told of N prompts: context [N, length, context_dim], pooled [N, pooled_dim], float32.

    On the host: SD3's context is 2.5 MB a prompt with 154 tokens, 5.5 MB with 333.
    """

    context: np.ndarray
    pooled: np.ndarray


def encode_prompts(load: Mapping[str, Callable[[], TextEncoder]], captions: Sequence[str]) -> dict[str, TextStates]:
    """States of captions by encoder; each is loaded, used, and let go before the next."""
    return {name: make().encode(captions) for name, make in load.items()}


def expected_shapes(config: MMDiTConfig, found: Mapping[str, TextShape], t5_length: int) -> dict[str, TextShape]:
    """The shapes of all three encoders' states that a model of this config was trained with.

    Those that are there say theirs. A CLIP that is not has as many channels as the others leave of the pooled vector,
    token by token as pooled; T5 has those of the context.

    Args:
        found: by encoder, of those that are there.
        t5_length: tokens of T5, if it is not there.

    Raises:
        UserError: the shapes found are not this model's.
    """
    shapes = dict(found)
    shapes.setdefault(T5, TextShape(t5_length, config.context_dim, 0))
    left = config.pooled_dim - sum(shape.pooled_width for shape in found.values())
    missing = [name for name in CLIPS if name not in found]
    length = next((found[name].length for name in CLIPS if name in found), text_encoder("clip_l").length)
    if len(missing) == 1 and left > 0:
        shapes[missing[0]] = TextShape(length, left, left)
    elif missing:
        known = {name: text_encoder(name) for name in missing}
        shapes |= {name: TextShape(item.length, item.width, item.pooled_width) for name, item in known.items()}
    whole = context_shape(shapes, "sd3")
    if (whole.width, whole.pooled_width) != (config.context_dim, config.pooled_dim):
        told = ", ".join(f"{name} {tuple(shapes[name])}" for name in ENCODERS)
        raise UserError(
            f"text encoders={told}: make {whole.width} channels of context and {whole.pooled_width} of pooled states; "
            f"the checkpoint expects {config.context_dim} and {config.pooled_dim}"
        )
    return shapes


def condition(states: Mapping[str, TextStates], shapes: Mapping[str, TextShape], rows: int) -> Conditioning:
    """SD3's context and pooled vector of ``rows`` prompts; encoders that ``states`` lacks are zeros."""
    if not states:
        whole = context_shape(shapes, "sd3")
        return Conditioning(*(np.zeros((rows, *shape), np.float32) for shape in (whole[:2], whole[2:])))
    parts = []
    for start in range(0, rows, _ROWS):
        some = {name: TextStates(*(array[start : start + _ROWS] for array in pair)) for name, pair in states.items()}
        parts.append([np.asarray(array) for array in assemble(some, expected=shapes, layout="sd3")])
    return Conditioning(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def take(conditioning: Conditioning, rows: Sequence[int]) -> Conditioning:
    """Some of its rows, in this order."""
    return Conditioning(*(array[np.asarray(rows)] for array in conditioning))


def latent_sides(config: MMDiTConfig, height: int, width: int, factor: int) -> tuple[int, int]:
    """Height and width of the latents of an image.

    Raises:
        UserError: a side that is no multiple of 64, or is beyond the model's position table; what would work is told.
    """
    largest = config.position_table * config.patch_size * factor // MULTIPLE * MULTIPLE
    for name, side in (("height", height), ("width", width)):
        if side < MULTIPLE or side % MULTIPLE or side > largest:
            near = min(max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE), largest)
            raise UserError(f"{name}={side}: expected a multiple of {MULTIPLE} up to {largest}, such as {near}")
    return height // factor, width // factor


def sample_latents(
    model: SD3,
    f: Formulation,
    prompts: Conditioning,
    negative: Conditioning,
    sampler: SamplerConfig,
    noise: Array,
    evaluations: int | None = None,
) -> Array:
    """Latents float32 [N, h, w, C] in the model's space, from noise of that shape.

    Compiles once for a shape: steps, guidance and shift change nothing compiled, but for guidance or none.

    Args:
        model: the checkpoint.
        f: what it was trained under; ``rf`` for SD3.
        prompts, negative: N rows each; negative ones are what guidance leads away from, unused at guidance 1.
        sampler: method, steps, guidance, shift.
        evaluations: stop after so many evaluations of the network: where the path is then.
    """
    table = plan(f, sampler)
    if evaluations is not None:
        table = table._replace(evaluations=np.int32(min(evaluations, int(table.evaluations))))
    positions = model.positions_at(*noise.shape[1:3])
    return sampler_program(model.config, sampler.guidance != 1)(
        model.params, positions, table, prompts, negative, noise
    )


@functools.lru_cache(maxsize=8)
def sampler_program(config: MMDiTConfig, with_guidance: bool) -> Callable[..., Array]:
    """The jitted loop of ``sample_latents``: (params, positions, table, prompts, negative, noise) -> latents."""
    check_products(config)

    def run(
        params: Any, positions: Array | None, table: Plan, prompts: Conditioning, negative: Conditioning, noise: Array
    ) -> Array:
        sides = (prompts, negative) if with_guidance else (prompts,)
        context, pooled = (jnp.concatenate(arrays) for arrays in zip(*sides, strict=True))

        def network(z: Array, t: Array) -> Array | tuple[Array, Array]:
            if not with_guidance:
                return apply(config, params, z, t, context, pooled, positions)
            z, t = jnp.concatenate([z, z]), jnp.concatenate([t, t])
            conditional, unconditional = jnp.split(apply(config, params, z, t, context, pooled, positions), 2)
            return conditional, unconditional

        return sample(table, network, noise)[0]

    return jax.jit(run)


def draw_latents(
    model: SD3,
    f: Formulation,
    conditioning: Conditioning,
    images: Sequence[tuple[int, int]],
    sampler: SamplerConfig,
    *,
    seed: int,
    indices: Sequence[int] | np.ndarray,
    sides: tuple[int, int],
    batch: int,
) -> Iterator[np.ndarray]:
    """Latents of N images in their order, float32 [1 to batch, h, w, C] each time; see ``sample_latents``.

    Args:
        model, f, sampler: see ``sample_latents``.
        conditioning: of all prompts.
        images: of each, the rows of its prompt and of what guidance leads away from.
        seed: of the noise.
        indices: N integers in [0, 2³¹); noise of image i is a function of (seed, indices[i]).
        sides: height and width of the latents.
        batch: 1 or more; the last one repeats its last image, which is left out again.
    """
    count = len(images)
    for first in range(0, count, batch):
        rows = [min(row, count - 1) for row in range(first, first + batch)]
        noise = initial_noise(seed, np.asarray(indices, np.int32)[rows], (*sides, model.config.in_channels))
        prompts, negative = (take(conditioning, [images[row][side] for row in rows]) for side in (0, 1))
        yield np.asarray(sample_latents(model, f, prompts, negative, sampler, noise))[: count - first]
