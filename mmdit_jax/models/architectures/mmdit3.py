"""MMDiT with three streams: image, CLIP text and T5 text, each with weights of its own, one attention over all.

SD3's variant (arXiv 2403.03206, figure 4) gives each kind of text embedding a set of weights. The context holds the
first ``text_split`` tokens for the CLIP stream and the rest for T5's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from flax import nnx

from mmdit_jax.models.architectures.counts import split_text
from mmdit_jax.models.attention import attention_of_each
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.frame import Frame, Given, embedding, rematerialised, scan, stacked
from mmdit_jax.models.mmdit import Stream, all_tokens

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Streams = tuple[jax.Array, jax.Array, jax.Array]


class Block(nnx.Module):
    """Three streams and the attention that joins them. The ``last`` block returns its texts unchanged."""

    def __init__(self, config: MMDiTConfig, *, last: bool = False, rngs: nnx.Rngs) -> None:
        self.attention = config.attention
        self.latent = Stream(config, ends=False, rngs=rngs)
        self.clip = Stream(config, ends=last, rngs=rngs)
        self.t5 = Stream(config, ends=last, rngs=rngs)

    def __call__(self, tokens: Streams, condition: Float[Array, "batch width"]) -> Streams:
        """Tokens of each stream [batch, tokens, width]: image, CLIP, T5."""
        streams = (self.latent, self.clip, self.t5)
        chunks = [stream.chunks(condition) for stream in streams]
        parts = [
            stream.attended(x, shift, scale)
            for stream, x, (shift, scale, *_) in zip(streams, tokens, chunks, strict=True)
        ]
        k, v = (all_tokens([part[i] for part in parts]) for i in (1, 2))
        going = [i for i, stream in enumerate(streams) if not stream.ends]
        after = list(tokens)
        attention = attention_of_each([parts[i][0] for i in going], k, v, self.attention)
        for i, own in zip(going, attention, strict=True):
            after[i] = streams[i].residuals(tokens[i], own, chunks[i][2:])
        return after[0], after[1], after[2]


class MMDiT3(Frame):
    """The network: noisy latents, time and text in; the prediction out."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.second_context = embedding(config, config.context_dim, config.width, rngs)
        if config.depth > 1:
            self.blocks = stacked(
                lambda own: Block(config, rngs=own), jax.random.split(rngs.params(), config.depth - 1)
            )
        self.last = Block(config, last=True, rngs=rngs)

    def through(self, x: Float[Array, "batch patches width"], given: Given) -> Float[Array, "batch patches width"]:
        """As ``Frame.through``; the text is split in two streams."""
        config, context = self.config, given.context
        first, _ = split_text(config, context.shape[1])
        x = x + self.placed(given)
        tokens: Streams = (x, self.context(context[:, :first]), self.second_context(context[:, first:]))
        if config.depth > 1:
            block = lambda carry, weights: (weights(carry, given.condition), None)  # noqa: E731
            tokens, _ = scan(config, block, tokens, self.blocks)
        x, *_ = rematerialised(lambda carry, weights: weights(carry, given.condition), config)(tokens, self.last)
        return x
