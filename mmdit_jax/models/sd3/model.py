"""A checkpoint in memory: the model that it is of, and its tensors under public names."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.models.architectures.registry import Params, apply
from mmdit_jax.models.config import DTYPES, MMDiTConfig
from mmdit_jax.models.sd3 import table
from mmdit_jax.models.sd3.files import RAW, WIDE
from mmdit_jax.models.sd3.infer import check
from mmdit_jax.models.sd3.layout import from_ours, our_shape, parts, swap_halves, to_ours
from mmdit_jax.models.sd3.names import Entry, entries
from mmdit_jax.models.sd3.reader import Checkpoint, Source, open_checkpoint

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@dataclass(frozen=True)
class SD3:
    """A public checkpoint as a function, velocities for latents: see ``__call__``."""

    config: MMDiTConfig
    params: Params
    """As ``init_params`` has them."""
    positions: np.ndarray | None = None
    """The checkpoint's own position table [1, table², width], where the config's is not the same number for number."""

    def __call__(
        self,
        latents: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"],
        context: Float[Array, "batch text context_dim"],
        pooled: Float[Array, "batch pooled_dim"],
    ) -> Float[Array, "batch height width channels"]:
        """The velocity noise − data at ``t``, float32, shaped as ``latents``.

        Args:
          latents: in the model's space, height and width even (multiples of the patch).
          t: in (0, 1), 0 is data.
          context: text states, [B, 154 or 333, 4096] for the released models.
          pooled: [B, 2048].

        Raises:
          UserError: a shape doesn't fit the model.
        """
        positions = self.positions_at(latents.shape[1], latents.shape[2])
        return _run(self.config, self.params, latents, t, context, pooled, positions)

    def positions_at(self, height: int, width: int) -> np.ndarray | None:
        """The checkpoint's own positions for latents of that size, float32 [tokens, width]; None: the config's."""
        if self.positions is None:
            return None
        return table.centre(self.positions, self.config.grid(height, width)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _run(config: MMDiTConfig, params: Params, *arguments: Any) -> jax.Array:
    return apply(config, params, *arguments)


def load_sd3(path: str | Path | Checkpoint, dtype: Any = "float32", head_size: int | None = None) -> SD3:
    """A checkpoint of SD3-medium, SD3.5-medium, SD3.5-large or any model of their kind, ready to call.

    Args:
      path: a safetensors file or a folder, by diffusers' or Stability's names, or what ``mmdit convert --to orbax``
        wrote; or a checkpoint that is open.
      dtype: "float32" or "bfloat16", of the parameters and the blocks' arithmetic. The checkpoint may have another.
      head_size: channels of an attention head, where a model has no QK-norm and its head size is not 64.

    Raises:
      UserError: nothing there that can be read, or tensors unknown, missing or misshapen (each is named).
    """
    name = jnp.dtype(dtype).name
    if name not in DTYPES:
        raise UserError(f"dtype={name}: expected {' or '.join(DTYPES)}")
    found = path if isinstance(path, Checkpoint) else open_checkpoint(Path(path), head_size)
    params = _params(found.config, found.source, jnp.dtype(name))
    return SD3(replace(found.config, dtype=name), params, _own_table(found))


def _own_table(found: Checkpoint) -> np.ndarray | None:
    entry = entries(found.config)[0]
    dtype = found.source.dtype(entry)
    return None if found.computed and dtype == "F32" else found.source.read(entry).view(WIDE[dtype])


def _params(config: MMDiTConfig, source: Source, dtype: np.dtype) -> Params:
    """The tree of ``init_params``, cast to ``dtype``; one parameter at a time is whole on the host."""
    stacks: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries(config)[1:]:
        stacks.setdefault(entry.path, []).append(entry)
    tree: Params = {}
    for path, stack in stacks.items():
        length = () if stack[0].block is None else (len(stack),)
        leaf = np.empty((*length, *our_shape(stack[0])), dtype)
        for entry in stack:
            part = to_ours(entry, source.read(entry).view(WIDE[source.dtype(entry)]))
            leaf[... if entry.block is None else entry.block] = part
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = jnp.asarray(leaf)
    return tree


class _Tree:
    """Parameters in memory, as ``init_params`` has them, as a source; the position table is the config's."""

    def __init__(self, config: MMDiTConfig, params: Params) -> None:
        self._config, self._params = config, params

    def dtype(self, entry: Entry) -> str:
        kind = np.asarray(_leaf(self._params, entry)).dtype if entry.path else np.dtype(np.float32)
        return next(name for name, wide in WIDE.items() if wide == kind)

    def read(self, entry: Entry) -> np.ndarray:
        array = from_ours(entry, _leaf(self._params, entry)) if entry.path else table.whole(self._config)
        return np.ascontiguousarray(array).view(RAW[self.dtype(entry)])


def checkpoint_of(config: MMDiTConfig, params: Params) -> Checkpoint:
    """Parameters in memory as a checkpoint, which ``convert`` writes to public names.

    Raises:
      UserError: the model is none that the public classes have.
    """
    for field, usual in (("architecture", "mmdit"), ("mlp_ratio", 4)):
        found = getattr(config, field)
        if found != usual:
            raise UserError(f"{field}={found!r}: expected {usual!r}; public SD3 classes have no other")
    return Checkpoint(config, _Tree(config, params), "ours", True)


class _Memory:
    """Tensors of one family in memory, as a source."""

    def __init__(self, family: str, tensors: Mapping[str, np.ndarray]) -> None:
        self._family, self._tensors = family, tensors

    def dtype(self, entry: Entry) -> str:
        kind = self._tensors[entry.names(self._family)[0]].dtype
        return next(name for name, wide in WIDE.items() if wide == kind)

    def read(self, entry: Entry) -> np.ndarray:
        whole = np.concatenate([self._tensors[name] for name in entry.names(self._family)])
        if entry.swapped and self._family == "diffusers":
            whole = swap_halves(whole)
        return whole.view(RAW[self.dtype(entry)])


def params_from_tensors(config: MMDiTConfig, family: str, tensors: Mapping[str, np.ndarray]) -> Params:
    """Parameters, float32, out of a checkpoint's tensors by their names in "diffusers" or "stability".

    Raises:
      UserError: tensors are unknown, missing or misshapen (each is named).
    """
    check("tensors", family, config, {name: array.shape for name, array in tensors.items()})
    return _params(config, _Memory(family, tensors), np.dtype(np.float32))


def tensors_from_params(config: MMDiTConfig, family: str, params: Params) -> dict[str, np.ndarray]:
    """The inverse of ``params_from_tensors``, the config's position table included; for gradients, too."""
    out: dict[str, np.ndarray] = {}
    for entry in entries(config):
        array = from_ours(entry, _leaf(params, entry)) if entry.path else table.whole(config)
        out.update(parts(entry, array, family))
    return out


def _leaf(params: Params, entry: Entry) -> np.ndarray:
    leaf: Any = params
    for name in entry.path:
        leaf = leaf[name]
    return np.asarray(leaf if entry.block is None else leaf[entry.block])
