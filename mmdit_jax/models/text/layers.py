"""What CLIP's and T5's layers are made of: products, norms, attention, activations. Pure functions of weights.

Weights keep transformers' orientation, [out, in], and the dtype they were loaded in; matrix products take that dtype
and add up in float32. Everything else (the residual stream, norms, softmax) is float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # OpenCLIP
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),  # T5 v1.1, who calls it gated-gelu
}
"""By the name that transformers' configurations give them."""

# The default of a GPU or TPU would round float32 factors to fewer bits. For bfloat16 factors it changes nothing.
_product = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)


def linear(
    x: Float[Array, "batch tokens inputs"],
    weight: Float[Array, "outputs inputs"],
    bias: Float[Array, " outputs"] | None = None,
) -> Float[Array, "batch tokens outputs"]:
    """x @ weight.T + bias, float32."""
    # Tokens of all rows in one product: on a CPU, faster than a batched one.
    flat = x.reshape(-1, x.shape[-1]).astype(weight.dtype)
    out = _product("ti,oi->to", flat, weight).reshape(*x.shape[:-1], -1)
    return out if bias is None else out + bias.astype(jnp.float32)


def layer_norm(
    x: Float[Array, "*axes width"], weight: Float[Array, " width"], bias: Float[Array, " width"], eps: float
) -> Float[Array, "*axes width"]:
    """LayerNorm over the channels, float32."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + eps)
    return unit * weight.astype(jnp.float32) + bias.astype(jnp.float32)


def rms_norm(x: Float[Array, "*axes width"], weight: Float[Array, " width"], eps: float) -> Float[Array, "*axes width"]:
    """T5's norm: no mean is taken off, no bias added; float32."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps) * weight.astype(jnp.float32)


def attention(
    q: Float[Array, "batch tokens inner"],
    k: Float[Array, "batch tokens inner"],
    v: Float[Array, "batch tokens inner"],
    *,
    heads: int,
    scale: float,
    bias: Float[Array, "... tokens tokens"],
    dtype: jnp.dtype,
) -> Float[Array, "batch tokens inner"]:
    """softmax(q k^T scale + bias) v, by heads. ``bias`` is [tokens, tokens] or [heads, tokens, tokens], float32.

    The products take ``dtype``; scores, softmax and the result are float32.
    """
    batch, tokens, inner = q.shape
    split = (x.reshape(batch, tokens, heads, inner // heads).transpose(0, 2, 1, 3).astype(dtype) for x in (q, k, v))
    queries, keys, values = split
    scores = _product("bhqc,bhkc->bhqk", queries, keys) * scale + bias
    mixed = _product("bhqk,bhkc->bhqc", jax.nn.softmax(scores, axis=-1).astype(dtype), values)
    return mixed.transpose(0, 2, 1, 3).reshape(batch, tokens, inner)
