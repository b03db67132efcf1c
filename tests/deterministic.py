"""Numbers that are the same on every machine and under every version of numpy: weights and inputs of parity tests.

Both sides of a comparison get the same numbers by the public name of a tensor, so that a golden need not hold weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np


def values(name: str, shape: Sequence[int], scale: float = 1.0) -> np.ndarray:
    """float32 array, uniform with mean 0 and deviation ``scale``, from a hash of the name."""
    count = int(np.prod(shape, dtype=np.int64))
    raw = np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * count), "<u4")
    uniform = (raw.astype(np.float64) + 0.5) / 2**31 - 1.0
    return (uniform * np.sqrt(3.0) * scale).astype(np.float32).reshape(shape)


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """A value for every tensor, such that activations stay near 1: matrices by 1/√(inputs), vectors near 0 or 1.

    Vectors named ``…norm….weight`` (and ``…layer_norm.weight``, ``…ln_q.weight``) lie around 1, other vectors around 0.
    """
    out = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            out[name] = values(name, shape, float(np.prod(shape[1:], dtype=np.int64)) ** -0.5)
        elif name.endswith(".weight"):
            out[name] = 1.0 + values(name, shape, 0.1)
        else:
            out[name] = values(name, shape, 0.1)
    return out


def sketch(name: str, array: np.ndarray, numbers: int = 4) -> np.ndarray:
    """A few numbers that tell an array from a wrong one: its norm, and products with fixed random directions.

    float64 [numbers]. Transposed, permuted or swapped values give other products; use on gradients, whose full arrays
    a golden has no room for.
    """
    flat = np.asarray(array, np.float64).ravel()
    directions = [values(f"{name}/{i}", flat.shape).astype(np.float64) @ flat for i in range(numbers - 1)]
    return np.array([np.linalg.norm(flat), *directions]) / max(flat.size, 1) ** 0.5


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """‖ours − theirs‖ / ‖theirs‖ in float64: the figure that parity is stated in."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))
