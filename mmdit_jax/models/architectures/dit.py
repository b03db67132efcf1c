"""DiT: text and image tokens in one sequence, and one set of weights for all of them.

The network of Peebles and Xie 2023 (arXiv 2212.09748) with text by concatenation, as SD3 compares it (arXiv 2403.03206,
figure 4): an MMDiT whose streams share their weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmdit_jax.models.attention import joint_attention
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.frame import Frame, rematerialised, scan, stacked
from mmdit_jax.models.mmdit import Stream
from mmdit_jax.models.positions import patchify


class Block(nnx.Module):
    """Modulated self-attention and MLP over one sequence."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        self.tokens = Stream(config, ends=False, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens width"], condition: Float[Array, "batch width"], keep: int | None = None
    ) -> Float[Array, "batch kept width"]:
        """All tokens are attended to; only the first ``keep`` go on (default: all)."""
        shift, scale, *rest = self.tokens.chunks(condition)
        q, k, v = self.tokens.attended(x, shift, scale)
        return self.tokens.residuals(x[:, :keep], joint_attention(q[:, :, :keep], k, v), rest)


class Trunk(nnx.Module):
    """``depth`` blocks over text and image tokens, of which the image's come out.

    A subclass of ``Frame`` calls ``grow`` for the parameters and ``through`` for the blocks; the last block is apart,
    since nothing reads what its text tokens would become.
    """

    blocks: Block
    last: Block

    def grow(self, config: MMDiTConfig, rngs: nnx.Rngs) -> None:
        """Make the parameters of the blocks: all but the last are stacked."""
        if config.depth > 1:
            self.blocks = stacked(
                lambda own: Block(config, rngs=own), jax.random.split(rngs.params(), config.depth - 1)
            )
        self.last = Block(config, rngs=rngs)

    def through(
        self,
        config: MMDiTConfig,
        x: Float[Array, "batch image width"],
        text: Float[Array, "batch text width"],
        condition: Float[Array, "batch width"],
    ) -> Float[Array, "batch image width"]:
        """The image tokens after all blocks."""
        image = x.shape[1]
        tokens = jnp.concatenate([x, text], axis=1)
        if config.depth > 1:
            block = lambda carry, weights: (weights(carry, condition), None)  # noqa: E731
            tokens, _ = scan(config, block, tokens, self.blocks, config.depth - 1)
        last = rematerialised(lambda carry, weights: weights(carry, condition, image), config.remat)
        out: jax.Array = last(tokens, self.last)
        return out


class DiT(Frame, Trunk):
    """The network: noisy latents, time and text in; the prediction out."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.grow(config, rngs)

    def __call__(
        self,
        latents: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        context: Float[Array, "batch text context_dim"],
        pooled: Float[Array, "batch pooled_dim"],
        positions: Float[Array, "tokens width"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """As ``MMDiT.__call__``."""
        self.check(latents, context, pooled)
        rows, columns = self.config.grid(latents.shape[1], latents.shape[2])
        x = self.patch(patchify(latents, self.config.patch_size)) + self.placed(rows, columns, positions)
        condition = self.condition(t, pooled)
        x = self.through(self.config, x, self.context(context), condition)
        return self.output(x, condition, rows, columns)
