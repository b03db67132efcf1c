"""Attention by every implementation against the definition, at SD3's lengths and odd ones, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_fake_devices

from mmdit_jax.errors import UserError
from mmdit_jax.models.attention import attention_kind, attention_of_each, capability, joint_attention
from mmdit_jax.models.attention.kernels import BLOCKS, cudnn_attention, splash_block
from mmdit_jax.sharding import make_mesh, placed_on

LENGTHS = [154 + 256, 154 + 1024, 333 + 4096, 77, 391]
"""SD3's text and image tokens at 256, 512 and 1024 pixels; odd ones."""


def tensors(tokens: int, queries: int | None = None, heads: int = 2, size: int = 64, dtype: str = "float32") -> tuple:
    keys = jax.random.split(jax.random.key(tokens), 4)
    shapes = [queries or tokens, tokens, tokens, queries or tokens]
    return tuple(jax.random.normal(k, (1, heads, n, size)).astype(dtype) for k, n in zip(keys, shapes, strict=True))


def by_definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
    """Output, and the gradient of sum(output * g) by q, k, v, in float64 by the softmax's own Jacobian."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    by_weights = g @ v.swapaxes(-1, -2)
    by_scores = weights * (by_weights - (weights * by_weights).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return weights @ v, by_scores @ k, by_scores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ g


def by(attention: str, q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
    out, back = jax.vjp(lambda *x: joint_attention(*x, attention), q, k, v)
    return (out, *back(g))


def worst(found: tuple, expected: tuple) -> float:
    """The largest error of any, relative to the largest number of what it should be."""
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", LENGTHS)
def test_implementations_agree(tokens: int) -> None:
    """XLA's and Splash's (its program interpreted) with the definition, in float32; one head of the longest."""
    heads = 1 if tokens > 4000 else 2
    x = tensors(tokens, heads=heads)
    expected = by_definition(*x)
    assert worst(by("xla", *x), expected) < 2e-5
    assert worst(by("splash", *x), expected) < 2e-5


@pytest.mark.slow
def test_fewer_queries_than_tokens_and_sixteen_bits() -> None:
    """As in the last block, whose text only gives keys and values."""
    x = tensors(154 + 256, 256)
    expected = by_definition(*x)
    for attention in ("xla", "splash"):
        assert worst(by(attention, *x), expected) < 2e-5
        narrow = by(attention, *(item.astype(jnp.bfloat16) for item in x))
        assert {item.dtype.name for item in narrow} == {"bfloat16"} and worst(narrow, expected) < 3e-2


@pytest.mark.hardware
def test_the_platforms_own_kernel_agrees() -> None:
    """cuDNN on a GPU, Splash on a TPU, in bfloat16 against the definition on the rounded inputs."""
    kind = attention_kind("auto", "bfloat16", jax.default_backend(), 64, capability())
    if kind == "xla":
        pytest.skip("no accelerator with a kernel of its own: the platform's is XLA's")
    for tokens in LENGTHS:
        x = tensors(tokens, dtype="bfloat16")
        assert worst(by(kind, *x), by_definition(*(item.astype(jnp.float32) for item in x))) < 3e-2, tokens


def test_the_choice() -> None:
    choices = {
        ("auto", "bfloat16", "tpu", 64): "splash",
        ("auto", "float32", "tpu", 64): "splash",
        ("auto", "bfloat16", "gpu", 64): "cudnn",
        ("auto", "float32", "gpu", 64): "xla",
        ("auto", "bfloat16", "cpu", 64): "xla",
        ("xla", "bfloat16", "tpu", 64): "xla",
        ("splash", "float32", "cpu", 64): "splash-interpreted",
        **{("auto", "bfloat16", "gpu", size): "cudnn" for size in (8, 24, 72, 128)},
        **{("auto", "bfloat16", "gpu", size): "xla" for size in (4, 12, 100, 136, 256)},
        **{("auto", "float16", "gpu", 64, able): "cudnn" for able in ("8.0", "8.6", "9.0", "12.1", None)},
        **{("auto", "float16", "gpu", 64, unable): "xla" for unable in ("7.5", "6.0", "gfx942", "gfx90a")},
        ("xla", "bfloat16", "gpu", 100, "7.5"): "xla",
        ("cudnn", "bfloat16", "gpu", 64, "9.0"): "cudnn",
    }
    for asked, kind in choices.items():
        assert attention_kind(*asked) == kind
    for asked, says in (
        (("cudnn", "bfloat16", "cpu", 64), "runs on GPUs in bfloat16, this is cpu"),
        (("cudnn", "float32", "gpu", 64), "this is gpu in float32"),
        (("cudnn", "bfloat16", "gpu", 100), "a multiple of 8 up to 128, this is head_size=100"),
        (("cudnn", "bfloat16", "gpu", 136), "a multiple of 8 up to 128, this is head_size=136"),
        (("cudnn", "bfloat16", "gpu", 64, "7.5"), "compute capability 8.0 or more, this is 7.5"),
        (("cudnn", "bfloat16", "gpu", 64, "gfx942"), "runs on NVIDIA's GPUs .*, this is gfx942"),
        (("splash", "bfloat16", "gpu", 64), "runs on TPUs, this is gpu"),
    ):
        with pytest.raises(UserError, match=says):
            attention_kind(*asked)


def test_what_jax_refuses_on_any_gpu_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX's own check of shapes, as on a GPU before Hopper, has nothing to say of what ``auto`` gives to cuDNN."""
    import jax._src.cudnn.fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: capability == "8.0")
    layout = fused.AttentionLayout.BTNH.value
    for size in range(1, 300):
        row = jax.ShapeDtypeStruct((1, 77, 2, size), jnp.bfloat16)
        try:
            fused.check_is_flash_attention(row, row, row, layout, 91000, False, True)
            runs = "cudnn"
        except NotImplementedError:
            runs = "xla"
        assert attention_kind("auto", "bfloat16", "gpu", size, "8.0") == runs, size


