"""Weight files of the small embedded models: one npz of float16 arrays named by their path in the module."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from mmdit_jax.errors import UserError
from mmdit_jax.files import write_atomic


def flatten(module: nnx.Module) -> dict[str, np.ndarray]:
    """A module's parameters as numpy arrays by path, "blocks/0/qkv/kernel"."""
    paths = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {"/".join(str(part) for part in path): np.asarray(leaf[...]) for path, leaf in paths}


def unflatten(module: nnx.Module, arrays: dict[str, np.ndarray]) -> None:
    """Put arrays from ``flatten`` into a module (which may be abstract, of shapes alone), as float32.

    Raises:
        ValueError: names or shapes are not those of the module.
    """
    state = nnx.state(module, nnx.Param)
    own = {"/".join(str(part) for part in path): leaf for path, leaf in nnx.to_flat_state(state)}
    if own.keys() != arrays.keys():
        raise ValueError(f"parameters differ: {sorted(own.keys() ^ arrays.keys())[:4]}")
    for name, leaf in own.items():
        if leaf.shape != arrays[name].shape:
            raise ValueError(f"{name}: shape {arrays[name].shape}, expected {leaf.shape}")
        leaf.set_value(jax.device_put(arrays[name].astype(np.float32)))  # nothing to compile, as jnp.asarray has
    nnx.update(module, state)


def fingerprint(version: str, arrays: dict[str, np.ndarray]) -> str:
    """Hash of an algorithm's version and its weights, 16 hexadecimal digits."""
    digest = hashlib.sha256(version.encode())
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name], np.float16).tobytes())
    return digest.hexdigest()[:16]


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as float16; the file appears whole or not at all."""
    file = io.BytesIO()
    np.savez_compressed(file, **{name: np.asarray(a, np.float16) for name, a in arrays.items()})  # type: ignore[arg-type]
    write_atomic(path, file.getvalue())


def load(path: Path, module: nnx.Module, maker: str, extra: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Read a weight file into a module; returns the arrays as stored.

    Args:
        path: the npz file.
        module: takes the parameters.
        maker: the command that makes the file, for the error message.
        extra: names of arrays in the file that aren't parameters.

    Raises:
        UserError: the file is missing, damaged, or of another model.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        if missing := [name for name in extra if name not in arrays]:
            raise ValueError(f"{missing[0]} is missing")
        unflatten(module, {name: array for name, array in arrays.items() if name not in extra})
    except FileNotFoundError:
        raise UserError(f"weights={path}: missing; `{maker}` makes it") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"weights={path}: unreadable ({reason}); `{maker}` makes it anew") from None
    return arrays
