"""A checkpoint on disk, whichever kind it is of, as the tensors of Stability's layout, read one at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.sd3 import infer, table
from mmdit_jax.models.sd3.files import RAW, WIDE
from mmdit_jax.models.sd3.names import Entry, entries
from mmdit_jax.models.sd3.tree import TREE, OurTree
from mmdit_jax.models.tensors import VARIANTS, Tensor, read_headers, read_json, shards, weight_files

log = logging.getLogger(__name__)

WHAT = "checkpoint"
"""Begins the line of an error."""

STEM = "diffusion_pytorch_model"
"""Of diffusers' files."""
HEAD_SIZE_KEY = "head_size"
"""In a safetensors file's metadata, where its tensors and the family's rule don't tell the size of a head."""


class Source(Protocol):
    """What a checkpoint is read from."""

    def dtype(self, entry: Entry) -> str:
        """Stored dtype: "F32", "F16" or "BF16"."""

    def read(self, entry: Entry) -> np.ndarray:
        """The tensor in Stability's layout, as raw words (uint32 or uint16)."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole: every tensor is there, with its shape; none was read yet."""

    config: MMDiTConfig
    source: Source
    family: str
    """"diffusers", "stability" or "orbax"."""
    computed: bool
    """Whether the stored position table is the config's, up to rounding. If not, the stored one is the model's."""


def open_checkpoint(path: Path, head_size: int | None = None) -> Checkpoint:
    """Look at a checkpoint.

    Args:
      path: a safetensors file, an index of shards, or a folder: of shards, of a diffusers transformer, of a diffusers
        pipeline that has one, or one that ``mmdit convert --to orbax`` wrote.
      head_size: channels of an attention head, where a model has no QK-norm and its head size is not 64.

    Raises:
      UserError: nothing there that can be read, or tensors unknown, missing or misshapen (each is named).
    """
    if (path / TREE).is_file():
        return _open_tree(path)
    files, said = find_files(path)
    tensors, metadata = read_headers(files, WHAT)
    where = str(path)
    family = infer.family_of(where, tensors)
    own = infer.own_names(family, tensors)
    _require_dtypes(where, own, tensors)
    told = metadata.get(HEAD_SIZE_KEY, "")
    if head_size is None and "attention_head_dim" not in said and told.isdecimal():
        head_size = int(told)
    shapes = {name: tensors[stored].shape for name, stored in own.items()}
    config, guessed = infer.infer_config(where, family, shapes, said, head_size)
    infer.check_said(where, config, said)
    if guessed and config.num_heads != config.depth:
        log.warning(
            "checkpoint %s: its tensors don't tell the head size; taken for %d (%d heads), name it if it is another",
            path,
            config.head_size,
            config.num_heads,
        )
    source = TensorFiles(family, {name: tensors[stored] for name, stored in own.items()})
    _require_like_parts(where, config, family, source)
    config, computed = _with_positions(where, config, source, said)
    return Checkpoint(config, source, family, computed)


