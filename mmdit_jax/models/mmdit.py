"""MMDiT: two streams of tokens, image and text, with weights of their own and one attention over both.

Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (arXiv 2403.03206),
section 4 and figure 2.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmdit_jax.errors import UserError
from mmdit_jax.models.attention import joint_attention
from mmdit_jax.models.config import TIME_FEATURES, MMDiTConfig
from mmdit_jax.models.layers import ConditionMLP, Dense, HeadNorm, gelu, modulated_norm
from mmdit_jax.models.positions import patchify, sincos_positions, timestep_features, unpatchify


class Stream(nnx.Module):
    """One stream's half of a block. ``ends`` makes the last block's context stream: queries, keys, values, no more."""

    def __init__(self, config: MMDiTConfig, *, ends: bool, rngs: nnx.Rngs) -> None:
        d, dtype = config.width, config.dtype
        self.heads, self.head_size, self.ends = config.num_heads, config.head_size, ends
        self.modulation = Dense(d, (2 if ends else 6) * d, dtype=dtype, init="zeros", rngs=rngs)
        self.qkv = Dense(d, 3 * d, dtype=dtype, init="xavier", rngs=rngs)
        self.norm_q = HeadNorm(config.head_size) if config.qk_norm else None
        self.norm_k = HeadNorm(config.head_size) if config.qk_norm else None
        if not ends:
            self.out = Dense(d, d, dtype=dtype, init="xavier", rngs=rngs)
            self.up = Dense(d, config.mlp_ratio * d, dtype=dtype, init="xavier", rngs=rngs)
            self.down = Dense(config.mlp_ratio * d, d, dtype=dtype, init="xavier", rngs=rngs)

    def chunks(self, condition: Float[Array, "batch width"]) -> list[Float[Array, "batch width"]]:
        """Modulation: shift, scale, gate of the attention, then of the MLP; only shift and scale where it ends."""
        return jnp.split(self.modulation(condition), 2 if self.ends else 6, axis=-1)

    def attended(self, x: Float[Array, "batch tokens width"], shift: jax.Array, scale: jax.Array) -> list[jax.Array]:
        """Queries, keys and values of this stream, each [batch, heads, tokens, head_size]."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(modulated_norm(x, shift, scale))
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, self.head_size), (2, 3), (0, 2))
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        return [q, k, v]

    def residuals(
        self, x: Float[Array, "batch tokens width"], attention: jax.Array, modulation: list[jax.Array]
    ) -> Float[Array, "batch tokens width"]:
        """Adds the gated attention [batch, heads, tokens, head_size], then the gated MLP."""
        gate, mlp_shift, mlp_scale, mlp_gate = modulation
        merged = jnp.moveaxis(attention, 1, 2).reshape(x.shape)
        x = x + gate[:, None] * self.out(merged)
        return x + mlp_gate[:, None] * self.down(gelu(self.up(modulated_norm(x, mlp_shift, mlp_scale))))


class JointBlock(nnx.Module):
    """Both streams and the attention that joins them. The ``last`` block returns its context unchanged."""

    def __init__(self, config: MMDiTConfig, *, last: bool = False, rngs: nnx.Rngs) -> None:
        self.latent = Stream(config, ends=False, rngs=rngs)
        self.context = Stream(config, ends=last, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch image width"],
        context: Float[Array, "batch text width"],
        condition: Float[Array, "batch width"],
    ) -> tuple[Float[Array, "batch image width"], Float[Array, "batch text width"]]:
        x_shift, x_scale, *x_rest = self.latent.chunks(condition)
        c_shift, c_scale, *c_rest = self.context.chunks(condition)
        image_q, *image_kv = self.latent.attended(x, x_shift, x_scale)
        text_q, *text_kv = self.context.attended(context, c_shift, c_scale)
        k, v = (jnp.concatenate(pair, axis=2) for pair in zip(image_kv, text_kv, strict=True))
        if self.context.ends:  # nothing reads what the text would attend to
            return self.latent.residuals(x, joint_attention(image_q, k, v), x_rest), context
        attention = joint_attention(jnp.concatenate([image_q, text_q], axis=2), k, v)
        image = x.shape[1]
        x = self.latent.residuals(x, attention[:, :, :image], x_rest)
        context = self.context.residuals(context, attention[:, :, image:], c_rest)
        return x, context


