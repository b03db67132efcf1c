"""The architecture of a checkpoint, from the names and shapes of its tensors; what is unknown, missing or misshapen."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mmdit_jax.errors import UserError
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.sd3.names import OTHER_COMPONENTS, PREFIX, entries
from mmdit_jax.models.tensors import compare

Shape = tuple[int, ...]
# Tensors named before the rest is only counted.
NAMED = 20
# Width of a head in every public SD3.
HEAD_SIZE = 64


def usual_head_size(width: int) -> int:
    """What the head size of a model is taken for where nothing tells it: 64, or the nearest that divides the width."""
    return math.gcd(width, HEAD_SIZE)


def family_of(where: str, names: Iterable[str]) -> str:
    """ "diffusers" or "stability", by the names of the blocks.

    Raises:
      UserError: the names are of neither.
    """
    seen = sorted(names)
    found = [
        family
        for family, sign in (("diffusers", "transformer_blocks."), ("stability", "joint_blocks."))
        if any(name.removeprefix(PREFIX).startswith(sign) for name in seen)
    ]
    if len(found) != 1:
        example = f" (it has {seen[0]!r}, …)" if seen else " (it is empty)"
        raise UserError(
            f"checkpoint={where}: no SD3 transformer{example}; expected transformer_blocks.* or joint_blocks.* tensors"
        )
    return found[0]


def own_names(family: str, names: Iterable[str]) -> dict[str, str]:
    """The transformer's tensors: name with the family's prefix → name in the file. Other components are left out."""
    own = [name for name in names if not (family == "stability" and name.startswith(OTHER_COMPONENTS))]
    if family == "diffusers" or any(name.startswith(PREFIX) for name in own):
        return {name: name for name in own}
    return {PREFIX + name: name for name in own}


def infer_config(
    where: str, family: str, shapes: Mapping[str, Shape], said: Mapping[str, Any], head_size: int | None
) -> tuple[MMDiTConfig, bool]:
    """The model that the tensors are of, and whether its head size is a guess.

    Args:
      where: the checkpoint, for messages.
      shapes: of the tensors, by name (Stability's with the prefix).
      said: diffusers' config.json; empty where there is none.
      head_size: of a model without QK-norm, whose tensors don't tell; None: what ``said`` has, else the usual.

    Raises:
      UserError: unknown, missing or misshapen tensors (each is named); the head size doesn't fit.
    """
    look = _Look(family, shapes)
    depth = look.depth()
    width = look.majority(0, _VECTORS[family]) or HEAD_SIZE
    norms = look.norms()
    dual = look.dual()
    table = math.isqrt(look.size(_TABLE[family], 1, 192**2))
    fields: dict[str, Any] = {
        "patch_size": look.size(_PATCH[family], 2, 2),
        "in_channels": look.size(_PATCH[family], 1, 16),
        "context_dim": look.size(_CONTEXT[family], 1, 4096),
        "pooled_dim": look.size(_POOLED[family], 1, 2048),
        "mlp_ratio": max(1, (look.majority(0, _HIDDEN[family]) or 4 * width) // width),
        "qk_norm": len(norms) > depth,
        "dual_attention": min(dual, depth),
        "position_table": max(1, table),
    }
    guessed = False
    if len(norms) > depth:
        head_size = Counter(norms).most_common(1)[0][0]
    elif head_size is None:
        head_size = said.get("attention_head_dim")
        guessed = head_size is None
        head_size = usual_head_size(width) if guessed else head_size
    if not isinstance(head_size, int) or head_size < 1 or width % head_size:
        raise UserError(f"head_size={head_size}: expected a divisor of the width {width} of {where}")
    config = MMDiTConfig(depth=depth, heads=width // head_size, head_size=head_size, **fields)
    check(where, family, config, shapes)
    return config, guessed


def check(where: str, family: str, config: MMDiTConfig, shapes: Mapping[str, Shape]) -> None:
    """Whether exactly this model's tensors are there.

    Raises:
      UserError: names every tensor that is unknown, missing or misshapen (up to twenty of a kind, then their number).
    """
    expected = {name: entry.part(family) for entry in entries(config) for name in entry.names(family)}
    kinds = zip(("unknown", "missing", "misshapen"), compare(expected, shapes), strict=True)
    told = [_listed(kind, names) for kind, names in kinds if names]
    if told:
        raise UserError(f"checkpoint={where}: {'; '.join(told)}; expected {describe(config)} in {family} names")


def describe(config: MMDiTConfig) -> str:
    """A few words for a model."""
    norm = ", QK-norm" if config.qk_norm else ""
    dual = f", a second attention in {config.dual_attention}" if config.dual_attention else ""
    return f"{config.depth} blocks of width {config.width}{norm}{dual}"


def check_said(where: str, config: MMDiTConfig, said: Mapping[str, Any]) -> None:
    """Whether diffusers' config.json tells of the model that the tensors are of.

    Raises:
      UserError: names the first field that doesn't, with both values.
    """
    if said.get("_class_name", CLASS) != CLASS:
        raise UserError(f"checkpoint={where}: config.json is of a {said['_class_name']}; expected {CLASS}")
    ours = diffusers_config(config)
    for name, value in ours.items():
        if name.startswith("_") or name == "sample_size" or name not in said:
            continue  # of the sample size, the position table tells what it was
        other = said[name]
        other = list(other) if isinstance(other, (list, tuple)) else other
        if other != value and not (name == "out_channels" and other is None):
            raise UserError(f"checkpoint={where}: config.json has {name}={other!r}, its tensors say {value!r}")


CLASS = "SD3Transformer2DModel"


def diffusers_config(config: MMDiTConfig) -> dict[str, Any]:
    """config.json of the diffusers model."""
    return {
        "_class_name": CLASS,
        "attention_head_dim": config.head_size,
        "caption_projection_dim": config.width,
        "dual_attention_layers": list(range(config.dual_attention)),
        "in_channels": config.in_channels,
        "joint_attention_dim": config.context_dim,
        "num_attention_heads": config.num_heads,
        "num_layers": config.depth,
        "out_channels": config.in_channels,
        "patch_size": config.patch_size,
        "pooled_projection_dim": config.pooled_dim,
        "pos_embed_max_size": config.position_table,
        "qk_norm": "rms_norm" if config.qk_norm else None,
        "sample_size": config.position_span * config.patch_size,
    }


_TABLE = {"diffusers": "pos_embed.pos_embed", "stability": PREFIX + "pos_embed"}
_PATCH = {"diffusers": "pos_embed.proj.weight", "stability": PREFIX + "x_embedder.proj.weight"}
_CONTEXT = {"diffusers": "context_embedder.weight", "stability": PREFIX + "context_embedder.weight"}
_POOLED = {
    "diffusers": "time_text_embed.text_embedder.linear_1.weight",
    "stability": PREFIX + "y_embedder.mlp.0.weight",
}
_VECTORS = {
    "diffusers": r"(pos_embed\.proj|context_embedder|time_text_embed\..*|.*to_out\.0|.*ff\.net\.2)\.bias",
    "stability": r".*(x_embedder\.proj|context_embedder|t_embedder\.mlp\..|x_block\.attn\.proj|mlp\.fc2)\.bias",
}
_HIDDEN = {"diffusers": r".*ff(_context)?\.net\.0\.proj\.bias", "stability": r".*mlp\.fc1\.bias"}
_BLOCK = {
    "diffusers": r"transformer_blocks\.(\d+)\.(.*)",
    "stability": re.escape(PREFIX) + r"joint_blocks\.(\d+)\.(.*)",
}


class _Look:
    """Questions to the tensors' names and shapes, any of which may be missing or wrong."""

    def __init__(self, family: str, shapes: Mapping[str, Shape]) -> None:
        self._family, self._shapes = family, shapes
        self._by_block: dict[int, dict[str, Shape]] = {}
        for name, shape in shapes.items():
            if matched := re.fullmatch(_BLOCK[family], name):
                self._by_block.setdefault(int(matched[1]), {})[matched[2]] = shape

    def depth(self) -> int:
        """Blocks, by the last that has a fair part of the tensors of one: a stray name makes no block."""
        most = max((len(block) for block in self._by_block.values()), default=0)
        return max((number + 1 for number, block in self._by_block.items() if len(block) > most / 3), default=1)

    def dual(self) -> int:
        """Blocks up to the last that has a second attention."""
        having = [number for number, block in self._by_block.items() if sum(name.count("attn2.") for name in block) > 2]
        return max(having, default=-1) + 1

    def norms(self) -> list[int]:
        """Sizes of the norms of queries and keys."""
        pattern = r".*attn2?\.(norm_(added_)?|ln_)[qk]\.weight"
        blocks = self._by_block.values()
        return [shape[0] for block in blocks for name, shape in block.items() if shape and re.fullmatch(pattern, name)]

    def size(self, name: str, axis: int, otherwise: int) -> int:
        """Of a tensor along an axis."""
        shape = self._shapes.get(name, ())
        return shape[axis] if len(shape) > axis and shape[axis] else otherwise

    def majority(self, axis: int, pattern: str) -> int | None:
        """The commonest size along an axis of the tensors so named."""
        named = [shape for name, shape in self._shapes.items() if re.fullmatch(pattern, name)]
        sizes = [shape[axis] for shape in named if len(shape) > axis]
        return Counter(sizes).most_common(1)[0][0] if sizes else None


def _listed(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} {kind}: {', '.join(names[:NAMED])}{more}"
