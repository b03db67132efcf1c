"""Names and layouts of an autoencoder's tensors: ours, diffusers' and Stability's.

Ours are diffusers' names: a parameter's path, with "weight" for kernel and scale. diffusers' older attention names and
Stability's names are translated when read. Stability numbers the decoder's levels from the finest, diffusers from the
coarsest, and Stability's attention projections are 1×1 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from flax import nnx

from mmdit_jax.errors import UserError
from mmdit_jax.models.autoencoder.config import AutoencoderConfig
from mmdit_jax.models.autoencoder.network import Network, abstract

PREFIXES = ("first_stage_model.", "vae.")
"""Of the autoencoder's tensors in a single file that holds other networks too."""
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_STABILITY_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_STABILITY_ENDS = {
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
_RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}


def tensor_name(path: tuple[object, ...]) -> str:
    """diffusers' name of the parameter at a path of the module: ("conv_in", "kernel") -> "conv_in.weight"."""
    leaf = "bias" if path[-1] == "bias" else "weight"
    return ".".join([*map(str, path[:-1]), leaf])


def shapes(config: AutoencoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of diffusers' AutoencoderKL of this shape, in torch's layout."""
    flat = nnx.to_flat_state(nnx.state(abstract(config), nnx.Param))
    return {tensor_name(path): _torch_shape(leaf.shape) for path, leaf in flat}


def to_torch(model: Network) -> dict[str, np.ndarray]:
    """The parameters under diffusers' names, in torch's layout: float32, contiguous."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {tensor_name(path): flip(np.asarray(leaf[...], np.float32)) for path, leaf in flat}


def from_torch(model: Network, tensors: Mapping[str, np.ndarray]) -> None:
    """Put tensors under diffusers' names into a network, which may be abstract. Names and shapes must be right."""
    state = nnx.state(model, nnx.Param)
    for path, leaf in nnx.to_flat_state(state):
        leaf.set_value(jax.numpy.asarray(unflip(np.asarray(tensors[tensor_name(path)], np.float32))))
    nnx.update(model, state)


def flip(kernel: np.ndarray) -> np.ndarray:
    """Ours to torch's: [h, w, in, out] -> [out, in, h, w], [in, out] -> [out, in]; vectors as they are."""
    axes = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[kernel.ndim]
    return np.ascontiguousarray(kernel.transpose(axes))


def unflip(kernel: np.ndarray) -> np.ndarray:
    """Torch's to ours: the inverse of ``flip``."""
    axes = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[kernel.ndim]
    return np.ascontiguousarray(kernel.transpose(axes))


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return {1: lambda s: s, 2: lambda s: (s[1], s[0]), 4: lambda s: (s[3], s[2], s[0], s[1])}[len(shape)](shape)


def strip_prefix(names: Iterable[str]) -> tuple[str, list[str]]:
    """The prefix that the autoencoder's tensors have in a file, and those names without it."""
    names = list(names)
    for prefix in PREFIXES:
        found = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        if found:
            return prefix, found
    return "", names


def is_stability(names: Iterable[str]) -> bool:
    """Whether names (without prefix) are Stability's rather than diffusers'."""
    return any(re.match(r"(en|de)coder\.(down|up|mid)\.", name) for name in names)


def public_name(name: str, levels: int) -> str:
    """diffusers' present name of a tensor: of one under Stability's or diffusers' older name; others come back as is.

    Args:
        name: without prefix.
        levels: resolutions of the network.
    """
    for old, new in _OLD_ATTENTION.items():
        name = re.sub(rf"(\.attentions\.0)\.{old}\.(weight|bias)$", rf"\1.{new}.\2", name)
    match = re.fullmatch(r"(encoder|decoder)\.(.+)\.(weight|bias)", name)
    if match is None:
        return name
    side, layer, leaf = match.groups()
    found = _stability_layer(side, layer.split("."), levels)
    return name if found is None else f"{side}.{found}.{leaf}"


def _stability_layer(side: str, parts: list[str], levels: int) -> str | None:
    """diffusers' name of one of Stability's layers; none for anything else."""
    match parts:
        case [end] if end in _STABILITY_ENDS:
            return _STABILITY_ENDS[end]
        case ["mid", "block_1", inner] if inner in _RESIDUAL:
            return f"mid_block.resnets.0.{_RESIDUAL[inner]}"
        case ["mid", "block_2", inner] if inner in _RESIDUAL:
            return f"mid_block.resnets.1.{_RESIDUAL[inner]}"
        case ["mid", "attn_1", inner] if inner in _STABILITY_ATTENTION:
            return f"mid_block.attentions.0.{_STABILITY_ATTENTION[inner]}"
        case [("down" | "up") as way, level, *rest] if level.isdecimal() and (side == "encoder") == (way == "down"):
            index = int(level) if way == "down" else levels - 1 - int(level)
            match rest:
                case ["block", block, inner] if inner in _RESIDUAL:
                    return f"{way}_blocks.{index}.resnets.{block}.{_RESIDUAL[inner]}"
                case [("downsample" | "upsample") as scale, "conv"]:
                    return f"{way}_blocks.{index}.{scale}rs.0.conv"
    return None


def infer_config(
    found: Mapping[str, tuple[int, ...]], groups: int, shift: float, scale: float, where: str
) -> AutoencoderConfig:
    """The config of a network whose tensors have these shapes, under Stability's or diffusers' names without prefix.

    Groups, shift and scale can't be seen in tensors.

    Raises:
        UserError: tensors that every autoencoder has are missing; those that differ otherwise are told by the reader.
    """
    pattern = r"encoder\.down\.(\d+)\." if is_stability(found) else r"encoder\.down_blocks\.(\d+)\."
    levels = 1 + max((int(m[1]) for m in map(re.compile(pattern).match, found) if m), default=-1)
    public = {public_name(name, levels): shape for name, shape in found.items()}
    needed = ["decoder.conv_in.weight"] + [
        f"encoder.down_blocks.{level}.resnets.0.conv1.weight" for level in range(levels)
    ]
    missing = [name for name in needed if name not in public or len(public[name]) != 4]
    if missing or not levels:
        raise UserError(f"vae={where}: no {missing[0]} in it; expected the tensors of an autoencoder")
    return AutoencoderConfig(
        channels=public["decoder.conv_in.weight"][1],
        widths=tuple(public[name][0] for name in needed[1:]),
        layers=sum(bool(re.fullmatch(r"encoder\.down_blocks\.0\.resnets\.\d+\.conv1\.weight", n)) for n in public),
        groups=groups,
        attention="encoder.mid_block.attentions.0.to_q.weight" in public,
        quant_conv="quant_conv.weight" in public,
        post_quant_conv="post_quant_conv.weight" in public,
        shift=shift,
        scale=scale,
    )
