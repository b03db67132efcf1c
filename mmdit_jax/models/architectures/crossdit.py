"""CrossDiT: image tokens alone in the sequence, which look at the text by cross-attention in every block.

As PixArt-alpha (Chen et al. 2023, arXiv 2310.00426): self-attention and MLP are modulated by the condition, the
cross-attention between them is neither normalised nor gated, and starts with a zero output. The text is embedded once
and stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from mmdit_jax.models.attention import joint_attention
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.frame import Frame, Given, scan, stacked
from mmdit_jax.models.layers import Dense, HeadNorm, modulated_norm
from mmdit_jax.models.mmdit import Stream, merged

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class CrossAttention(nnx.Module):
    """Queries from the image, keys and values from the text."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        d, dtype, products = config.width, config.dtype, config.products
        self.heads, self.head_size, self.attention = config.num_heads, config.head_size, config.attention
        self.cross_q = Dense(d, d, dtype=dtype, init="xavier", products=products, rngs=rngs)
        self.cross_kv = Dense(d, 2 * d, dtype=dtype, init="xavier", products=products, rngs=rngs)
        self.cross_out = Dense(d, d, dtype=dtype, init="zeros", products=products, rngs=rngs)
        self.norm_q = HeadNorm(config.head_size) if config.qk_norm else None
        self.norm_k = HeadNorm(config.head_size) if config.qk_norm else None

    def __call__(
        self, x: Float[Array, "batch image width"], text: Float[Array, "batch text width"]
    ) -> Float[Array, "batch image width"]:
        q = jnp.moveaxis(self.cross_q(x).reshape(*x.shape[:2], self.heads, self.head_size), 2, 1)
        pair = self.cross_kv.parts(text, 2).reshape(*text.shape[:2], 2, self.heads, self.head_size)
        k, v = jnp.moveaxis(pair, (2, 3), (0, 2))
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        return self.cross_out(merged(joint_attention(q, k, v, self.attention)))


class Block(nnx.Module):
    """Modulated self-attention, cross-attention, modulated MLP."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        self.attention = config.attention
        self.latent = Stream(config, ends=False, rngs=rngs)
        self.text = CrossAttention(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch image width"],
        text: Float[Array, "batch text width"],
        condition: Float[Array, "batch width"],
    ) -> Float[Array, "batch image width"]:
        own = self.latent
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = own.chunks(condition)
        q, k, v = own.attended(x, shift, scale)
        x = x + gate[:, None] * own.out(merged(joint_attention(q, k, v, self.attention)))
        x = x + self.text(x, text)
        return x + mlp_gate[:, None] * own.mlp(modulated_norm(x, mlp_shift, mlp_scale))


class CrossDiT(Frame):
    """The network: noisy latents, time and text in; the prediction out."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.blocks = stacked(lambda own: Block(config, rngs=own), jax.random.split(rngs.params(), config.depth))

    def through(self, x: Float[Array, "batch patches width"], given: Given) -> Float[Array, "batch patches width"]:
        """As ``Frame.through``; the embedded text goes to every block as it is."""
        text = self.context(given.context)

        def block(carry: jax.Array, weights: Block) -> tuple[jax.Array, None]:
            return weights(carry, text, given.condition), None

        x, _ = scan(self.config, block, x + self.placed(given), self.blocks)
        return x
