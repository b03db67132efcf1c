"""Reading a frozen text encoder from disk: a Hugging Face folder, or one safetensors file of Stability's.

Tensors are read one by one: nothing is in memory twice but the tensor at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.models.tensors import Tensor, compare, read_header, read_headers, read_json, weight_files

WHAT = "text_encoder"
"""Begins the line of an error."""


@dataclass(frozen=True)
class Source:
    """Weight files and the configuration beside them."""

    path: Path
    """The folder or the file."""
    config: dict[str, Any] | None
    """config.json; None for a file by itself."""
    tensors: Mapping[str, Tensor]
    """By name; none was read yet."""


def read(path: Path) -> Source:
    """The encoder in a folder with config.json, or in a safetensors file.

    Raises:
        UserError: nothing there, nothing that can be read, or a file that is not whole.
    """
    if path.is_file():
        return Source(path, None, read_header(path, WHAT)[0])
    if not path.is_dir():
        raise UserError(f"{WHAT}={path}: no such folder; expected config.json and model.safetensors in it")
    if not (path / "config.json").is_file():
        raise UserError(f"{WHAT}={path}: config.json is missing; expected a Hugging Face folder")
    config = read_json(path / "config.json", WHAT, "that of a Hugging Face folder")
    return Source(path, config, read_headers(weight_files(path, "model", WHAT), WHAT)[0])


def stack(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], dtype: str, source: str
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
    found = {name: tensor.shape for name, tensor in tensors.items()}
    unknown, missing, misshapen = compare(dict(expand(shapes)), found)
    if wrong := [*(f"{name} is missing" for name in missing), *(f"{name} is unknown" for name in unknown), *misshapen]:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise UserError(f"{source}: {'; '.join(wrong[:8])}{more}")
    weights = {}
    for name, shape in shapes.items():
        if "*" in name:
            array = np.empty(shape, jnp.dtype(dtype))
            for layer in range(shape[0]):
                array[layer] = tensors[name.replace("*", str(layer))].read()
        else:
            array = np.asarray(tensors[name].read(), jnp.dtype(dtype))
        weights[name] = jnp.asarray(array)
    return weights


def expand(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that stacks are made of."""
    for name, shape in shapes.items():
        if "*" in name:
            yield from ((name.replace("*", str(layer)), shape[1:]) for layer in range(shape[0]))
        else:
            yield name, shape


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and every byte: the same for one file and for shards. Reads all of it."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].read()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
