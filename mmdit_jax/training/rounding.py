"""Random rounding, by which what is averaged over many steps can be kept in 16 bits.

Moments and moving averages change by less, a step, than half of what two neighbouring bfloat16 numbers differ by:
rounded to the nearest they stand still. Rounded up or down at random, with the probability of how near each is, they
are right on average.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def round_at_random(x: Float[Array, "*axes"], key: jax.Array) -> Float[Array, "*axes"]:
    """``x`` (float32) as bfloat16, its expectation over keys ``x`` itself; infinities and NaN stay what they are."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    cut = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    # What is added stays below the next number of 16 bits, so the cast is exact.
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


def stored(tree: Any, dtype: str, key: jax.Array) -> Any:
    """The float32 arrays of ``tree`` in ``dtype``; scalars, and what is not float32, as they are."""
    if dtype == "float32":
        return tree
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    found = [round_at_random(leaf, k) if _narrows(leaf) else leaf for leaf, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, found)


def narrow(tree: Any, dtype: str) -> Any:
    """As ``stored``, rounded to the nearest: how a tree begins."""
    if dtype == "float32":
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if _narrows(leaf) else leaf, tree)


def widened(tree: Any) -> Any:
    """What ``stored`` made, as float32 again."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, tree)


def _narrows(leaf: jax.Array) -> bool:
    return leaf.dtype == jnp.float32 and leaf.ndim > 0
