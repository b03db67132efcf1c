"""The pieces of a block: dense layers, norms, modulation. NNX modules hold parameters; the rest are functions."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from mmdit_jax.models.products import product
from mmdit_jax.sharding import current_mesh, place, platform

if TYPE_CHECKING:
    from jaxtyping import Array, Float

NORM_EPS = 1e-6


class Dense(nnx.Module):
    """x @ kernel + bias over the last axis. Kernel [in, out] and bias [out] are float32, the product is in ``dtype``.

    Args:
      init: "xavier" (uniform), "normal" (standard deviation 0.02, the conditioning MLPs) or "zeros" (layers that gate
        or end the network), as DiT (arXiv 2212.09748) initialises them. Biases are zero.
      scale: of the initial kernel (see ``models.parametrization``).
      products: "full", or eight-bit ones (see ``models.products``).
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        dtype: str,
        init: str,
        rngs: nnx.Rngs,
        scale: float = 1.0,
        products: str = "full",
    ) -> None:
        kernel = _INITS[init](rngs.params(), (features_in, features_out), jnp.float32)
        self.kernel = nnx.Param(kernel if scale == 1 else scale * kernel)
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32))
        self.dtype, self.products = dtype, products

    def __call__(self, x: Float[Array, "*axes features_in"]) -> Float[Array, "*axes features_out"]:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        if self.products != "full":
            return product(x.astype(self.dtype), kernel, self.products) + bias
        if not on_one_cpu():
            return x.astype(self.dtype) @ kernel + bias
        # Tokens of all images in one matrix product: batched products of [batch, tokens, width] are slower on CPU.
        flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
        return dense(flat, kernel, bias).reshape(*x.shape[:-1], kernel.shape[-1])

    def parts(self, x: Float[Array, "*axes features_in"], count: int) -> Float[Array, "*axes count part"]:
        """The outputs in ``count`` equal parts side by side; over ``tensor``, each device has its share of each."""
        if on_one_cpu():
            return self(x).reshape(*x.shape[:-1], count, -1)
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        # ``parameter_sharding.gathered`` has taken it apart where there are several devices along ``tensor``.
        apart = kernel if kernel.ndim == 3 else kernel.reshape(len(kernel), count, -1)
        apart = place(apart, None, None, "heads")
        x = x.astype(self.dtype)
        out = jnp.einsum("...i,ipo->...po", x, apart) if self.products == "full" else product(x, apart, self.products)
        return out + bias.reshape(count, -1)


def on_one_cpu() -> bool:
    """Whether the program traced is of one CPU device, whose matrix products are written to suit it."""
    return platform() == "cpu" and current_mesh() is None


_INITS = {
    "xavier": jax.nn.initializers.xavier_uniform(),
    "normal": jax.nn.initializers.normal(0.02),
    "zeros": jax.nn.initializers.zeros,
}


@jax.custom_vjp
def dense(
    x: Float[Array, "rows features_in"], kernel: Float[Array, "features_in features_out"], bias: Float[Array, " out"]
) -> Float[Array, "rows features_out"]:
    """x @ kernel + bias, with a backward pass that suits a CPU."""
    return x @ kernel + bias


# From this many rows on, a sum over them is faster as a product with ones.
_MANY_ROWS = 512


