"""Tensors of safetensors files, one at a time: shapes without reading, float32 of whatever floating-point type."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from mmdit_jax.errors import UserError

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_MOST_HEADER = 100_000_000
"""Bytes: the format's own limit."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies on disk."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Byte in the file."""

    def read(self) -> np.ndarray:
        """The values as float32, in torch's layout."""
        kind = np.dtype(_DTYPES[self.dtype])
        data = np.memmap(self.file, np.uint8, "r", self.start, int(np.prod(self.shape, dtype=np.int64)) * kind.itemsize)
        return np.asarray(data.view(kind).reshape(self.shape), np.float32)


def header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, by name.

    Raises:
        UserError: the file can't be read, is no safetensors file, is cut short, or a tensor has another type than
            float64, float32, float16 or bfloat16.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MOST_HEADER, size):
                raise ValueError("no header")
            told = json.loads(file.read(length))
        told.pop("__metadata__", None)
        tensors = {}
        for name, item in told.items():
            begin, end = item["data_offsets"]
            if 8 + length + end > size:
                raise ValueError(f"{name} ends after the file does: cut short")
            tensors[name] = Tensor(path, item["dtype"], tuple(item["shape"]), 8 + length + begin)
            kind = _DTYPES.get(item["dtype"])
            if kind and end - begin != np.dtype(kind).itemsize * int(np.prod(item["shape"], dtype=np.int64)):
                raise ValueError(f"{name}: {end - begin} bytes of shape {item['shape']}")
    except OSError as error:
        raise UserError(f"vae={path}: {error.strerror or error}; expected a safetensors file") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"vae={path}: not a whole safetensors file ({error}); get it again") from None
    return tensors


def known_dtype(name: str, tensor: Tensor) -> None:
    """Raise UserError for a tensor that is not of floating-point numbers."""
    if tensor.dtype not in _DTYPES:
        raise UserError(f"vae={tensor.file}: {name} has type {tensor.dtype}; expected one of {', '.join(_DTYPES)}")


def folder_tensors(folder: Path, stem: str = "diffusion_pytorch_model") -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder: one file or shards with an index, float32 before the fp16 variant.

    Raises:
        UserError: no weights in safetensors format, a shard missing, a file damaged.
    """
    for variant in ("", ".fp16"):
        whole = folder / f"{stem}{variant}.safetensors"
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if whole.is_file():
            return header(whole)
        if index.is_file():
            return _sharded(index)
    raise UserError(f"vae={folder}: no {stem}.safetensors in it, nor its .fp16 variant, nor an index of shards")


def _sharded(index: Path) -> dict[str, Tensor]:
    try:
        where: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = sorted(set(where.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"vae={index}: not an index of shards ({error})") from None
    tensors = {name: tensor for file in files for name, tensor in header(index.parent / file).items()}
    missing = sorted(where.keys() - tensors.keys())
    if missing:
        raise UserError(f"vae={index}: {missing[0]} is not in {where[missing[0]]}, where the index has it")
    return tensors
