"""Eight-bit products: against their arithmetic in numpy, in every architecture, on a mesh, and what is kept of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_sharding
from conftest import on_fake_devices
from test_step import OPTIMIZER, batch

from experiments.quickstart import study as quickstart
from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.text_to_image import sampler_program
from mmdit_jax.models import MMDiTConfig, apply, init_params
from mmdit_jax.models.config import ARCHITECTURES, PRODUCTS
from mmdit_jax.models.parametrization import BLOCKS
from mmdit_jax.models.products import product, save_products
from mmdit_jax.parameter_sharding import COLUMNS, ROWS
from mmdit_jax.sharding import make_mesh
from mmdit_jax.training.state import init_state
from mmdit_jax.training.step import make_train_step

EIGHT_BITS = ("int8", "fp8")
BLOCK_KERNELS = [[name, "kernel"] for name in (*COLUMNS, *ROWS)]
MODEL = replace(test_sharding.MODEL, depth=2, heads=2, text_split=2)
SPREAD = replace(MODEL, products="int8")


def rounded(array: np.ndarray, kind: str, over: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers or floats of few bits, and the scale that each slice along ``over`` shares, by hand."""
    largest = {"int8": 127.0, "e4m3": 448.0, "e5m2": 57344.0}[kind]
    scale = np.abs(array).max(axis=over, keepdims=True) / np.float32(largest)
    scaled = array / scale
    if kind == "int8":
        return np.rint(scaled), scale
    bits, least = {"e4m3": (3, -6), "e5m2": (2, -14)}[kind]
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(scaled), 1e-30))), least)
    step = np.exp2(exponent - bits).astype(np.float32)
    return np.clip(np.rint(scaled / step) * step, -largest, largest), scale


