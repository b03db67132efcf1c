"""Safetensors files, written: each tensor at its place as it comes, in shards with an index.

Bits are carried and not interpreted: what a file holds is what another file gets.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.files import write_json
from mmdit_jax.models.tensors import KINDS

RAW: dict[str, np.dtype[Any]] = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}
"""Stored dtypes that a checkpoint may have, and the words that their bits are carried in."""
WIDE = {name: KINDS[name] for name in RAW}
"""What those bits mean."""


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: dtype and shape, known before its numbers are."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * RAW[self.dtype].itemsize


class Shards:
    """Safetensors files made of tensors that come in any order, each written at its place as it comes.

    ``close`` puts everything on disk and writes the index. Tensors not put by then are an error: a bug of ours.
    """

    def __init__(
        self, folder: Path, stem: str, planned: Mapping[str, Planned], shard_bytes: int | None, metadata: dict[str, str]
    ) -> None:
        self._folder, self._stem = folder, stem
        groups = split(planned, shard_bytes)
        self._sharded = len(groups) > 1
        self._places: dict[str, tuple[Path, int]] = {}
        self._weight_map: dict[str, str] = {}
        self._planned = dict(planned)
        self._total = sum(tensor.size for tensor in planned.values())
        for number, names in enumerate(groups, 1):
            suffix = f"-{number:05d}-of-{len(groups):05d}" if self._sharded else ""
            name = f"{stem}{suffix}.safetensors"
            header, offsets = _header({key: planned[key] for key in names}, metadata)
            (folder / name).write_bytes(header)
            self._places.update({key: (folder / name, len(header) + offset) for key, offset in offsets.items()})
            self._weight_map.update(dict.fromkeys(names, name))

    def put(self, name: str, raw: np.ndarray) -> None:
        """Write one tensor: contiguous, of the planned shape, in the raw words of its dtype."""
        planned = self._planned.pop(name)
        if raw.shape != planned.shape or raw.dtype != RAW[planned.dtype]:
            raise ValueError(f"{name}: {raw.dtype} {raw.shape}, planned {planned}")
        path, offset = self._places[name]
        with path.open("r+b", buffering=0) as file:
            file.seek(offset)
            view = np.ascontiguousarray(raw).reshape(-1).view(np.uint8).data
            while len(view):
                view = view[file.write(view) :]

    def close(self) -> None:
        """Finish: flush to disk; write the index of shards."""
        if self._planned:
            raise ValueError(f"never written: {sorted(self._planned)[:3]}")
        for path in {path for path, _ in self._places.values()}:
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        if self._sharded:
            index = {"metadata": {"total_size": self._total}, "weight_map": self._weight_map}
            write_json(self._folder / f"{self._stem}.safetensors.index.json", index)


def split(planned: Mapping[str, Planned], shard_bytes: int | None) -> list[list[str]]:
    """Names in groups of at most ``shard_bytes`` of data, in order; a larger tensor has a group of its own."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in planned.items():
        if shard_bytes is not None and groups[-1] and filled + tensor.size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += tensor.size
    return groups


def _header(planned: Mapping[str, Planned], metadata: dict[str, str]) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and each tensor's offset after them; wider dtypes first, so that all are aligned."""
    described: dict[str, Any] = {"__metadata__": metadata}
    offsets, end = {}, 0
    for name in sorted(planned, key=lambda key: (-RAW[planned[key].dtype].itemsize, key)):
        tensor = planned[name]
        offsets[name] = end
        end += tensor.size
        described[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offsets[name], end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets
