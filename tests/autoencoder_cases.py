"""Tiny autoencoders, their inputs, and what our network makes of them: shared by goldens and live parity tests."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from deterministic import values, weights
from flax import nnx

from mmdit_jax.models.autoencoder.config import AutoencoderConfig
from mmdit_jax.models.autoencoder.names import flip, from_torch, shapes, tensor_name
from mmdit_jax.models.autoencoder.network import Network, abstract
from mmdit_jax.models.autoencoder.tiles import tiled

CONFIGS = {
    # As SD3's with one layer, and as SD1's with fewer levels and no attention.
    "sd3": AutoencoderConfig(channels=6, widths=(8, 12, 12, 16), layers=1, groups=2, image_size=64),
    "sd1": AutoencoderConfig(
        channels=3,
        widths=(12, 6),
        groups=3,
        attention=False,
        quant_conv=True,
        post_quant_conv=True,
        shift=0.0,
        scale=0.18215,
        image_size=16,
    ),
}
LATENTS = {"sd3": (5, 3), "sd1": (11, 7)}
"""Height and width of the latents, odd and not square."""
TILED_LATENTS = {"sd3": (10, 5), "sd1": (10, 14)}
"""Larger than a tile of 8, one way and both; the last tiles are smaller than the others."""
BATCH = 2


def golden(name: str) -> Path:
    """Where the outputs and gradient sketches of a case are kept."""
    return Path(__file__).parent / "goldens" / f"autoencoder_{name}.npz"


def tensors(name: str) -> dict[str, np.ndarray]:
    """Weights under diffusers' names."""
    return weights(shapes(CONFIGS[name]))


def inputs(name: str) -> dict[str, np.ndarray]:
    """Images, latents and directions of gradients, NHWC float32."""
    config, (h, w), (tall, wide) = CONFIGS[name], LATENTS[name], TILED_LATENTS[name]
    f, c = config.factor, config.channels
    return {
        "images": values(f"{name}/images", (BATCH, h * f, w * f, 3), 0.5),
        "z": values(f"{name}/z", (BATCH, h, w, c)),
        "tiled_images": values(f"{name}/tiled_images", (1, tall * f, wide * f, 3), 0.5),
        "tiled_z": values(f"{name}/tiled_z", (1, tall, wide, c)),
        "to_mean": values(f"{name}/to_mean", (BATCH, h, w, c)),
        "to_logvar": values(f"{name}/to_logvar", (BATCH, h, w, c)),
        "to_images": values(f"{name}/to_images", (BATCH, h * f, w * f, 3)),
    }


def network(name: str) -> Network:
    """Our network with these weights."""
    model = abstract(CONFIGS[name])
    from_torch(model, tensors(name))
    return model


def outputs(name: str) -> dict[str, np.ndarray]:
    """What our network gives: mean, logvar, images, and the same in tiles; NHWC float32."""
    given, config = inputs(name), CONFIGS[name]
    graph, state = nnx.split(network(name))
    moments = jax.jit(lambda x: nnx.merge(graph, state).moments(x))
    decode = jax.jit(lambda z: nnx.merge(graph, state).decode(z))
    side, tile = config.image_size, config.image_size // config.factor
    mean, logvar = jax.jit(lambda x: nnx.merge(graph, state).encode(x))(given["images"])
    return {
        "mean": np.asarray(mean),
        "logvar": np.asarray(logvar),
        "decoded": np.asarray(decode(given["z"])),
        "tiled_moments": tiled(lambda x: np.asarray(moments(x)), given["tiled_images"], side, tile),
        "tiled_decoded": tiled(lambda z: np.asarray(decode(z)), given["tiled_z"], tile, side),
    }


def gradients(name: str) -> dict[str, np.ndarray]:
    """Of Σ mean·d₁ + Σ logvar·d₂ and Σ decoded·d₃: by tensor under diffusers' name and layout, and by input (NHWC)."""
    given = {key: jnp.asarray(value) for key, value in inputs(name).items()}
    graph, state = nnx.split(network(name), nnx.Param)

    def encoded(params: nnx.State, images: jax.Array) -> jax.Array:
        mean, logvar = nnx.merge(graph, params).encode(images)
        return jnp.sum(mean * given["to_mean"]) + jnp.sum(logvar * given["to_logvar"])

    def decoded(params: nnx.State, z: jax.Array) -> jax.Array:
        return jnp.sum(nnx.merge(graph, params).decode(z) * given["to_images"])

    @jax.jit
    def both(params: nnx.State) -> tuple[nnx.State, jax.Array, jax.Array]:
        first, images = jax.grad(encoded, argnums=(0, 1))(params, given["images"])
        second, z = jax.grad(decoded, argnums=(0, 1))(params, given["z"])
        return jax.tree.map(jnp.add, first, second), images, z

    params, images, z = both(state)
    found = {tensor_name(path): flip(np.asarray(leaf[...])) for path, leaf in nnx.to_flat_state(params)}
    return {**found, "images": np.asarray(images), "z": np.asarray(z)}


def stability_tensors(config: AutoencoderConfig) -> dict[str, np.ndarray]:
    """Random tensors under the names and in the shapes of Stability's code, listed here independently of ours."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inside: int, outside: int, size: int = 3) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outside, inside, size, size), (outside,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    def block(name: str, inside: int, outside: int) -> None:
        norm(f"{name}.norm1", inside)
        conv(f"{name}.conv1", inside, outside)
        norm(f"{name}.norm2", outside)
        conv(f"{name}.conv2", outside, outside)
        if inside != outside:
            conv(f"{name}.nin_shortcut", inside, outside, 1)

    def middle(name: str, width: int) -> None:
        block(f"{name}.mid.block_1", width, width)
        norm(f"{name}.mid.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.mid.attn_1.{part}", width, width, 1)
        block(f"{name}.mid.block_2", width, width)

    widths, last = config.widths, len(config.widths) - 1
    conv("encoder.conv_in", 3, widths[0])
    inside = widths[0]
    for level, width in enumerate(widths):
        for i in range(config.layers):
            block(f"encoder.down.{level}.block.{i}", inside, width)
            inside = width
        if level < last:
            conv(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder", inside)
    norm("encoder.norm_out", inside)
    conv("encoder.conv_out", inside, 2 * config.channels)

    conv("decoder.conv_in", config.channels, inside)
    middle("decoder", inside)
    for level in reversed(range(len(widths))):
        for i in range(config.layers + 1):
            block(f"decoder.up.{level}.block.{i}", inside, widths[level])
            inside = widths[level]
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", inside, inside)
    norm("decoder.norm_out", inside)
    conv("decoder.conv_out", inside, 3)
    if config.quant_conv:
        conv("quant_conv", 2 * config.channels, 2 * config.channels, 1)
        conv("post_quant_conv", config.channels, config.channels, 1)
    return {name: values(name, shape, 0.1) for name, shape in found.items()}
