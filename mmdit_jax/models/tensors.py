"""Safetensors files, read: what a header says, tensors one at a time, the shards that an index names.

A tensor's bytes are read by position, never through a memory map, whose pages would count as the process's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mmdit_jax.errors import UserError

KINDS: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "U8": np.uint8,
    }.items()
}
"""Stored dtypes, by the format's names; those that it has besides are of no weights."""
VARIANTS = ("", ".fp16", ".bf16")
"""Of weight files, in the order in which they are looked for."""
# The longest header that the format allows.
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor, whose numbers were not read."""

    dtype: str
    """The format's name for it, as "BF16"."""
    shape: tuple[int, ...]
    path: Path
    start: int
    """Byte in the file."""
    size: int
    """Bytes."""

    def read(self) -> np.ndarray:
        """The numbers, in their own dtype.

        Raises:
            UserError: the file ends early, or the dtype is none of ``KINDS``.
        """
        if self.dtype not in KINDS:
            raise UserError(f"{self.path}: a tensor is {self.dtype}; expected one of {', '.join(KINDS)}")
        out = np.empty(self.shape, KINDS[self.dtype])
        self.read_into(out)
        return out

    def read_into(self, out: np.ndarray, first: int = 0) -> None:
        """Fill a contiguous array of as many bytes a number with the numbers from number ``first`` on.

        Raises:
            UserError: the file ends early.
        """
        view = memoryview(out.reshape(-1).view(np.uint8).data)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start + first * out.dtype.itemsize)
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise UserError(f"{self.path}: cut short while read; copy it anew")
                done += count


def read_header(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; the tensors' data is not read.

    Args:
        path: the file.
        what: what it is to be, which begins an error's line: "checkpoint", "vae", ….

    Raises:
        UserError: the file is not there, not in the format, or cut short.
    """
    try:
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if total < 8 or not 2 <= length <= min(total - 8, _MAX_HEADER):
                raise ValueError
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        tensors = {name: _tensor(path, 8 + length, item) for name, item in header.items()}
    except OSError as error:
        raise UserError(f"{what}={path}: {error.strerror or error}; expected a safetensors file") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{what}={path}: not a safetensors file, or damaged; expected *.safetensors") from None
    end = max((tensor.start + tensor.size for tensor in tensors.values()), default=8 + length)
    if end > total:
        raise UserError(f"{what}={path}: cut short ({total:,} of {end:,} bytes); copy it anew")
    return tensors, metadata


def _tensor(path: Path, data: int, item: Mapping[str, Any]) -> Tensor:
    begin, end = item["data_offsets"]
    tensor = Tensor(item["dtype"], tuple(item["shape"]), path, data + begin, end - begin)
    kind = KINDS.get(tensor.dtype)
    if begin < 0 or (kind and tensor.size != math.prod(tensor.shape) * kind.itemsize):
        raise ValueError
    return tensor


def weight_files(folder: Path, stem: str, what: str) -> list[Path]:
    """The safetensors files of a Hugging Face folder: one or shards, of the first of ``VARIANTS`` that is there.

    An index none of whose shards are there is passed over: who fetches one variant gets the indices of all.

    Raises:
        UserError: there are none, or some that an index names are missing.
    """
    empty: list[Path] = []
    for variant in VARIANTS:
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [single]
        for index in (folder / f"{stem}.safetensors.index{variant}.json", folder / f"{single.name}.index.json"):
            if index.is_file():
                if any(file.is_file() for file in _named(index, what)):
                    return shards(index, what)
                empty.append(index)
    if empty:
        return shards(empty[0], what)  # which tells what is missing
    if others := sorted(file.name for kind in ("*.bin", "*.msgpack", "*.h5", "*.ckpt") for file in folder.glob(kind)):
        raise UserError(
            f"{what}={folder}: {others[0]} is not read, only safetensors; convert it where torch is with the model's "
            "from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise UserError(f"{what}={folder}: expected {stem}.safetensors or {stem}.safetensors.index.json in it")


def shards(index: Path, what: str) -> list[Path]:
    """The files that an index names, in the order of their names.

    Raises:
        UserError: it is no index, or some files are missing; it names them.
    """
    files = _named(index, what)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{what}={index.parent}: shards missing: {', '.join(missing[:20])}")
    return files


def _named(index: Path, what: str) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [index.parent / Path(name).name for name in names]
    except OSError as error:
        raise UserError(f"{what}={index}: {error.strerror or error}; expected an index of shards") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{what}={index}: not an index of shards (expected a weight_map)") from None


def compare(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> tuple[list[str], list[str], list[str]]:
    """Tensors that are unknown, missing and misshapen, by name; the last with both shapes."""
    unknown = [name for name in found if name not in expected]
    missing = [name for name in expected if name not in found]
    misshapen = [
        f"{name} {list(found[name])} (expected {list(shape)})"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return unknown, missing, misshapen


def read_json(path: Path, what: str, expected: str) -> dict[str, Any]:
    """The object in a config.json.

    Args:
        path: the file.
        what: begins an error's line, as of ``read_header``.
        expected: ends it.

    Raises:
        UserError: the file cannot be read, or holds no object.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{what}={path}: {error.strerror or error}; expected {expected}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{what}={path}: not a JSON object; expected {expected}")
    return value


def read_headers(files: Sequence[Path], what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """``read_header`` of several files together.

    Raises:
        UserError: as there, or a tensor is in two files.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        found, about = read_header(file, what)
        if twice := sorted(found.keys() & tensors.keys()):
            other = tensors[twice[0]].path.name
            raise UserError(f"{what}={file.parent}: {twice[0]} is both in {other} and {file.name}; name one file")
        tensors.update(found)
        metadata.update(about)
    return tensors, metadata