def find_files(path: Path) -> tuple[list[Path], Mapping[str, Any]]:
    """The safetensors files of a checkpoint, and diffusers' config.json (empty without one)."""
    if not path.is_dir():
        return (shards(path, WHAT) if path.name.endswith(".index.json") else [path]), {}
    if (path / "transformer").is_dir():
        path = path / "transformer"
    said = read_json(path / "config.json", WHAT, "diffusers' config.json") if (path / "config.json").is_file() else {}
    named = any(path.glob(f"{STEM}*.json")) or any((path / f"{STEM}{name}.safetensors").is_file() for name in VARIANTS)
    if named:
        return weight_files(path, STEM, WHAT), said
    files, indices = sorted(path.glob("*.safetensors")), sorted(path.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        names = ", ".join(index.name for index in indices)
        raise UserError(f"checkpoint={path}: several indices of shards ({names}); name the one")
    if indices:
        return shards(indices[0], WHAT), said
    if not files:
        raise UserError(f"checkpoint={path}: no *.safetensors in this folder; expected an SD3 checkpoint")
    return files, said


class TensorFiles:
    """Tensors of one family in safetensors files."""

    def __init__(self, family: str, tensors: Mapping[str, Tensor]) -> None:
        self._family, self._tensors = family, tensors

    def parts(self, entry: Entry) -> list[Tensor]:
        """The stored tensors that make up an entry."""
        return [self._tensors[name] for name in entry.names(self._family)]

    def dtype(self, entry: Entry) -> str:
        return self.parts(entry)[0].dtype

    def read(self, entry: Entry) -> np.ndarray:
        """Each byte is read to where it belongs, so that a tensor is in memory once."""
        parts = self.parts(entry)
        raw = np.empty(entry.shape, RAW[parts[0].dtype])
        if entry.swapped and self._family == "diffusers":
            half = len(raw) // 2
            parts[0].read_into(raw[half:])
            parts[0].read_into(raw[:half], first=raw[half:].size)
            return raw
        rows = len(raw) // len(parts)
        for i, part in enumerate(parts):
            part.read_into(raw[i * rows : (i + 1) * rows])
        return raw

    def read_rows(self, entry: Entry, start: int, numbers: int) -> np.ndarray:
        """Some of an entry's numbers, float32, from number ``start`` on; of an entry that is stored as it is."""
        (part,) = self.parts(entry)
        raw = np.empty(numbers, RAW[part.dtype])
        part.read_into(raw, start)
        return raw.view(WIDE[part.dtype]).astype(np.float32)


def _require_dtypes(where: str, own: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    wrong = {name: tensors[stored].dtype for name, stored in own.items() if tensors[stored].dtype not in RAW}
    if wrong:
        name, dtype = next(iter(wrong.items()))
        what = "scaled 8-bit weights cannot be converted back" if dtype.startswith("F8") else "not a dtype of SD3's"
        raise UserError(
            f"checkpoint={where}: {len(wrong)} tensors are {dtype} ({name}, …), {what}; expected F32, F16 or BF16"
        )


def _require_like_parts(where: str, config: MMDiTConfig, family: str, source: TensorFiles) -> None:
    for entry in entries(config):
        dtypes = {part.dtype for part in source.parts(entry)}
        if len(dtypes) > 1:
            names = ", ".join(entry.names(family))
            raise UserError(f"checkpoint={where}: {names} are {' and '.join(sorted(dtypes))}; expected one dtype")


def _with_positions(
    where: str, config: MMDiTConfig, source: TensorFiles, said: Mapping[str, Any]
) -> tuple[MMDiTConfig, bool]:
    """The config with the span that the stored table has, and whether one was found that computes it."""
    entry = entries(config)[0]
    size, width = config.position_table, config.width
    first = source.read_rows(entry, 0, size * width).reshape(size, width)
    spans = [config.position_span, table.span_of(first)]
    if isinstance(said.get("sample_size"), int):
        spans.insert(0, said["sample_size"] // config.patch_size)
    for span in dict.fromkeys(spans):
        if not span or span < 1:
            continue
        tried = replace(config, position_base=None if span == config.position_span else span)
        if _is_table(tried, entry, source):
            return tried, True
    log.warning("checkpoint %s: its position table is no sin-cos table known here; the stored one is used", where)
    return config, False


def _is_table(config: MMDiTConfig, entry: Entry, source: TensorFiles) -> bool:
    tolerance = table.TOLERANCE[source.dtype(entry)]
    count = config.position_table * config.width
    return all(
        np.abs(source.read_rows(entry, number * count, count) - row.reshape(-1)).max() <= tolerance
        for number, row in enumerate(table.rows(config))
    )


def _open_tree(path: Path) -> Checkpoint:
    tree = OurTree(path)
    return Checkpoint(tree.config, tree, "orbax", tree.computed)