def _dense_forward(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel + bias, (x, kernel)


def _dense_backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel = residuals
    kernel_gradient = x.T @ gradient
    if len(x) < _MANY_ROWS:
        return gradient @ kernel.T, kernel_gradient, jnp.sum(gradient, axis=0, dtype=jnp.float32).astype(gradient.dtype)
    ones = jnp.ones((1, len(gradient)), gradient.dtype)
    bias_gradient = jnp.matmul(after(ones, kernel_gradient), gradient, preferred_element_type=jnp.float32)
    x_gradient = gradient @ after(kernel, bias_gradient).T
    return x_gradient, kernel_gradient, bias_gradient[0].astype(gradient.dtype)


def after(value: jax.Array, other: jax.Array) -> jax.Array:
    """``value`` (NaN if ``other`` begins with a non-finite number), not to be had before ``other`` is computed.

    XLA puts weight gradients off until the norm of all of them is due, when what they are made from has left the
    caches: such a product then takes up to 1.7 times as long. Its scheduler on CPU ignores optimization barriers.
    """
    return value + (0 * other[(0,) * other.ndim]).astype(value.dtype)


dense.defvjp(_dense_forward, _dense_backward)


class ConditionMLP(nnx.Module):
    """Dense, SiLU, Dense: the embedding of the timestep, and that of the pooled text. ``scale`` is of the second."""

    def __init__(self, features_in: int, width: int, *, dtype: str, rngs: nnx.Rngs, scale: float = 1.0) -> None:
        self.up = Dense(features_in, width, dtype=dtype, init="normal", rngs=rngs)
        self.down = Dense(width, width, dtype=dtype, init="normal", rngs=rngs, scale=scale)

    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch width"]:
        return self.down(jax.nn.silu(self.up(x)))


class HeadNorm(nnx.Module):
    """RMSNorm over the channels of a head, in float32, with a learnable scale that all heads share."""

    def __init__(self, head_size: int) -> None:
        self.scale = nnx.Param(jnp.ones((head_size,), jnp.float32))

    def __call__(self, x: Float[Array, "*axes size"]) -> Float[Array, "*axes size"]:
        return rms_norm(x, self.scale[...])


@jax.custom_vjp
def rms_norm(x: Float[Array, "*axes size"], scale: Float[Array, " size"]) -> Float[Array, "*axes size"]:
    """x / sqrt(mean x^2 + 1e-6) * scale over the last axis, computed in float32; the result has the dtype of x."""
    return _rms_forward(x, scale)[0]


def _rms_forward(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(row_mean(wide**2) + NORM_EPS)
    return (wide * inverse * scale).astype(x.dtype), (x, inverse, scale)


def _rms_backward(
    residuals: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """With n = x / rms: dscale = sum g n, dx = (g scale - n mean(g scale n)) / rms. One product serves both sums."""
    x, inverse, scale = residuals
    wide, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
    product = gradient * wide * inverse
    along = row_mean(product * scale)
    x_gradient = inverse * (gradient * scale - wide * (inverse * along))
    return x_gradient.astype(x.dtype), jnp.sum(product, axis=tuple(range(x.ndim - 1)))


rms_norm.defvjp(_rms_forward, _rms_backward)


def modulations(layer: Dense, condition: Float[Array, "batch width"], count: int) -> list[Float[Array, "batch part"]]:
    """``count`` equal parts of the layer's output, those of an image whole on each device that has it.

    Split where the kernel lies, parts would have to move.
    """
    return jnp.split(place(layer(condition), "batch", None), count, axis=-1)


@jax.custom_vjp
def modulated_norm(
    x: Float[Array, "batch tokens width"], shift: Float[Array, "batch width"], scale: Float[Array, "batch width"]
) -> Float[Array, "batch tokens width"]:
    """LayerNorm without learnable affine (eps 1e-6, statistics in float32), then x (1 + scale) + shift per image."""
    return _norm_forward(x, shift, scale)[0]


def _norm_forward(x: jax.Array, shift: jax.Array, scale: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    wide = x.astype(jnp.float32)
    mean = row_mean(wide)
    inverse = jax.lax.rsqrt(row_mean((wide - mean) ** 2) + NORM_EPS)
    modulated = (wide - mean) * inverse * (1 + scale.astype(jnp.float32)[:, None]) + shift.astype(jnp.float32)[:, None]
    return modulated.astype(x.dtype), (x, mean, inverse, scale)


def _norm_backward(residuals: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """With n = (x - mean) / std and h = g (1 + scale): dx = (h - mean(h) - n mean(h n)) / std."""
    x, mean, inverse, scale = residuals
    gradient = gradient.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * inverse
    scaled = gradient * (1 + scale.astype(jnp.float32)[:, None])
    x_gradient = inverse * (scaled - row_mean(scaled) - normed * row_mean(scaled * normed))
    shift_gradient, scale_gradient = jnp.sum(gradient, axis=1), jnp.sum(gradient * normed, axis=1)
    return x_gradient.astype(x.dtype), shift_gradient.astype(scale.dtype), scale_gradient.astype(scale.dtype)


modulated_norm.defvjp(_norm_forward, _norm_backward)


def row_mean(x: Float[Array, "*axes size"]) -> Float[Array, "*axes 1"]:
    """The mean over the last axis, which is kept with size 1."""
    size = x.shape[-1]
    parts = max((n for n in range(1, 9) if size % n == 0 and size // n >= 16), default=1)
    if parts == 1 or not _IN_PARTS.get():
        return jnp.mean(x, axis=-1, keepdims=True)
    part = size // parts
    total = functools.reduce(jnp.add, [x[..., i * part : (i + 1) * part] for i in range(parts)])
    return jnp.sum(total, axis=-1, keepdims=True) / size


_IN_PARTS = contextvars.ContextVar("rows are added up in parts", default=False)


@contextlib.contextmanager
def rows_in_parts(enabled: bool) -> Iterator[None]:
    """What is traced in here takes the mean of a row from the sum of its parts, up to eight of at least 16 numbers.

    XLA's own code on CPU adds up a row number by number, but parts as vectors: 3 % of a training step. Its library for
    sums (YNNPACK), which it does without where oneDNN has the products, is faster with whole rows. (The backward pass
    of parts would be slower: functions that use ``row_mean`` bring their own.)
    """
    token = _IN_PARTS.set(enabled)
    try:
        yield
    finally:
        _IN_PARTS.reset(token)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, as the reference model computes it. Keeps x alone for the backward pass, not tanh(...)."""
    return jax.nn.gelu(x, approximate=True)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    tanh = jnp.tanh(root * wide * (1 + cubic * wide**2))
    slope = 0.5 * (1 + tanh) + 0.5 * wide * (1 - tanh**2) * root * (1 + 3 * cubic * wide**2)
    return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)