@pytest.mark.parametrize("products", EIGHT_BITS)
@pytest.mark.parametrize("outputs", [(10,), (3, 5)])
def test_products_and_gradients_by_hand(products: str, outputs: tuple[int, ...]) -> None:
    """Kernels of one and of two output axes; rows, columns and tokens of very different size."""
    forward, backward = {"int8": ("int8", "int8"), "fp8": ("e4m3", "e5m2")}[products]
    rng = np.random.default_rng(len(outputs))
    x, kernel, gradient = (rng.normal(size=s).astype(np.float32) for s in ((4, 6, 7), (7, *outputs), (4, 6, *outputs)))
    x *= np.exp(rng.normal(size=(4, 6, 1))).astype(np.float32)
    kernel *= np.exp(rng.normal(size=(1, *outputs))).astype(np.float32)
    gradient *= np.exp(rng.normal(size=gradient.shape)).astype(np.float32)

    out, pull = jax.vjp(lambda x, k: product(x, k, products), x, kernel)
    x_gradient, kernel_gradient = pull(gradient)

    columns = int(np.prod(outputs))
    (a, by_token), (b, by_output) = rounded(x, forward, (2,)), rounded(kernel.reshape(7, columns), forward, (0,))
    g = gradient.reshape(4, 6, columns)
    expected = (a @ b * by_token * by_output).reshape(4, 6, *outputs)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    c, scale = rounded(g * by_output, backward, (2,))
    np.testing.assert_allclose(x_gradient, c @ b.T * scale, rtol=1e-5, atol=1e-5 * np.abs(c @ b.T * scale).max())
    c, scale = rounded(g * by_token, backward, (0, 1))
    expected = (np.einsum("bti,bto->io", a, c) * scale[0]).reshape(kernel.shape)
    np.testing.assert_allclose(kernel_gradient, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_rounding_errors_are_those_of_eight_bits() -> None:
    """Each factor is off by at most half a step, evenly spread: the error's square is what that predicts."""
    x, kernel = jax.random.normal(jax.random.key(0), (8, 64, 128)), jax.random.normal(jax.random.key(1), (128, 96))
    a, b = (np.abs(np.asarray(array, np.float64)) for array in (x, kernel))
    error = np.asarray(product(x, kernel, "int8") - jnp.matmul(x, kernel, precision="highest"))
    row, column = a.max(-1, keepdims=True) / 127, b.max(0, keepdims=True) / 127
    bound = (a + row / 2) @ np.broadcast_to(column / 2, b.shape) + np.broadcast_to(row / 2, a.shape) @ b
    assert (np.abs(error) <= bound + 1e-4).all()
    predicted = (row**2 * (b**2).sum(0) + (a**2).sum(-1, keepdims=True) * column**2) / 12
    assert (error**2).mean() == pytest.approx(predicted.mean(), rel=0.05)


def test_gradients_of_kernels_are_the_roughest() -> None:
    """What the documentation says of them, for images whose gradients are alike, and differ by e^(2z)."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, kernel = jax.random.normal(keys[0], (512, 64, 64)), jax.random.normal(keys[1], (64, 96))
    for spread, expected in ((0.0, {"int8": 0.014, "fp8": 0.06}), (2.0, {"int8": 0.067, "fp8": 0.057})):
        factor = jnp.exp(spread * jax.random.normal(keys[3], (512, 1, 1)))
        gradient = factor * jax.random.normal(keys[2], (512, 64, 96))
        exact = jnp.einsum("bti,bto->io", x, gradient, precision="highest")
        for products, error in expected.items():
            found = jax.vjp(lambda k, p=products: product(x, k, p), kernel)[1](gradient)[0]
            assert jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact) == pytest.approx(error, rel=0.1)


def inputs(model: MMDiTConfig, tokens: int = 5) -> tuple[jax.Array, ...]:
    shapes = ((2, 16, 16, model.in_channels), (2,), (2, tokens, model.context_dim), (2, model.pooled_dim))
    return tuple(jax.random.uniform(jax.random.key(i), shape) for i, shape in enumerate(shapes))


def params_of(model: MMDiTConfig) -> Any:
    """Without the zeros that would hide the blocks from the output."""
    params = init_params(model, jax.random.key(0))
    return jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(p.size), p.shape), params)


def dots(jaxpr: Any) -> Iterator[tuple[str, str]]:
    """Types of both factors of every product in a program, its inner ones included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(factor.aval.dtype.name for factor in equation.invars)  # type: ignore[misc]
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = value.jaxpr if hasattr(value, "jaxpr") else value
            if hasattr(inner, "eqns"):
                yield from dots(inner)


def dots_of_gradient(model: MMDiTConfig) -> list[tuple[str, str]]:
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    loss = lambda p: jnp.sum(apply(model, p, *inputs(model)) ** 2)  # noqa: E731
    return list(dots(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_multiply_in_eight_bits_and_nothing_else_does(architecture: str) -> None:
    """Three int8 products a kernel of the blocks, forward and backward; those of all other kernels stay float32."""
    full = replace(MODEL, architecture=architecture, dual_attention=int(architecture == "mmdit"))
    model = replace(full, products="int8")
    paths, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    layers = [[entry.key for entry in path] for path, _ in paths]
    ours = sum(set(names) & set(BLOCKS) != set() and names[-2:] in BLOCK_KERNELS for names in layers)
    before, after = dots_of_gradient(full), dots_of_gradient(model)
    assert before.count(("float32", "float32")) == len(before) == len(after)
    assert after.count(("int8", "int8")) == 3 * ours
    assert after.count(("float32", "float32")) == len(after) - 3 * ours > 0

    full = replace(full, depth=1)
    params = params_of(full)
    exact, rough = jax.jit(lambda p: [apply(m, p, *inputs(m)) for m in (full, replace(full, products="int8"))])(params)
    assert 1e-5 < jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact) < 0.05


@pytest.mark.parametrize("products", EIGHT_BITS)
def test_policies_of_rematerialisation_know_eight_bit_products(products: str) -> None:
    """ "dots" computes no product of the forward pass twice, "full" nearly all, and "none" keeps fewer bytes."""
    model = replace(MODEL, products=products, dtype="bfloat16")
    eight = [
        len([t for t in dots_of_gradient(replace(model, remat=r)) if "8" in t[0]]) for r in ("none", "dots", "full")
    ]
    assert eight[0] == eight[1] < eight[2]

    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))

    def kept(config: MMDiTConfig) -> int:
        _, saved = jax.eval_shape(lambda p: jax.vjp(lambda q: apply(config, q, *inputs(config)), p), params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved))

    full = replace(model, products="full")
    assert kept(model) < kept(full)
    assert kept(replace(model, remat="dots")) == kept(replace(full, remat="dots"))


