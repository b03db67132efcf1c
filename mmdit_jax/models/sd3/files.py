"""Safetensors files as bytes: headers, ranges read and written one at a time, shards with an index.

A tensor's bytes are taken and put by position, never through a memory map (whose pages would count as the process's),
and are not interpreted: what a file holds is what another file gets.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.files import write_json

RAW: dict[str, np.dtype[Any]] = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}
"""Stored dtypes that a checkpoint may have, and the words that their bits are carried in."""
WIDE: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""What those bits mean."""
# The longest header that the format allows.
MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor: dtype ("F32", "F16", "BF16"; others are refused where read), shape, place."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    """Byte offset in the file."""
    size: int
    """Bytes."""


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; the tensors' data is not read.

    Raises:
      UserError: the file is not there, not in the format, or cut short.
    """
    try:
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if total < 8 or not 2 <= length <= min(total - 8, MAX_HEADER):
                raise ValueError
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        tensors = {name: _tensor(path, 8 + length, item) for name, item in header.items()}
    except FileNotFoundError:
        raise UserError(f"checkpoint={path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"checkpoint={path}: a folder; expected a safetensors file") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"checkpoint={path}: not a safetensors file, or damaged; expected *.safetensors") from None
    end = max((tensor.start + tensor.size for tensor in tensors.values()), default=8 + length)
    if end > total:
        raise UserError(f"checkpoint={path}: cut short ({total:,} of {end:,} bytes); copy it anew")
    return tensors, metadata


def _tensor(path: Path, data: int, item: Mapping[str, Any]) -> Tensor:
    begin, end = item["data_offsets"]
    tensor = Tensor(item["dtype"], tuple(item["shape"]), path, data + begin, end - begin)
    wide = RAW.get(tensor.dtype)
    if begin < 0 or (wide and tensor.size != math.prod(tensor.shape) * wide.itemsize):
        raise ValueError
    return tensor


def read_into(tensor: Tensor, out: np.ndarray, first: int = 0) -> None:
    """Fill a contiguous raw array with the tensor's numbers from number ``first`` on.

    Raises:
      UserError: the file ends early.
    """
    view = memoryview(out.reshape(-1).view(np.uint8))
    offset = tensor.start + first * out.dtype.itemsize
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(offset)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise UserError(f"checkpoint={tensor.path}: cut short while read; copy it anew")
            done += count


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
            view = memoryview(np.ascontiguousarray(raw).reshape(-1).view(np.uint8))
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


def indexed(path: Path) -> list[Path]:
    """The shards that an index file names.

    Raises:
      UserError: it is no index, or some are not there.
    """
    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"checkpoint={path}: not an index of shards (expected a weight_map)") from None
    return present(path.parent, names)


def present(folder: Path, names: Iterable[str]) -> list[Path]:
    """Files of a folder by name.

    Raises:
      UserError: some are missing; it names them.
    """
    paths = [folder / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"checkpoint={folder}: shards missing: {', '.join(missing[:20])}")
    return paths
