"""The KL autoencoder's network: images [B, H, W, 3] in [-1, 1] to a Gaussian over latents, and latents to images.

Attributes have the names of diffusers' AutoencoderKL, so that the path of a parameter is the name of its tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from mmdit_jax.models.autoencoder.config import AutoencoderConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float

NORM_EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)

_INIT = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class Conv(nnx.Module):
    """Convolution. Kernel [k, k, in, out] and bias [out] are float32, the product is in ``dtype``.

    With stride 2, one row and one column of zeros are added below and to the right only, as in Rombach et al.'s code.
    """

    def __init__(self, inside: int, outside: int, size: int, *, stride: int = 1, dtype: str, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(_INIT(rngs.params(), (size, size, inside, outside), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outside,), jnp.float32))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x: Float[Array, "B H W inside"]) -> Float[Array, "B h w outside"]:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        if kernel.shape[0] == 1:
            return x.astype(self.dtype) @ kernel[0, 0] + bias
        padding = (1, 1) if self.stride == 1 else (0, 1)
        out = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            (self.stride, self.stride),
            (padding, padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out + bias


class Linear(nnx.Module):
    """x @ kernel + bias over the last axis: the projections of the attention."""

    def __init__(self, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(_INIT(rngs.params(), (width, width), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B N width"]) -> Float[Array, "B N width"]:
        return x.astype(self.dtype) @ self.kernel[...].astype(self.dtype) + self.bias[...].astype(self.dtype)


class GroupNorm(nnx.Module):
    """Group norm over space and the channels of a group, in float32; the result has the dtype of x."""

    def __init__(self, width: int, groups: int) -> None:
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.groups = groups

    def __call__(self, x: Float[Array, "B H W width"]) -> Float[Array, "B H W width"]:
        wide = x.astype(jnp.float32)
        centred = wide - self._mean(wide)
        factor = jax.lax.rsqrt(self._mean(centred**2) + NORM_EPS) * self.scale[...]
        return (centred * factor + self.bias[...]).astype(x.dtype)

    def _mean(self, x: Float[Array, "B H W width"]) -> Float[Array, "B 1 1 width"]:
        """The mean of its group for each channel. Channels come last until only they are left: a CPU likes that."""
        by_group = jnp.mean(x, axis=(1, 2)).reshape(len(x), self.groups, -1)
        return jnp.repeat(jnp.mean(by_group, axis=2), by_group.shape[2], axis=1)[:, None, None]


class Residual(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1×1 convolution of x where the width changes."""

    def __init__(self, inside: int, outside: int, groups: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.norm1 = GroupNorm(inside, groups)
        self.conv1 = Conv(inside, outside, 3, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(outside, groups)
        self.conv2 = Conv(outside, outside, 3, dtype=dtype, rngs=rngs)
        if inside != outside:
            self.conv_shortcut = Conv(inside, outside, 1, dtype=dtype, rngs=rngs)
        self.changes = inside != outside

    def __call__(self, x: Float[Array, "B H W inside"]) -> Float[Array, "B H W outside"]:
        inner = self.conv1(jax.nn.silu(self.norm1(x)))
        inner = self.conv2(jax.nn.silu(self.norm2(inner)))
        return (self.conv_shortcut(x) if self.changes else x) + inner


class Attention(nnx.Module):
    """x + attention of all pixels to all pixels, one head as wide as x; the softmax is float32."""

    def __init__(self, width: int, groups: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.group_norm = GroupNorm(width, groups)
        self.to_q = Linear(width, dtype=dtype, rngs=rngs)
        self.to_k = Linear(width, dtype=dtype, rngs=rngs)
        self.to_v = Linear(width, dtype=dtype, rngs=rngs)
        self.to_out = nnx.List([Linear(width, dtype=dtype, rngs=rngs)])

    def __call__(self, x: Float[Array, "B H W width"]) -> Float[Array, "B H W width"]:
        batch, _, _, width = x.shape
        tokens = self.group_norm(x).reshape(batch, -1, width)
        query, key, value = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        scores = jnp.einsum("bnc,bmc->bnm", query, key, preferred_element_type=jnp.float32) * width**-0.5
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return x + self.to_out[0](jnp.einsum("bnm,bmc->bnc", weights, value)).reshape(x.shape)


class Middle(nnx.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, width: int, config: AutoencoderConfig, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.resnets = nnx.List([Residual(width, width, config.groups, dtype=dtype, rngs=rngs) for _ in range(2)])
        self.attentions = nnx.List(
            [Attention(width, config.groups, dtype=dtype, rngs=rngs)] if config.attention else []
        )

    def __call__(self, x: Float[Array, "B h w width"]) -> Float[Array, "B h w width"]:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Halve(nnx.Module):
    """Convolution with stride 2."""

    def __init__(self, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.conv = Conv(width, width, 3, stride=2, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W width"]) -> Float[Array, "B H/2 W/2 width"]:
        return self.conv(x)


class Double(nnx.Module):
    """Every pixel four times, then a convolution."""

    def __init__(self, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.conv = Conv(width, width, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W width"]) -> Float[Array, "B 2*H 2*W width"]:
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))


class DownLevel(nnx.Module):
    """Residual blocks of one resolution of the encoder, then half of it (not after the last)."""

    def __init__(
        self, inside: int, outside: int, config: AutoencoderConfig, *, last: bool, dtype: str, rngs: nnx.Rngs
    ) -> None:
        self.resnets = nnx.List(
            [
                Residual(inside if i == 0 else outside, outside, config.groups, dtype=dtype, rngs=rngs)
                for i in range(config.layers)
            ]
        )
        self.downsamplers = nnx.List([] if last else [Halve(outside, dtype=dtype, rngs=rngs)])

    def __call__(self, x: Float[Array, "B H W inside"]) -> Float[Array, "B h w outside"]:
        for block in (*self.resnets, *self.downsamplers):
            x = block(x)
        return x


class UpLevel(nnx.Module):
    """Residual blocks of one resolution of the decoder, one more than the encoder's, then double it (not the last)."""

    def __init__(
        self, inside: int, outside: int, config: AutoencoderConfig, *, last: bool, dtype: str, rngs: nnx.Rngs
    ) -> None:
        self.resnets = nnx.List(
            [
                Residual(inside if i == 0 else outside, outside, config.groups, dtype=dtype, rngs=rngs)
                for i in range(config.layers + 1)
            ]
        )
        self.upsamplers = nnx.List([] if last else [Double(outside, dtype=dtype, rngs=rngs)])

    def __call__(self, x: Float[Array, "B h w inside"]) -> Float[Array, "B H W outside"]:
        for block in (*self.resnets, *self.upsamplers):
            x = block(x)
        return x


class Encoder(nnx.Module):
    """Images to 2·channels numbers a latent pixel: mean, then log variance."""

    def __init__(self, config: AutoencoderConfig, *, dtype: str, rngs: nnx.Rngs) -> None:
        widths = config.widths
        self.conv_in = Conv(3, widths[0], 3, dtype=dtype, rngs=rngs)
        self.down_blocks = nnx.List(
            [
                DownLevel(widths[max(i - 1, 0)], width, config, last=i == len(widths) - 1, dtype=dtype, rngs=rngs)
                for i, width in enumerate(widths)
            ]
        )
        self.mid_block = Middle(widths[-1], config, dtype=dtype, rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], config.groups)
        self.conv_out = Conv(widths[-1], 2 * config.channels, 3, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w 2*channels"]:
        x = self.conv_in(images)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Raw latents to images."""

    def __init__(self, config: AutoencoderConfig, *, dtype: str, rngs: nnx.Rngs) -> None:
        widths = config.widths[::-1]
        self.conv_in = Conv(config.channels, widths[0], 3, dtype=dtype, rngs=rngs)
        self.mid_block = Middle(widths[0], config, dtype=dtype, rngs=rngs)
        self.up_blocks = nnx.List(
            [
                UpLevel(widths[max(i - 1, 0)], width, config, last=i == len(widths) - 1, dtype=dtype, rngs=rngs)
                for i, width in enumerate(widths)
            ]
        )
        self.conv_norm_out = GroupNorm(widths[-1], config.groups)
        self.conv_out = Conv(widths[-1], 3, 3, dtype=dtype, rngs=rngs)

    def __call__(self, z: Float[Array, "B h w channels"]) -> Float[Array, "B H W 3"]:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Network(nnx.Module):
    """Encoder and decoder. ``dtype`` is that of products ("float32" or "bfloat16"); parameters are float32."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs, dtype: str = "float32") -> None:
        both = 2 * config.channels
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)
        if config.quant_conv:
            self.quant_conv = Conv(both, both, 1, dtype=dtype, rngs=rngs)
        if config.post_quant_conv:
            self.post_quant_conv = Conv(config.channels, config.channels, 1, dtype=dtype, rngs=rngs)
        self.quantises = config.quant_conv, config.post_quant_conv

    def encode(
        self, images: Float[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B h w channels"], Float[Array, "B h w channels"]]:
        """Mean and log variance of the posterior, float32; the latter is clipped to [-30, 20]. Images in [-1, 1]."""
        mean, logvar = jnp.split(self.moments(images), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def moments(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w 2*channels"]:
        """Mean and log variance along the channels, float32, the latter not clipped."""
        moments = self.encoder(images)
        if self.quantises[0]:
            moments = self.quant_conv(moments)
        return moments.astype(jnp.float32)

    def decode(self, z: Float[Array, "B h w channels"]) -> Float[Array, "B H W 3"]:
        """Images float32, about within [-1, 1], of raw latents (before shift and scale)."""
        if self.quantises[1]:
            z = self.post_quant_conv(z)
        return self.decoder(z).astype(jnp.float32)


def abstract(config: AutoencoderConfig, dtype: str = "float32") -> Network:
    """The network with shapes in place of parameters: nothing is allocated."""
    return nnx.eval_shape(lambda: Network(config, rngs=nnx.Rngs(0), dtype=dtype))


def num_params(config: AutoencoderConfig) -> int:
    """Parameters of encoder and decoder together; nothing is allocated."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract(config), nnx.Param)))
