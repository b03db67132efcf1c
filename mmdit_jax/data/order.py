"""Which examples a global step trains on: a pure function of (seed, step), with no iterator state to lose."""

from __future__ import annotations

import numpy as np

from mmdit_jax.errors import UserError

_ROUNDS = 6


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014), elementwise on uint64; wraps around on purpose."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(offsets: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Where a keyed permutation of 0..n-1 sends each offset: int64, the shape of ``offsets``.

    A Feistel network on the smallest even number of bits that holds n, repeated while it leaves the range (cycle
    walking, Black and Rogaway 2002): constant memory, no list of n, the same on every version of numpy.

    Args:
        offsets: int64 in [0, n).
        n: size of the set.
        key: uint64, broadcast against ``offsets``; another key is another permutation.
    """
    half = max(1, (int(n - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    keys = np.broadcast_to(key, offsets.shape)
    out = np.array(offsets, np.uint64)
    outside = np.ones(offsets.shape, bool)
    while outside.any():
        x, k = out[outside], keys[outside]
        left, right = x >> shift, x & low
        for turn in range(_ROUNDS):
            salt = np.uint64((turn + 1) * 0x9E3779B97F4A7C15 % 2**64)
            left, right = right, left ^ (_mix(_mix(k + salt) + right) & low)
        out[outside] = (left << shift) | right
        outside = out >= n
    return out.astype(np.int64)


def batch_indices(n: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Examples of a global step, int64 [batch]: each epoch is another permutation, and no example is left out.

    A batch may run from the end of one epoch into the next, so n need not divide by the batch.

    Raises:
        UserError: n or batch is below 1, or step is negative.
    """
    for field, value, least in (("examples", n, 1), ("batch", batch, 1), ("step", step, 0)):
        if value < least:
            raise UserError(f"{field}={value}: expected {least} or more")
    first = step * batch
    epochs, offsets = np.divmod(first % n + np.arange(batch, dtype=np.int64), n)
    key = np.array([(seed % 2**64) * 0xD1342543DE82EF95 % 2**64], np.uint64)
    key = _mix(_mix(key) + (epochs + first // n).astype(np.uint64))
    return permute(offsets, n, key)
