"""Blocks of the networks beside the MMDiT, written again in numpy."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.signal import correlate
from test_architectures import TINY, noisy_params, run
from test_mmdit import inputs

from mmdit_jax.models import MMDiTConfig
from mmdit_jax.models.architectures.crossdit import Block
from mmdit_jax.models.architectures.uvit import neighbours
from mmdit_jax.models.positions import sincos_positions, timestep_features


def dense(x: np.ndarray, layer: dict) -> np.ndarray:
    return x @ layer["kernel"] + layer["bias"]


def normed(x: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * (1 + scale) + shift


def rms(x: np.ndarray, layer: dict) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer["scale"]


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, norms: tuple[dict, dict]) -> np.ndarray:
    """One image, head by head: [queries, width], [tokens, width] x 2 -> [queries, width]."""
    size, parts = q.shape[-1] // heads, []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = rms(q[:, own], norms[0]) @ rms(k[:, own], norms[1]).T / np.sqrt(size)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        parts.append(weights / weights.sum(-1, keepdims=True) @ v[:, own])
    return np.concatenate(parts, axis=-1)


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def as_numpy(tree: dict) -> dict:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def test_crossdit_block_in_numpy() -> None:
    config = replace(TINY, architecture="crossdit", depth=1, heads=3)
    params = noisy_params(config)
    rng = np.random.default_rng(0)
    x, text, y = rng.normal(size=(7, 24)), rng.normal(size=(4, 24)), rng.normal(size=24)
    weights = jax.tree.map(lambda leaf: leaf[0], params["blocks"])
    ours = block_output(Block, config, weights, x, text, y)

    w = as_numpy(weights)
    latent, cross = w["latent"], w["text"]
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = np.split(dense(y, latent["modulation"]), 6)
    q, k, v = np.split(dense(normed(x, shift, scale), latent["qkv"]), 3, axis=-1)
    h = x + gate * dense(attention(q, k, v, 3, (latent["norm_q"], latent["norm_k"])), latent["out"])
    k, v = np.split(dense(text, cross["cross_kv"]), 2, axis=-1)
    h = h + dense(
        attention(dense(h, cross["cross_q"]), k, v, 3, (cross["norm_q"], cross["norm_k"])), cross["cross_out"]
    )
    hidden = tanh_gelu(dense(normed(h, mlp_shift, mlp_scale), latent["up"]))
    expected = h + mlp_gate * dense(hidden, latent["down"])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def block_output(module: type, config: MMDiTConfig, weights: dict, *arrays: np.ndarray, **options) -> np.ndarray:
    """One block on one image."""
    graph, state = nnx.split(nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0), **options.pop("init", {}))))
    nnx.replace_by_pure_dict(state, weights)
    batched = [jnp.asarray(array, jnp.float32)[None] for array in arrays]
    return np.asarray(nnx.merge(graph, state)(*batched, **options))[0]


def test_neighbours_make_a_convolution() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    ours = neighbours(x.reshape(2, 30, 3), 5) @ kernel.reshape(27, 4)
    np.testing.assert_allclose(ours.reshape(2, 5, 6, 4), expected, atol=1e-5)


def test_uvit_written_again_with_convolutions() -> None:
    """The whole network in numpy and scipy's convolution, block by block, on one image."""
    config = replace(TINY, architecture="uvit", depth=2, heads=3, patch_size=1)
    params = noisy_params(config)
    arguments = inputs(config, batch=1, size=6)
    ours = np.asarray(run(config, params, *arguments))[0]

    p = as_numpy(params)
    latents, _, context, pooled = (np.asarray(x, np.float64) for x in arguments)
    time, text_mlp = p["time"], p["pooled"]
    features = np.asarray(timestep_features(arguments[1]), np.float64)
    embedded = dense(silu(dense(features, time["up"])), time["down"])
    y = silu(embedded + dense(silu(dense(pooled, text_mlp["up"])), text_mlp["down"]))[0]

    def conv(x: np.ndarray, layer: dict) -> np.ndarray:
        kernel = layer["kernel"].reshape(3, 3, x.shape[-1], -1)
        whole = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        return np.stack([correlate(whole, k, "valid")[..., 0] for k in np.moveaxis(kernel, -1, 0)], -1) + layer["bias"]

    def residual(x: np.ndarray, w: dict, shortcut: np.ndarray) -> np.ndarray:
        shift, scale, gate = np.split(dense(y, w["modulation"]), 3)
        h = conv(silu(normed(x, 0, 0)), w["conv_in"])
        return shortcut + gate * conv(silu(normed(h, shift, scale)), w["conv_out"])

    def transformer(x: np.ndarray, w: dict) -> np.ndarray:
        shift, scale, gate, *mlp = np.split(dense(y, w["modulation"]), 6)
        q, k, v = np.split(dense(normed(x, shift, scale), w["qkv"]), 3, axis=-1)
        x = x + gate * dense(attention(q, k, v, 3, (w["norm_q"], w["norm_k"])), w["out"])
        return x + mlp[2] * dense(tanh_gelu(dense(normed(x, *mlp[:2]), w["up"])), w["down"])

    part = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)  # noqa: E731
    x, skips = dense(latents[0], p["patch"]), []
    for i in range(2):
        x = residual(x, part(p["descent"]["blocks"], i), x)
        skips.append(x)
    merged = [[x[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(-1) for c in range(3)] for r in range(3)]
    middle = dense(np.array(merged).reshape(9, -1), p["merge"])
    middle = middle + np.asarray(sincos_positions(3, 3, config.width, config.position_table))
    tokens = np.concatenate([middle, dense(context[0], p["context"])])
    tokens = transformer(tokens, part(p["blocks"]["tokens"], 0))
    tokens = transformer(tokens, p["last"]["tokens"])
    split = dense(tokens[:9], p["split"]).reshape(3, 3, 2, 2, -1)
    x = np.concatenate([np.concatenate(list(row), axis=1) for row in split], axis=0)
    for i in range(2):
        w = part(p["ascent"]["blocks"], i)
        both = np.concatenate([x, skips.pop()], axis=-1)
        x = residual(both, w, dense(both, w["shortcut"]))
    shift, scale = np.split(dense(y, p["final_modulation"]), 2)
    expected = dense(normed(x, shift, scale), p["final"])
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
