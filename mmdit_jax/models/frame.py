"""What every architecture shares: embeddings, the condition, blocks scanned over depth, the output layer."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmdit_jax.errors import UserError
from mmdit_jax.models.attention import save_attention
from mmdit_jax.models.config import TIME_FEATURES, MMDiTConfig
from mmdit_jax.models.layers import ConditionMLP, Dense, modulated_norm, modulations
from mmdit_jax.models.parametrization import condition_scale, input_scale
from mmdit_jax.models.positions import patchify, sincos_positions, timestep_features, unpatchify
from mmdit_jax.models.products import save_products
from mmdit_jax.parameter_sharding import gathered
from mmdit_jax.sharding import current_mesh, place, platform

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Given(NamedTuple):
    """What the blocks of a network see beside the patches."""

    context: Float[Array, "batch text context_dim"]
    """Text states, not embedded yet."""
    condition: Float[Array, "batch width"]
    """SiLU of the embeddings of time and pooled text, which modulates every layer."""
    rows: int
    """Of patches."""
    columns: int
    positions: Float[Array, "tokens width"] | None
    """As given to the network."""


class Frame(nnx.Module):
    """The layers before and after the blocks, named alike in every network. A network adds its blocks and ``through``.

    Args:
      width: of a patch's token at the input and the output; None for the blocks' width.
    """

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs, width: int | None = None) -> None:
        d, dtype = config.width, config.dtype
        outer = d if width is None else width
        self.config = config
        self.patch = embedding(config, config.patch_features, outer, rngs)
        self.context = embedding(config, config.context_dim, d, rngs)
        self.time = ConditionMLP(TIME_FEATURES, d, dtype=dtype, rngs=rngs, scale=condition_scale(config))
        self.pooled = ConditionMLP(config.pooled_dim, d, dtype=dtype, rngs=rngs, scale=condition_scale(config))
        zeros = nnx.Rngs(0)  # which need no randomness: what comes after in a network has the keys it always had
        self.final_modulation = Dense(d, 2 * outer, dtype=dtype, init="zeros", rngs=zeros)
        self.final = Dense(outer, config.patch_features, dtype=dtype, init="zeros", rngs=zeros)

    def __call__(
        self,
        latents: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        context: Float[Array, "batch text context_dim"],
        pooled: Float[Array, "batch pooled_dim"],
        positions: Float[Array, "tokens width"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """The raw prediction (a velocity, for rectified flow), float32, shaped as ``latents``; t in (0, 1), 0 is data.

        Args:
          positions: of the tokens, row-major; by default those of the config's sin-cos table.

        Raises:
          UserError: the latents don't fit the patches or the position table, a last axis is not the config's, or the
            text has no tokens for the second of two text streams.
        """
        config = self.config
        require_channels("latents", latents, config.in_channels)
        require_channels("context", context, config.context_dim)
        require_channels("pooled", pooled, config.pooled_dim)
        rows, columns = config.grid(latents.shape[1], latents.shape[2])
        x = self.patch(place(patchify(latents, config.patch_size), "batch", "tokens", None))
        condition = place(jax.nn.silu(self.time(timestep_features(t)) + self.pooled(pooled)), "batch", None)
        x = self.through(x, Given(context, condition, rows, columns, positions))
        shift, scale = modulations(self.final_modulation, condition, 2)
        out = self.final(modulated_norm(x, shift, scale))
        return unpatchify(out, rows, columns, config.patch_size).astype(jnp.float32)

    @abc.abstractmethod
    def through(self, x: Float[Array, "batch patches width"], given: Given) -> Float[Array, "batch patches width"]:
        """The patches after all blocks: what a network is, besides its frame.

        Args:
          x: patches as tokens, of the frame's outer width, not placed yet.
          given: what else the blocks see.
        """

    def placed(self, given: Given, *, halved: bool = False) -> Float[Array, "tokens width"]:
        """The positions given, or the config's fixed features of where a token is, in the blocks' dtype.

        ``halved``: 2 x 2 patches are a token.
        """
        config, positions, patches = self.config, given.positions, 2 if halved else 1
        if positions is None:
            rows, columns = given.rows // patches, given.columns // patches
            positions = sincos_positions(rows, columns, config.width, config.position_table, config.position_base)
        return positions.astype(config.dtype)


def embedding(config: MMDiTConfig, features: int, width: int, rngs: nnx.Rngs) -> Dense:
    """The layer that makes tokens of patches or text states."""
    scale = input_scale(config, features)
    return Dense(features, width, dtype=config.dtype, init="xavier", rngs=rngs, scale=scale)


def stacked(make: Callable[[nnx.Rngs], Any], keys: jax.Array) -> Any:
    """A module for each key as one, each parameter with a leading axis. Keep it under the name ``blocks`` (``dual``):
    sharding never cuts that axis, and Muon takes it as a batch of matrices."""
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(keys)


def scan(config: MMDiTConfig, block: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> Any:
    """``jax.lax.scan`` of a block over stacked modules, rematerialised and unrolled as the config says."""
    return jax.lax.scan(rematerialised(block, config), carry, xs, unroll=config.scan is False)


UNROLLED_ON_GPUS = ("none", "dots")
"""Policies that keep so much of a block that training on GPUs unrolls them."""


def unrolls(config: MMDiTConfig) -> bool:
    """Whether a training step unrolls the blocks on the platform of ``placed_on``: as the config says, else on GPUs
    where a policy keeps much.

    Scanned, what each block keeps for the backward pass is copied into stacks of all blocks, and out of them again. XLA
    for GPUs does so in kernels of their own, which take longer than the products (docs/levers.md).
    """
    return not config.scan if config.scan is not None else config.remat in UNROLLED_ON_GPUS and platform() == "gpu"


def rematerialised(function: Callable[[Any, Any], Any], config: MMDiTConfig) -> Any:
    """``function`` of a carry and a block's weights, which are gathered, with the config's policy for what its backward
    pass recomputes. That always gathers and casts weights again: kept, they would be whole on every device."""

    def body(carry: Any, weights: Any) -> Any:
        return function(carry, gathered(weights, config.dtype))

    if config.remat == "none" and config.dtype == "float32" and current_mesh() is None:
        return body
    policies = {
        "none": _save_all_but_weights,
        "dots": jax.checkpoint_policies.save_from_both_policies(save_products, save_attention),
        "attention": save_attention,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    # In a program without a loop XLA would find what is done again, and keep the first. On one device it may, where
    # only casts of weights are.
    guarded = config.scan is False and (config.remat != "none" or current_mesh() is not None)
    return jax.checkpoint(body, policy=policies[config.remat], prevent_cse=guarded)


def _save_all_but_weights(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy for ``jax.checkpoint``: casts and placements are done again, which weights go through first."""
    return primitive.name not in ("convert_element_type", "sharding_constraint")


def require_channels(field: str, array: jax.Array, channels: int) -> None:
    """Raises UserError unless the last axis of ``array`` has so many channels."""
    if array.shape[-1] != channels:
        raise UserError(f"{field}={tuple(array.shape)}: expected {channels} channels along the last axis")
