"""Which bucket a global step trains on: a pure function of the step and of the buckets' sizes, the same for every seed.

All examples of a batch have one shape, so a step is of one bucket. Steps are dealt out evenly: a bucket with a share s
of the examples gets a share s of the steps, spread as evenly as whole steps allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from mmdit_jax.data.order import batch_indices
from mmdit_jax.errors import UserError

_BETWEEN_BUCKETS = 0x9E3779B97F4A7C15


def bucket_at(sizes: Sequence[int], step: int) -> tuple[int, int]:
    """(bucket, number) of a global step: the step takes batch ``number``, from 0 on, of that bucket.

    A cycle is the fewest steps in which every bucket can have its exact share, c of them in proportion to its size. The
    bucket's steps lie at (k + 1/2) / c of the cycle, k = 0 … c − 1, and the steps of all buckets are taken in this
    order, the first bucket of several at one place. After any number of steps, each bucket has had its share to within
    half the number of buckets plus one. Seeking costs the same anywhere: a cycle may have millions of steps.

    Args:
        sizes: examples of each bucket, 1 or more.
        step: global step.

    Raises:
        UserError: no bucket, an empty one, or a negative step.
    """
    if not sizes or min(sizes) < 1:
        raise UserError(f"buckets={list(sizes)}: expected at least one, each with 1 example or more")
    if step < 0:
        raise UserError(f"step={step}: expected 0 or more")
    common = math.gcd(*sizes)
    shares = [size // common for size in sizes]
    length = sum(shares)
    cycle, place = divmod(step, length)

    def before(share: int, at: int) -> int:
        """How many k have (k + 1/2) / share < at / length."""
        return max(0, -(-(2 * share * at - length) // (2 * length)))

    # Each bucket's count up to `at` is its share rounded, so all of them are `at` to within half the buckets.
    margin = len(shares) // 2 + 1
    first, last = max(0, place - margin), min(length, place + margin + 1)
    passed = sum(before(share, first) for share in shares)
    near = [
        (Fraction(2 * k + 1, 2 * share), bucket, k)
        for bucket, share in enumerate(shares)
        for k in range(before(share, first), before(share, last))
    ]
    _, bucket, k = sorted(near)[place - passed]
    return bucket, cycle * shares[bucket] + k


def bucket_batch(sizes: Sequence[int], batch: int, seed: int, step: int) -> tuple[int, np.ndarray]:
    """Bucket of a global step, and its examples' rows in that bucket, int64 [batch].

    Within a bucket the rows are those of ``batch_indices``: every example once an epoch of the bucket, in another
    order for every bucket. A bucket with fewer examples than a batch gives some of them twice.

    Args:
        sizes: examples of each bucket.
        batch: examples of a step.
        seed: of the order within buckets; which bucket comes when does not depend on it.
        step: global step.

    Raises:
        UserError: as ``bucket_at`` and ``batch_indices``.
    """
    bucket, number = bucket_at(sizes, step)
    return bucket, batch_indices(sizes[bucket], batch, seed + bucket * _BETWEEN_BUCKETS, number)


def spread(sizes: Sequence[int], count: int) -> list[tuple[int, int]]:
    """(bucket, row) of the first ``count`` examples, or of all where there are fewer, buckets by their share.

    Of a smaller ``count`` they are the beginning of those of a larger one.
    """
    return [bucket_at(sizes, i) for i in range(min(count, sum(sizes)))]