@pytest.mark.parametrize("products", EIGHT_BITS)
@pytest.mark.parametrize("policy", [jax.checkpoint_policies.everything_saveable, save_products])
def test_what_is_kept_is_what_was_rounded(products: str, policy: Any) -> None:
    """JAX rounds kept floats once more, which the largest e4m3 do not survive."""
    x, kernel = jax.random.normal(jax.random.key(0), (2, 8, 16)), jax.random.normal(jax.random.key(1), (16, 16))
    loss = lambda x, k: jnp.sum(product(jnp.sin(x), k, products) ** 2)  # noqa: E731
    found = jax.jit(jax.grad(jax.checkpoint(loss, policy=policy), (0, 1)))(x, kernel)
    for ours, expected in zip(found, jax.jit(jax.grad(loss, (0, 1)))(x, kernel), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_training_falls_as_with_full_products() -> None:
    mesh, ends = make_mesh(), {}
    for products in PRODUCTS:
        model = replace(MODEL, depth=1, products=products)
        state, step = init_state(model, OPTIMIZER, 60, 0, mesh), make_train_step(model, OPTIMIZER, 60, 0.0, mesh)
        losses = []
        for _ in range(60):
            state, metrics = step(state, batch(), formulation("rf"), 0)
            losses.append(float(metrics["loss"]))
        ends[products] = np.mean(losses[:5]), np.mean(losses[-20:])
    first, last = ends["full"]
    assert last < 0.9 * first
    for products in EIGHT_BITS:
        assert ends[products][1] == pytest.approx(last, abs=0.05 * (first - last)), ends
        assert ends[products][1] != last


@pytest.mark.slow
def test_a_mesh_gives_the_losses_of_one_device() -> None:
    """Scales are of whole rows and columns wherever they lie; sums in another order cross a rounding here and there."""
    alone = test_sharding.losses({}, SPREAD)
    found = on_fake_devices(
        8, "test_products", "t.test_sharding.losses(dict(fsdp=2, tensor=2), t.SPREAD, accumulation=2)"
    )
    assert found == pytest.approx(alone, rel=1e-4)


def test_runs_made_before_keep_their_ids() -> None:
    run = quickstart().runs[0]
    assert len({replace(run, model=replace(run.model, products=products)).run_id for products in PRODUCTS}) == 3
    assert run.run_id == "d1-rf-74a98ee81c"
    scanned, left_open = (replace(run, model=replace(run.model, scan=scan)).run_id for scan in (True, None))
    assert scanned == left_open != run.run_id


def test_bad_values_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"products='int4': unknown; did you mean 'int8'"):
        replace(MODEL, products="int4")
    monkeypatch.setitem(sys.modules, "qwix", None)
    model = replace(MODEL, products="fp8")
    assert model.num_params() == MODEL.num_params()
    with pytest.raises(UserError, match=r"products='fp8': needs qwix; pip install qwix$"):
        make_train_step(model, replace(OPTIMIZER, b1=0.8), 6, 0.0, make_mesh())
    with pytest.raises(UserError, match="needs qwix"):
        sampler_program(model, True)
    with pytest.raises(UserError, match="needs qwix"):
        dots_of_gradient(model)
