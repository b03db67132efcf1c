"""What each parameter of the model is called, and how it lies, in the two families of public SD3 checkpoints.

Stability's own files and diffusers' ``SD3Transformer2DModel`` hold the same numbers. They differ in names, in queries,
keys and values (one tensor, or three: thirds of its rows), and in the halves of two modulations, the output's and that
of the last block's context: Stability has (shift, scale), as ours is, diffusers (scale, shift). Ours differs from both
in that kernels are [in, out], that a patch is (p, q, channel) and not (channel, p, q), and that blocks are stacked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from mmdit_jax.models.config import TIME_FEATURES, MMDiTConfig

PREFIX = "model.diffusion_model."
"""Before Stability's names, in files that may hold other components too; some files leave it out."""
OTHER_COMPONENTS = ("first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.", "model_sampling.")
"""Prefixes of tensors that are none of the transformer's."""
TABLE = "pos_embed"
"""Stability's name of the position table, which is a constant and no parameter."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a Stability checkpoint, and what it corresponds to."""

    stability: str
    """Name, without the prefix."""
    diffusers: tuple[str, ...]
    """Names: one, or three whose rows lie one after the other."""
    shape: tuple[int, ...]
    """In Stability's layout."""
    path: tuple[str, ...]
    """In the tree of ``init_params``; empty for the position table."""
    block: int | None = None
    """Along the leading axis of a stacked parameter."""
    swapped: bool = False
    """Whether diffusers has the halves of its rows the other way round."""

    def names(self, family: str) -> tuple[str, ...]:
        """Names in a family, Stability's with the prefix."""
        return self.diffusers if family == "diffusers" else (PREFIX + self.stability,)

    def part(self, family: str) -> tuple[int, ...]:
        """Shape of each of the tensors of those names."""
        return (self.shape[0] // len(self.names(family)), *self.shape[1:])


def entries(config: MMDiTConfig) -> list[Entry]:
    """Every tensor of a checkpoint of this model, the position table first."""
    d, patch = config.width, config.patch_size
    table = Entry(TABLE, ("pos_embed.pos_embed",), (1, config.position_table**2, d), ())
    kernel = Entry(
        "x_embedder.proj.weight", ("pos_embed.proj.weight",), (d, config.in_channels, patch, patch), ("patch", "kernel")
    )
    bias = Entry("x_embedder.proj.bias", ("pos_embed.proj.bias",), (d,), ("patch", "bias"))
    embed = "time_text_embed"
    return [
        table,
        kernel,
        bias,
        *_dense("context_embedder", ["context_embedder"], config.context_dim, d, ("context",)),
        *_dense("t_embedder.mlp.0", [f"{embed}.timestep_embedder.linear_1"], TIME_FEATURES, d, ("time", "up")),
        *_dense("t_embedder.mlp.2", [f"{embed}.timestep_embedder.linear_2"], d, d, ("time", "down")),
        *_dense("y_embedder.mlp.0", [f"{embed}.text_embedder.linear_1"], config.pooled_dim, d, ("pooled", "up")),
        *_dense("y_embedder.mlp.2", [f"{embed}.text_embedder.linear_2"], d, d, ("pooled", "down")),
        *itertools.chain.from_iterable(_block(config, i) for i in range(config.depth)),
        *_dense("final_layer.adaLN_modulation.1", ["norm_out.linear"], d, 2 * d, ("final_modulation",), swapped=True),
        *_dense("final_layer.linear", ["proj_out"], d, config.patch_features, ("final",)),
    ]


def place(config: MMDiTConfig, block: int) -> tuple[str, int | None]:
    """The group that a block's parameters lie in, and where along its leading axis (the last block is by itself)."""
    if block == config.depth - 1:
        return "last", None
    dual = config.dual_attention
    return ("dual", block) if block < dual else ("blocks", block - dual)


def _block(config: MMDiTConfig, number: int) -> Iterator[Entry]:
    d, hidden = config.width, config.mlp_ratio * config.width
    last, dual = number == config.depth - 1, number < config.dual_attention
    group, index = place(config, number)
    theirs = f"transformer_blocks.{number}"

    def layer(name: str, diffusers: list[str], size_in: int, size_out: int, *ours: str, swapped: bool = False) -> list:
        names = [f"{theirs}.{item}" for item in diffusers]
        path = (group, stream, *ours)
        return _dense(f"joint_blocks.{number}.{side}.{name}", names, size_in, size_out, path, index, swapped)

    def norms(name: str, query: str, key: str, *ours: str) -> Iterator[Entry]:
        for letter, diffusers in (("q", query), ("k", key)) if config.qk_norm else ():
            stability = f"joint_blocks.{number}.{side}.{name}.ln_{letter}.weight"
            path = (group, stream, *ours, f"norm_{letter}", "scale")
            yield Entry(stability, (f"{theirs}.{diffusers}.weight",), (config.head_size,), path, index)

    stream, side = "latent", "x_block"
    yield from layer("adaLN_modulation.1", ["norm1.linear"], d, (9 if dual else 6) * d, "modulation")
    yield from layer("attn.qkv", ["attn.to_q", "attn.to_k", "attn.to_v"], d, 3 * d, "qkv")
    yield from norms("attn", "attn.norm_q", "attn.norm_k")
    yield from layer("attn.proj", ["attn.to_out.0"], d, d, "out")
    if dual:
        yield from layer("attn2.qkv", ["attn2.to_q", "attn2.to_k", "attn2.to_v"], d, 3 * d, "second", "qkv")
        yield from norms("attn2", "attn2.norm_q", "attn2.norm_k", "second")
        yield from layer("attn2.proj", ["attn2.to_out.0"], d, d, "second", "out")
    yield from layer("mlp.fc1", ["ff.net.0.proj"], d, hidden, "up")
    yield from layer("mlp.fc2", ["ff.net.2"], hidden, d, "down")

    stream, side = "context", "context_block"
    parts = 2 if last else 6
    yield from layer("adaLN_modulation.1", ["norm1_context.linear"], d, parts * d, "modulation", swapped=last)
    yield from layer("attn.qkv", ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"], d, 3 * d, "qkv")
    yield from norms("attn", "attn.norm_added_q", "attn.norm_added_k")
    if not last:
        yield from layer("attn.proj", ["attn.to_add_out"], d, d, "out")
        yield from layer("mlp.fc1", ["ff_context.net.0.proj"], d, hidden, "up")
        yield from layer("mlp.fc2", ["ff_context.net.2"], hidden, d, "down")


def _dense(
    stability: str,
    diffusers: list[str],
    size_in: int,
    size_out: int,
    path: tuple[str, ...],
    block: int | None = None,
    swapped: bool = False,
) -> list[Entry]:
    weights, biases = (tuple(f"{name}.{part}" for name in diffusers) for part in ("weight", "bias"))
    return [
        Entry(f"{stability}.weight", weights, (size_out, size_in), (*path, "kernel"), block, swapped),
        Entry(f"{stability}.bias", biases, (size_out,), (*path, "bias"), block, swapped),
    ]
