"""The pieces of a block: dense layers, norms, modulation. NNX modules hold parameters; the rest are functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

NORM_EPS = 1e-6


class Dense(nnx.Module):
    """x @ kernel + bias over the last axis. Kernel [in, out] and bias [out] are float32, the product is in ``dtype``.

    Args:
      init: "xavier" (uniform), "normal" (standard deviation 0.02, the conditioning MLPs) or "zeros" (layers that gate
        or end the network), as DiT (arXiv 2212.09748) initialises them. Biases are zero.
    """

    def __init__(self, features_in: int, features_out: int, *, dtype: str, init: str, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(_INITS[init](rngs.params(), (features_in, features_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*axes features_in"]) -> Float[Array, "*axes features_out"]:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        # Tokens of all images in one matrix product: batched products of [batch, tokens, width] are slower on CPU.
        flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
        return (flat @ kernel + bias).reshape(*x.shape[:-1], kernel.shape[-1])


_INITS = {
    "xavier": jax.nn.initializers.xavier_uniform(),
    "normal": jax.nn.initializers.normal(0.02),
    "zeros": jax.nn.initializers.zeros,
}


class ConditionMLP(nnx.Module):
    """Dense, SiLU, Dense: the embedding of the timestep, and that of the pooled text."""

    def __init__(self, features_in: int, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.up = Dense(features_in, width, dtype=dtype, init="normal", rngs=rngs)
        self.down = Dense(width, width, dtype=dtype, init="normal", rngs=rngs)

    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch width"]:
        return self.down(jax.nn.silu(self.up(x)))


class HeadNorm(nnx.Module):
    """RMSNorm over the channels of a head, in float32, with a learnable scale that all heads share."""

    def __init__(self, head_size: int) -> None:
        self.scale = nnx.Param(jnp.ones((head_size,), jnp.float32))

    def __call__(self, x: Float[Array, "*axes size"]) -> Float[Array, "*axes size"]:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + NORM_EPS)
        return (normed * self.scale[...]).astype(x.dtype)


def modulated_norm(
    x: Float[Array, "batch tokens width"], shift: Float[Array, "batch width"], scale: Float[Array, "batch width"]
) -> Float[Array, "batch tokens width"]:
    """LayerNorm without learnable affine (eps 1e-6, statistics in float32), then x (1 + scale) + shift per image."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + NORM_EPS)
    modulated = normed * (1 + scale.astype(jnp.float32)[:, None]) + shift.astype(jnp.float32)[:, None]
    return modulated.astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, as the reference model computes it."""
    return jax.nn.gelu(x, approximate=True)