class MMDiT(nnx.Module):
    """The network: noisy latents, time and text in; the prediction (a velocity, for rectified flow) out.

    The parameters of all blocks but the last are stacked along a leading axis of length depth - 1; a model of depth 1
    has none of them. ``nnx.Rngs(0)`` or any seed initialises; under ``jax.eval_shape`` nothing is allocated.
    """

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        d, dtype = config.width, config.dtype
        self.config = config
        self.patch = Dense(config.patch_features, d, dtype=dtype, init="xavier", rngs=rngs)
        self.context = Dense(config.context_dim, d, dtype=dtype, init="xavier", rngs=rngs)
        self.time = ConditionMLP(TIME_FEATURES, d, dtype=dtype, rngs=rngs)
        self.pooled = ConditionMLP(config.pooled_dim, d, dtype=dtype, rngs=rngs)
        if config.depth > 1:
            keys = jax.random.split(rngs.params(), config.depth - 1)
            self.blocks = jax.vmap(lambda key: JointBlock(config, rngs=nnx.Rngs(params=key)))(keys)
        self.last = JointBlock(config, last=True, rngs=rngs)
        self.final_modulation = Dense(d, 2 * d, dtype=dtype, init="zeros", rngs=rngs)
        self.final = Dense(d, config.patch_features, dtype=dtype, init="zeros", rngs=rngs)

    def __call__(
        self,
        latents: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        context: Float[Array, "batch text context_dim"],
        pooled: Float[Array, "batch pooled_dim"],
    ) -> Float[Array, "batch height width channels"]:
        """The raw prediction, float32, shaped as ``latents``; t in (0, 1), 0 is data.

        Raises:
          UserError: the latents don't fit the patches or the position table, or a last axis is not the config's.
        """
        config = self.config
        require_channels("latents", latents, config.in_channels)
        require_channels("context", context, config.context_dim)
        require_channels("pooled", pooled, config.pooled_dim)
        rows, columns = config.grid(latents.shape[1], latents.shape[2])

        positions = sincos_positions(rows, columns, config.width, config.position_table).astype(config.dtype)
        x = self.patch(patchify(latents, config.patch_size)) + positions
        text = self.context(context)
        condition = jax.nn.silu(self.time(timestep_features(t)) + self.pooled(pooled))

        def block(carry: tuple[jax.Array, jax.Array], weights: JointBlock) -> tuple[tuple[jax.Array, jax.Array], None]:
            return weights(*carry, condition), None

        body = rematerialised(block, config.remat)
        carry = (x, text)
        if config.depth > 1:
            unroll = 1 if config.scan else config.depth - 1
            carry, _ = jax.lax.scan(body, carry, self.blocks, unroll=unroll)
        (x, _), _ = body(carry, self.last)

        shift, scale = jnp.split(self.final_modulation(condition), 2, axis=-1)
        out = self.final(modulated_norm(x, shift, scale))
        return unpatchify(out, rows, columns, config.patch_size).astype(jnp.float32)


def rematerialised(function: Any, remat: str) -> Any:
    """``function`` with the config's policy for what its backward pass recomputes."""
    if remat == "none":
        return function
    policies = {
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    return jax.checkpoint(function, policy=policies[remat], prevent_cse=False)


def require_channels(field: str, array: jax.Array, channels: int) -> None:
    """Raises UserError unless the last axis of ``array`` has so many channels."""
    if array.shape[-1] != channels:
        raise UserError(f"{field}={tuple(array.shape)}: expected {channels} channels along the last axis")
