"""Attention as plain matrix products, which every platform runs: XLA's own code, and the reference of the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mmdit_jax.models.attention.saved import SAVED

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Residuals = tuple[jax.Array, ...]


def plain_attention(
    q: Float[Array, "batch heads queries size"],
    k: Float[Array, "batch heads tokens size"],
    v: Float[Array, "batch heads tokens size"],
) -> Float[Array, "batch heads queries size"]:
    """softmax(q k^T / sqrt(size)) v, without a mask.

    Scores and softmax are float32 whatever the inputs' dtype; the result has the inputs' dtype. Batch and heads are
    merged into one batch axis: XLA's CPU backend runs that as plain batched matrix products, forward and backward,
    where ``jax.nn.dot_product_attention`` transposes around each of them.
    """
    batch, heads, _, size = q.shape
    merged = [x.reshape(batch * heads, -1, size) for x in (q, k, v)]
    return _attention(*merged).reshape(q.shape)


@jax.custom_vjp
def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return _forward(q, k, v)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Residuals]:
    """Divides by the softmax's denominator after the product with v, where there are fewer numbers to divide."""
    scores = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
    exponentials = jnp.exp((scores - jnp.max(scores, axis=-1, keepdims=True)) * _scale(q))
    inverse = 1.0 / jnp.sum(exponentials, axis=-1, keepdims=True)
    exponentials = exponentials.astype(v.dtype)
    out = jnp.einsum("bqk,bkc->bqc", exponentials, v, preferred_element_type=jnp.float32) * inverse
    out = out.astype(v.dtype)
    out, inverse = checkpoint_name(out, SAVED), checkpoint_name(inverse, SAVED)
    return out, (q, k, v, exponentials, inverse, out)


def _backward(residuals: Residuals, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """With weights w and scores s: ds = w (dw - sum w dw), and the sum over keys equals gradient . out."""
    q, k, v, exponentials, inverse, out = residuals
    scaled = gradient.astype(jnp.float32) * inverse
    mean = jnp.sum(scaled * out.astype(jnp.float32), axis=-1, keepdims=True)
    scaled = scaled.astype(v.dtype)
    dv = jnp.einsum("bqk,bqc->bkc", exponentials, scaled)
    dw = jnp.einsum("bqc,bkc->bqk", scaled, v, preferred_element_type=jnp.float32)
    ds = (exponentials.astype(jnp.float32) * (dw - mean) * _scale(q)).astype(q.dtype)
    return jnp.einsum("bqk,bkc->bqc", ds, k), jnp.einsum("bqk,bqc->bkc", ds, q), dv


def _scale(q: jax.Array) -> float:
    return float(q.shape[-1]) ** -0.5


_attention.defvjp(_forward, _backward)
