"""DiT: text and image tokens in one sequence, and one set of weights for all of them.

The network of Peebles and Xie 2023 (arXiv 2212.09748) with text by concatenation, as SD3 compares it (arXiv 2403.03206,
figure 4): an MMDiT whose streams share their weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from mmdit_jax.models.attention import joint_attention
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.frame import Frame, Given, rematerialised, scan, stacked
from mmdit_jax.models.mmdit import Stream

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Block(nnx.Module):
    """Modulated self-attention and MLP over one sequence."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        self.attention = config.attention
        self.tokens = Stream(config, ends=False, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens width"], condition: Float[Array, "batch width"], keep: int | None = None
    ) -> Float[Array, "batch kept width"]:
        """All tokens are attended to; only the first ``keep`` go on (default: all)."""
        shift, scale, *rest = self.tokens.chunks(condition)
        q, k, v = self.tokens.attended(x, shift, scale)
        return self.tokens.residuals(x[:, :keep], joint_attention(q[:, :, :keep], k, v, self.attention), rest)


class SingleStream(Frame):
    """A frame with ``depth`` blocks over text and image tokens in one sequence.

    A subclass calls ``grow`` for their parameters. The last block is apart, since nothing reads what its text tokens
    would become.
    """

    blocks: Block
    last: Block

    def grow(self, rngs: nnx.Rngs) -> None:
        """Make the parameters of the blocks: all but the last are stacked."""
        config = self.config
        if config.depth > 1:
            self.blocks = stacked(
                lambda own: Block(config, rngs=own), jax.random.split(rngs.params(), config.depth - 1)
            )
        self.last = Block(config, rngs=rngs)

    def transformed(self, x: Float[Array, "batch image width"], given: Given) -> Float[Array, "batch image width"]:
        """The image tokens after all blocks."""
        config, image = self.config, x.shape[1]
        tokens = jnp.concatenate([x, self.context(given.context)], axis=1)
        if config.depth > 1:
            block = lambda carry, weights: (weights(carry, given.condition), None)  # noqa: E731
            tokens, _ = scan(config, block, tokens, self.blocks)
        last = rematerialised(lambda carry, weights: weights(carry, given.condition, image), config)
        out: jax.Array = last(tokens, self.last)
        return out


class DiT(SingleStream):
    """The network: noisy latents, time and text in; the prediction out."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.grow(rngs)

    def through(self, x: Float[Array, "batch patches width"], given: Given) -> Float[Array, "batch patches width"]:
        """As ``Frame.through``."""
        return self.transformed(x + self.placed(given), given)
