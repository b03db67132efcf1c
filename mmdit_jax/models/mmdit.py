"""MMDiT: two streams of tokens, image and text, with weights of their own and one attention over both.

Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (arXiv 2403.03206),
section 4 and figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from mmdit_jax.models.attention import attention_of_each, joint_attention
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.frame import Frame, Given, rematerialised, scan, stacked
from mmdit_jax.models.layers import Dense, HeadNorm, gelu, modulated_norm, modulations
from mmdit_jax.sharding import place

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Stream(nnx.Module):
    """One stream's half of a block. ``ends`` makes the last block's context stream: queries, keys, values, no more.

    ``dual`` adds a second attention among the stream's own tokens, beside the joint one (SD3.5-medium's image stream).
    """

    def __init__(self, config: MMDiTConfig, *, ends: bool, dual: bool = False, rngs: nnx.Rngs) -> None:
        d, dtype, products = config.width, config.dtype, config.products
        self.heads, self.head_size, self.ends = config.num_heads, config.head_size, ends
        self.parts = 2 if ends else 9 if dual else 6
        self.modulation = Dense(d, self.parts * d, dtype=dtype, init="zeros", rngs=rngs)
        self.qkv = Dense(d, 3 * d, dtype=dtype, init="xavier", products=products, rngs=rngs)
        self.norm_q = HeadNorm(config.head_size) if config.qk_norm else None
        self.norm_k = HeadNorm(config.head_size) if config.qk_norm else None
        if not ends:
            self.out = Dense(d, d, dtype=dtype, init="xavier", products=products, rngs=rngs)
            self.up = Dense(d, config.mlp_ratio * d, dtype=dtype, init="xavier", products=products, rngs=rngs)
            self.down = Dense(config.mlp_ratio * d, d, dtype=dtype, init="xavier", products=products, rngs=rngs)
        self.second = SecondAttention(config, rngs=rngs) if dual else None

    def chunks(self, condition: Float[Array, "batch width"]) -> list[Float[Array, "batch width"]]:
        """Modulation: shift, scale, gate of attention, MLP, second attention; only shift and scale where it ends."""
        return modulations(self.modulation, condition, self.parts)

    def attended(self, x: Float[Array, "batch tokens width"], shift: jax.Array, scale: jax.Array) -> list[jax.Array]:
        """Queries, keys and values of this stream, each [batch, heads, tokens, head_size]."""
        return projected(self, modulated_norm(x, shift, scale))

    def residuals(
        self, x: Float[Array, "batch tokens width"], attention: jax.Array, modulation: list[jax.Array]
    ) -> Float[Array, "batch tokens width"]:
        """Adds the gated attention [batch, heads, tokens, head_size], the gated second one, then the gated MLP."""
        gate, mlp_shift, mlp_scale, mlp_gate, *second = modulation
        added = gate[:, None] * place(self.out(merged(attention)), "batch", "tokens", None)
        if self.second is not None:
            shift, scale, second_gate = second
            added = added + second_gate[:, None] * self.second(modulated_norm(x, shift, scale))
        x = x + added
        return x + mlp_gate[:, None] * self.mlp(modulated_norm(x, mlp_shift, mlp_scale))

    def mlp(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Up, GELU, down."""
        hidden = gelu(place(self.up(x), "batch", "tokens", "hidden"))
        return place(self.down(hidden), "batch", "tokens", None)


class SecondAttention(nnx.Module):
    """Self-attention among the tokens of one stream, with weights of its own."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        d, dtype, products = config.width, config.dtype, config.products
        self.heads, self.head_size, self.attention = config.num_heads, config.head_size, config.attention
        self.qkv = Dense(d, 3 * d, dtype=dtype, init="xavier", products=products, rngs=rngs)
        self.norm_q = HeadNorm(config.head_size) if config.qk_norm else None
        self.norm_k = HeadNorm(config.head_size) if config.qk_norm else None
        self.out = Dense(d, d, dtype=dtype, init="xavier", products=products, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        q, k, v = projected(self, x)
        return self.out(merged(joint_attention(q, k, v, self.attention)))


def projected(layer: Stream | SecondAttention, x: Float[Array, "batch tokens width"]) -> list[jax.Array]:
    """Queries, keys and values of ``x``, each [batch, heads, tokens, head_size], normed if the layer has norms."""
    batch, tokens, _ = x.shape
    qkv = layer.qkv.parts(x, 3).reshape(batch, tokens, 3, layer.heads, layer.head_size)
    q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))
    if layer.norm_q is not None and layer.norm_k is not None:
        q, k = layer.norm_q(q), layer.norm_k(k)
    return [q, k, v]


def merged(attention: Float[Array, "batch heads tokens head_size"]) -> Float[Array, "batch tokens width"]:
    """The heads' results side by side."""
    batch, _, tokens, _ = attention.shape
    return place(jnp.moveaxis(attention, 1, 2).reshape(batch, tokens, -1), "batch", "tokens", "heads")


def all_tokens(parts: Sequence[jax.Array]) -> Float[Array, "batch heads tokens head_size"]:
    """Keys, or values, of several streams end to end, those of all tokens on each device."""
    return jnp.concatenate([place(part, "batch", "heads", None, None) for part in parts], axis=2)


class JointBlock(nnx.Module):
    """Both streams and the attention that joins them. The ``last`` block returns its context unchanged."""

    def __init__(self, config: MMDiTConfig, *, last: bool = False, dual: bool = False, rngs: nnx.Rngs) -> None:
        self.attention = config.attention
        self.latent = Stream(config, ends=False, dual=dual, rngs=rngs)
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
        k, v = (all_tokens(pair) for pair in zip(image_kv, text_kv, strict=True))
        if self.context.ends:  # nothing reads what the text would attend to
            return self.latent.residuals(x, joint_attention(image_q, k, v, self.attention), x_rest), context
        of_image, of_text = attention_of_each([image_q, text_q], k, v, self.attention)
        return self.latent.residuals(x, of_image, x_rest), self.context.residuals(context, of_text, c_rest)


class MMDiT(Frame):
    """The network: noisy latents, time and text in; the prediction (a velocity, for rectified flow) out.

    The parameters of all blocks but the last are stacked along a leading axis: ``dual`` those of the leading blocks
    with a second attention, ``blocks`` the rest; an empty group is absent. ``nnx.Rngs(0)`` or any seed initialises;
    under ``jax.eval_shape`` nothing is allocated.
    """

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        if config.depth > 1:
            keys = jax.random.split(rngs.params(), config.depth - 1)
            dual, plain = keys[: config.dual_attention], keys[config.dual_attention :]
            if len(dual):
                self.dual = stacked(lambda own: JointBlock(config, dual=True, rngs=own), dual)
            if len(plain):
                self.blocks = stacked(lambda own: JointBlock(config, rngs=own), plain)
        self.last = JointBlock(config, last=True, dual=config.dual_attention == config.depth, rngs=rngs)

    def through(self, x: Float[Array, "batch patches width"], given: Given) -> Float[Array, "batch patches width"]:
        """As ``Frame.through``; the text becomes a stream of its own, which the last block only reads."""

        def block(carry: tuple[jax.Array, jax.Array], weights: JointBlock) -> tuple[tuple[jax.Array, jax.Array], None]:
            return weights(*carry, given.condition), None

        carry = (x + self.placed(given), self.context(given.context))
        for name in ("dual", "blocks"):
            if name in vars(self):
                carry, _ = scan(self.config, block, carry, vars(self)[name])
        (x, _), _ = rematerialised(block, self.config)(carry, self.last)
        return x
