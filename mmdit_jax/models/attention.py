"""Attention over the tokens of both streams at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def joint_attention(
    q: Float[Array, "batch heads tokens size"],
    k: Float[Array, "batch heads tokens size"],
    v: Float[Array, "batch heads tokens size"],
) -> Float[Array, "batch heads tokens size"]:
    """softmax(q k^T / sqrt(size)) v, without a mask: padding of the text is attended, as in SD3.

    Scores and softmax are float32 whatever the inputs' dtype; the result has the inputs' dtype. Batch and heads are
    merged into one batch axis: XLA's CPU backend runs that as plain batched matrix products, forward and backward,
    where ``jax.nn.dot_product_attention`` transposes around each of them.
    """
    batch, heads, tokens, size = q.shape

    def merge(x: jax.Array) -> jax.Array:
        return x.reshape(batch * heads, tokens, size)

    scores = jnp.einsum("bqc,bkc->bqk", merge(q) * size**-0.5, merge(k), preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bqk,bkc->bqc", weights, merge(v)).reshape(batch, heads, tokens, size)
