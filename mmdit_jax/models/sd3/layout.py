"""From a tensor of a Stability checkpoint to a parameter of ours and back. Bits are moved, never changed."""

from __future__ import annotations

import numpy as np

from mmdit_jax.models.sd3.names import Entry


def to_ours(entry: Entry, array: np.ndarray) -> np.ndarray:
    """A parameter as ``init_params`` has it, one block of a stacked one: a view of ``array``, of any dtype.

    Args:
      array: shaped ``entry.shape``: vectors [out], kernels [out, in], the patch kernel [out, channel, p, q].
    """
    if array.ndim == 4:
        array = array.transpose(0, 2, 3, 1)
    return array.reshape(array.shape[0], -1).T if array.ndim > 1 else array


def from_ours(entry: Entry, array: np.ndarray) -> np.ndarray:
    """The inverse of ``to_ours``, contiguous."""
    if len(entry.shape) == 4:
        out, channels, rows, columns = entry.shape
        array = array.T.reshape(out, rows, columns, channels).transpose(0, 3, 1, 2)
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array)


def swap_halves(array: np.ndarray) -> np.ndarray:
    """The second half of the rows before the first."""
    half = len(array) // 2
    return np.concatenate([array[half:], array[:half]])


def parts(entry: Entry, array: np.ndarray, family: str) -> list[tuple[str, np.ndarray]]:
    """The tensors of a family that hold an entry, given in Stability's layout, by name."""
    if entry.swapped and family == "diffusers":
        array = swap_halves(array)
    names = entry.names(family)
    return list(zip(names, np.split(array, len(names)), strict=True))


def our_shape(entry: Entry) -> tuple[int, ...]:
    """Shape of ``to_ours``."""
    return to_ours(entry, np.broadcast_to(np.uint8(0), entry.shape)).shape
