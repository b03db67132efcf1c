"""Reading a frozen text encoder from disk: a Hugging Face folder, or one safetensors file of Stability's.

Tensors are read one by one from memory-mapped files: nothing is in memory twice but the tensor at hand.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mmdit_jax.errors import UserError

VARIANTS = ("", ".fp16", ".bf16")
"""Of weight files, in the order in which they are looked for."""

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
}


@dataclass(frozen=True)
class Source:
    """Weight files and the configuration beside them."""

    path: Path
    """The folder or the file."""
    config: dict[str, Any] | None
    """config.json; None for a file by itself."""
    tensors: Mapping[str, np.ndarray]
    """Memory-mapped, by name."""


def read(path: Path) -> Source:
    """The encoder in a folder with config.json, or in a safetensors file.

    Raises:
        UserError: nothing there, nothing that can be read, or a file that is not whole.
    """
    if path.is_file():
        return Source(path, None, read_tensors(path))
    if not path.is_dir():
        raise UserError(f"text encoder {path}: no such folder; expected config.json and model.safetensors in it")
    config_file = path / "config.json"
    if not config_file.is_file():
        raise UserError(f"text encoder {path}: config.json is missing; expected a Hugging Face folder")
    try:
        config = json.loads(config_file.read_text())
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"{config_file}: not a configuration ({error})") from None
    tensors: dict[str, np.ndarray] = {}
    for file in weight_files(path):
        tensors |= read_tensors(file)
    return Source(path, config, tensors)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder's first variant, shards in the order of their names.

    Raises:
        UserError: there are none, or the index names a file that isn't there.
    """
    for variant in VARIANTS:
        single = folder / f"model{variant}.safetensors"
        if single.is_file():
            return [single]
        for index in (folder / f"model.safetensors.index{variant}.json", folder / f"{single.name}.index.json"):
            if index.is_file():
                return _shards(index)
    if others := sorted(file.name for kind in ("*.bin", "*.msgpack", "*.h5", "*.ckpt") for file in folder.glob(kind)):
        raise UserError(
            f"text encoder {folder}: {others[0]} is not read, only safetensors; convert it where torch is with "
            "transformers' MODEL.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise UserError(f"text encoder {folder}: expected model.safetensors or model.safetensors.index.json")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: not an index; expected an object with weight_map") from None
    files = [index.parent / Path(name).name for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{index}: names {len(files)} files, of which {', '.join(missing)} are missing")
    return files


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, memory-mapped and read-only.

    Raises:
        UserError: not a safetensors file, one that was cut off, or a tensor of a dtype that has no weights.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= size - 8:
            raise UserError(f"{path}: not a safetensors file ({size} bytes); was it downloaded whole?")
        try:
            header = json.loads(file.read(length))
            entries = [(name, told) for name, told in header.items() if name != "__metadata__"]
            end = 8 + length + max((told["data_offsets"][1] for _, told in entries), default=0)
            if end != size:
                raise UserError(f"{path}: {size} bytes, {end} by its header; was it downloaded whole?")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return {name: _tensor(data, 8 + length, name, told, path) for name, told in entries}
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError):
            raise UserError(f"{path}: not a safetensors file: its header is unreadable") from None


def _tensor(data: mmap.mmap, start: int, name: str, told: Mapping[str, Any], path: Path) -> np.ndarray:
    if told["dtype"] not in _DTYPES:
        raise UserError(f"{path}: {name} is {told['dtype']}; expected one of {', '.join(_DTYPES)}")
    dtype, shape = np.dtype(_DTYPES[told["dtype"]]), told["shape"]
    first, last = told["data_offsets"]
    count = int(np.prod(shape, dtype=np.int64))
    if last - first != count * dtype.itemsize:
        raise UserError(f"{path}: {name} has {last - first} bytes; its shape {shape} needs {count * dtype.itemsize}")
    return np.frombuffer(data, dtype, count, start + first).reshape(shape)


def stack(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], dtype: str, source: str
) -> dict[str, jax.Array]:
    """Weights on the device, one after the other.

    Args:
        tensors: by transformers' names.
        shapes: of the weights wanted; a name with ``*`` is a stack over the layers, ``*`` standing for their numbers.
        dtype: of the result.
        source: where the tensors come from, for errors.

    Raises:
        UserError: tensors are missing, unknown or misshapen: each is named, up to eight of them.
    """
    expected = dict(expand(shapes))
    missing = [f"{name} is missing" for name in expected if name not in tensors]
    unknown = [f"{name} is unknown" for name in tensors if name not in expected]
    misshapen = [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if wrong := missing + unknown + misshapen:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise UserError(f"{source}: {'; '.join(wrong[:8])}{more}")
    weights = {}
    for name, shape in shapes.items():
        if "*" in name:
            array = np.empty(shape, jnp.dtype(dtype))
            for layer in range(shape[0]):
                array[layer] = tensors[name.replace("*", str(layer))]
        else:
            array = np.asarray(tensors[name], jnp.dtype(dtype))
        weights[name] = jnp.asarray(array)
    return weights


def expand(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that stacks are made of."""
    for name, shape in shapes.items():
        if "*" in name:
            yield from ((name.replace("*", str(layer)), shape[1:]) for layer in range(shape[0]))
        else:
            yield name, shape


def content_hash(tensors: Mapping[str, np.ndarray]) -> str:
    """Hash of names, dtypes, shapes and every byte: the same for one file and for shards. Reads all of it."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