@pytest.mark.parametrize(("queries", "tokens"), [(77, 77), (39, 410), (154, 391), (5, 5), (16, 20)])
def test_cudnn_is_given_even_numbers_of_tokens(queries: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX refuses the gradient of odd ones. XLA computes what cuDNN is asked for here."""
    ask, asked = jax.nn.dot_product_attention, []

    def by_xla(*rows: jax.Array, implementation: str, **options: object) -> jax.Array:
        asked.extend(row.shape[1] for row in rows)
        assert implementation == "cudnn"
        return ask(*rows, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    q, k, v, g = tensors(tokens, queries)
    out, back = jax.vjp(cudnn_attention, q, k, v)
    assert worst((out, *back(g)), by_definition(q, k, v, g)) < 2e-5
    assert asked == [queries + queries % 2, *[tokens + tokens % 2] * 2]


def test_blocks_pad_least() -> None:
    for tokens in (*LENGTHS, 256, 4250, 1):
        block = splash_block(tokens)
        padded = -(-tokens // block) * block
        assert all(padded <= -(-tokens // other) * other for other in BLOCKS) and block % 128 == 0
    assert splash_block(410) == 512 and splash_block(256) == 256


def spread() -> list[float]:
    """Errors on meshes of 8, where neither batch, queries nor heads are what one device has; and of both forms."""
    q, k, v, g = (jnp.concatenate([x, 1.5 * x, -x]) for x in tensors(45, 39, heads=4, size=16))
    expected = by_definition(q, k, v, g)
    errors = []
    for axes in ({"fsdp": 2, "sequence": 2, "tensor": 2}, {"sequence": 4}, {"fsdp": 8}, {"tensor": 4}):
        mesh = make_mesh(**axes)

        def run(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, mesh: object = mesh) -> tuple:
            with placed_on(mesh):
                apart = attention_of_each([q[:, :, :30], q[:, :, 30:]], k, v, "xla")
                return (*by("xla", q, k, v, g), jnp.concatenate(apart, axis=2))

        found = jax.device_get(jax.jit(run)(q, k, v, g))
        errors.append(worst(found, (*expected, expected[0])))
    return errors


@pytest.mark.slow
def test_a_mesh_changes_nothing() -> None:
    assert max(on_fake_devices(8, "test_attention", "t.spread()")) < 2e-5


def heads_that_do_not_divide() -> str:
    mesh = make_mesh(tensor=8)
    q, k, v, _ = tensors(8, heads=4, size=16)
    try:
        with placed_on(mesh):
            joint_attention(q, k, v)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_heads_that_do_not_divide_are_told() -> None:
    told = on_fake_devices(8, "test_attention", "t.heads_that_do_not_divide()")
    assert told == "tensor=8: does not divide the 4 heads; use a divisor of 4"
