"""The layers with backward passes of their own, against what autodiff makes of the plain formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdit_jax.models.attention import joint_attention
from mmdit_jax.models.layers import dense, gelu, modulated_norm, rms_norm, rows_in_parts

PRECISION = pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("bfloat16", 2e-2)])


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return 2 * jax.random.normal(jax.random.fold_in(jax.random.key(seed), sum(shape)), shape)


def compare(
    function: Callable[..., Any], plain: Callable[..., Any], dtype: str, tolerance: float, *inputs: Any
) -> None:
    """Values and gradients of ``function`` in ``dtype`` are those of ``plain`` in float32, relative to the largest."""

    def gradients(f: Callable[..., Any], arguments: list[jax.Array]) -> list[jax.Array]:
        weight = normal(*f(*arguments).shape, seed=9)
        return list(jax.grad(lambda a: jnp.sum(weight * f(*a).astype(jnp.float32)))(arguments))

    cast = [x.astype(dtype) for x in inputs]
    exact = [x.astype("float32") for x in cast]
    got = [function(*cast), *gradients(function, cast)]
    expected = [plain(*exact), *gradients(plain, exact)]
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == jnp.dtype(dtype)
        assert np.abs(np.asarray(ours, np.float32) - theirs).max() < tolerance * np.abs(theirs).max()


@PRECISION
@pytest.mark.parametrize("queries", [37, 21])
def test_attention(dtype: str, tolerance: float, queries: int) -> None:
    def plain(*qkv: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(*(x.swapaxes(1, 2) for x in qkv)).swapaxes(1, 2)

    q, k, v = normal(3, 2, queries, 16), normal(3, 2, 37, 16, seed=1), normal(3, 2, 37, 16, seed=2)
    compare(joint_attention, plain, dtype, tolerance, q, k, v)


def test_attention_survives_scores_that_overflow_an_exponential() -> None:
    q = jnp.full((1, 1, 4, 8), 40.0)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(joint_attention(x, x, x)))(q)
    np.testing.assert_allclose(value, jnp.sum(q), rtol=1e-6)  # equal values: any weights that sum to one give them
    assert np.isfinite(gradient).all()


@PRECISION
@pytest.mark.parametrize("rows", [5, 700])  # below and above the number from which a sum is a product with ones
def test_dense(dtype: str, tolerance: float, rows: int) -> None:
    compare(dense, lambda x, w, b: jnp.dot(x, w) + b, dtype, tolerance, normal(rows, 24), normal(24, 40), normal(40))


@PRECISION
def test_gelu(dtype: str, tolerance: float) -> None:
    def plain(x: jax.Array) -> jax.Array:
        return 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    compare(gelu, plain, dtype, tolerance, jnp.linspace(-12.0, 12.0, 999))


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("size", [16, 64, 97, 192])  # one part, four, a prime number, eight
def test_rms_norm(size: int, in_parts: bool) -> None:
    def plain(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale

    with rows_in_parts(in_parts):
        compare(rms_norm, plain, "float32", 2e-6, normal(3, 2, 19, size), normal(size))


@PRECISION
@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("size", [16, 64, 97, 192])
def test_modulated_norm(dtype: str, tolerance: float, size: int, in_parts: bool) -> None:
    def plain(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
        normed = jax.nn.standardize(x, epsilon=1e-6)
        return normed * (1 + scale[:, None]) + shift[:, None]

    x = 3 + normal(5, 7, size)
    with rows_in_parts(in_parts):
        compare(modulated_norm, plain, dtype, tolerance, x, normal(5, size), normal(5, size, seed=1))


def test_rows_in_parts_changes_the_sums_and_ends() -> None:
    x = jnp.ones((4, 128))
    whole = str(jax.make_jaxpr(lambda x: rms_norm(x, jnp.ones(128)))(x))
    with rows_in_parts(True):
        parts = str(jax.make_jaxpr(lambda x: rms_norm(x, jnp.ones(128)))(x))
    assert "slice" in parts
    assert "slice" not in whole
    assert str(jax.make_jaxpr(lambda x: rms_norm(x, jnp.ones(128)))(x)) == whole


def test_rms_norm_keeps_the_scale_in_float32() -> None:
    x, scale = normal(3, 2, 19, 16).astype("bfloat16"), normal(16)
    assert rms_norm(x, scale).dtype == jnp.bfloat16
    gradients = jax.grad(lambda x, s: jnp.sum(rms_norm(x, s).astype(jnp.float32)), argnums=(0, 1))(x, scale)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
