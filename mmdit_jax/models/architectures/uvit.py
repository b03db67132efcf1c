"""UViT: convolutions at the resolution of the patches, a transformer with the text at half of it, skips across.

After "simple diffusion" (Hoogeboom et al. 2023, arXiv 2301.11093), whose U-ViT SD3 compares with (arXiv 2403.03206,
figure 4) without giving its sizes. Read here as follows, for a grid of patches of ``patch_size``:

- the stem and the output map patches to tokens of half the width;
- one outer level with two residual blocks of two 3 x 3 convolutions on the way down and two on the way up. A block on
  the way up takes its partner's state beside its own. Time and pooled text enter as shift and scale of the inner norm,
  and as a gate that starts at zero;
- down: 2 x 2 tokens become one of the full width; up: the reverse;
- in the middle ``depth`` blocks of a DiT, on text and image tokens in one sequence.

So the transformer sees patches of 2 x ``patch_size``: a UViT of patch size 1 has the sequence of a DiT of patch size 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from mmdit_jax.models.architectures.counts import UVIT_BLOCKS
from mmdit_jax.models.architectures.dit import SingleStream
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.frame import Given, scan, stacked
from mmdit_jax.models.layers import Dense, modulated_norm, modulations
from mmdit_jax.models.positions import patchify, unpatchify

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class ResidualBlock(nnx.Module):
    """Norm, SiLU, 3 x 3 convolution, modulated norm, SiLU, 3 x 3 convolution, gate; norms are over the channels.

    Args:
      skips: whether it takes a skip's channels beside its own, which a 1 x 1 shortcut then brings back to one width.
    """

    def __init__(self, config: MMDiTConfig, *, skips: bool, rngs: nnx.Rngs) -> None:
        c, dtype = config.width // 2, config.dtype
        channels = 2 * c if skips else c
        self.modulation = Dense(config.width, 3 * c, dtype=dtype, init="zeros", rngs=rngs)
        self.conv_in = Dense(9 * channels, c, dtype=dtype, init="xavier", rngs=rngs)
        self.conv_out = Dense(9 * c, c, dtype=dtype, init="xavier", rngs=rngs)
        self.shortcut = Dense(channels, c, dtype=dtype, init="xavier", rngs=rngs) if skips else None

    def __call__(
        self, x: Float[Array, "batch patches channels"], condition: Float[Array, "batch width"], rows: int
    ) -> Float[Array, "batch patches outer"]:
        """``rows`` of patches, row-major."""
        shift, scale, gate = modulations(self.modulation, condition, 3)
        still = jnp.zeros((x.shape[0], x.shape[-1]), x.dtype)
        h = self.conv_in(neighbours(jax.nn.silu(modulated_norm(x, still, still)), rows))
        h = self.conv_out(neighbours(jax.nn.silu(modulated_norm(h, shift, scale)), rows))
        return (x if self.shortcut is None else self.shortcut(x)) + gate[:, None] * h


class Level(nnx.Module):
    """The residual blocks of one side, stacked."""

    def __init__(self, config: MMDiTConfig, *, skips: bool, rngs: nnx.Rngs) -> None:
        self.blocks = stacked(
            lambda own: ResidualBlock(config, skips=skips, rngs=own), jax.random.split(rngs.params(), UVIT_BLOCKS)
        )


class UViT(SingleStream):
    """The network: noisy latents, time and text in; the prediction out."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        d, dtype, outer = config.width, config.dtype, config.width // 2
        super().__init__(config, rngs=rngs, width=outer)
        self.descent = Level(config, skips=False, rngs=rngs)
        self.merge = Dense(4 * outer, d, dtype=dtype, init="xavier", rngs=rngs)
        self.grow(rngs)
        self.split = Dense(d, 4 * outer, dtype=dtype, init="xavier", rngs=rngs)
        self.ascent = Level(config, skips=True, rngs=rngs)

    def through(self, x: Float[Array, "batch patches width"], given: Given) -> Float[Array, "batch patches width"]:
        """As ``Frame.through``; ``positions`` are of the tokens in the middle."""
        config, rows, columns = self.config, given.rows, given.columns

        def down(carry: jax.Array, weights: ResidualBlock) -> tuple[jax.Array, jax.Array]:
            after = weights(carry, given.condition, rows)
            return after, after

        def up(carry: jax.Array, xs: tuple[ResidualBlock, jax.Array]) -> tuple[jax.Array, None]:
            weights, skip = xs
            return weights(jnp.concatenate([carry, skip], axis=-1), given.condition, rows), None

        x, skips = scan(config, down, x, self.descent.blocks)
        middle = self.merge(patchify(x.reshape(len(x), rows, columns, -1), 2))
        middle = self.transformed(middle + self.placed(given, halved=True), given)
        x = unpatchify(self.split(middle), rows // 2, columns // 2, 2).reshape(x.shape)
        x, _ = scan(config, up, x, (self.ascent.blocks, skips[::-1]))
        return x


def neighbours(x: Float[Array, "batch patches channels"], rows: int) -> Float[Array, "batch patches nine_channels"]:
    """Each patch with its eight neighbours, row by row, zeros outside: a dense layer on it is a 3 x 3 convolution.

    Kernels are matrices so: Muon, sharding and replicas treat them as any other, and a CPU is no slower. (Mapped over
    replicas, a convolution becomes a grouped one, which XLA's CPU backend has no fast form of.)
    """
    batch, patches, channels = x.shape
    columns = patches // rows
    padded = jnp.pad(x.reshape(batch, rows, columns, channels), ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1).reshape(batch, patches, 9 * channels)
