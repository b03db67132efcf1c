"""Which bucket a step trains on, and which of its examples: against brute force."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from mmdit_jax.data.order import batch_indices
from mmdit_jax.data.schedule import bucket_at, bucket_batch, spread
from mmdit_jax.errors import UserError

SIZES = [
    (7,),
    (4, 4, 4),
    (1, 1000),
    (30, 17, 5, 1),
    (12, 18, 6),
    tuple(np.random.default_rng(0).integers(1, 90, 37).tolist()),
]


@pytest.mark.parametrize("sizes", SIZES)
def test_a_cycle_is_the_sorted_list_of_all_buckets_steps(sizes: tuple[int, ...]) -> None:
    common = math.gcd(*sizes)
    shares = [size // common for size in sizes]
    listed = sorted((Fraction(2 * k + 1, 2 * c), b, k) for b, c in enumerate(shares) for k in range(c))
    expected = [(b, k) for _, b, k in listed]
    assert [bucket_at(sizes, step) for step in range(len(expected))] == expected
    # The next cycle goes on where this one ended; far away costs nothing.
    for cycle in (1, 10**9):
        for step in (0, len(expected) // 2, len(expected) - 1):
            bucket, k = expected[step]
            assert bucket_at(sizes, cycle * len(expected) + step) == (bucket, cycle * shares[bucket] + k)


@pytest.mark.parametrize("sizes", SIZES)
def test_every_bucket_has_its_share_at_every_moment_and_its_batches_in_order(sizes: tuple[int, ...]) -> None:
    steps = min(2 * sum(sizes), 3000)
    dealt = np.zeros(len(sizes), int)
    share = np.array(sizes) / sum(sizes)
    for step in range(steps):
        bucket, number = bucket_at(sizes, step)
        assert number == dealt[bucket]
        dealt[bucket] += 1
        assert np.abs(dealt - share * (step + 1)).max() <= len(sizes) / 2 + 1
    if steps == 2 * sum(sizes):
        np.testing.assert_array_equal(dealt, 2 * np.array(sizes))


def test_buckets_are_mixed() -> None:
    """Two of equal size take turns; none of three comes twice in a row before the others had a turn."""
    assert [bucket_at((8, 8), step)[0] for step in range(6)] == [0, 1, 0, 1, 0, 1]
    order = [bucket_at((50, 30, 20), step)[0] for step in range(100)]
    gaps = [np.diff([i for i, b in enumerate(order) if b == bucket]).max() for bucket in range(3)]
    assert gaps[0] <= 3 and gaps[1] <= 5 and gaps[2] <= 7


@pytest.mark.parametrize(("sizes", "batch"), [((30, 17, 5, 1), 4), ((3, 50), 8)])
def test_every_example_of_a_bucket_once_an_epoch(sizes: tuple[int, ...], batch: int) -> None:
    """In buckets smaller than a batch, too: there an epoch is a part of a batch."""
    stream: list[list[int]] = [[] for _ in sizes]
    for step in range(2 * sum(sizes)):
        bucket, rows = bucket_batch(sizes, batch, 11, step)
        assert rows.shape == (batch,)
        stream[bucket] += rows.tolist()
    for size, rows in zip(sizes, stream, strict=True):
        epochs = np.array(rows[: len(rows) // size * size]).reshape(-1, size)
        assert len(epochs) >= batch
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()


def test_seeds_differ_in_examples_and_never_in_shapes() -> None:
    sizes = (300, 300, 300)
    for step in range(12):
        found = [bucket_batch(sizes, 16, seed, step) for seed in (0, 1, 2**32 - 1)]
        assert len({bucket for bucket, _ in found}) == 1
        assert not np.array_equal(found[0][1], found[1][1]) and not np.array_equal(found[1][1], found[2][1])
    # Buckets of one size are in another order each; the first is ordered as a set of one bucket.
    orders = [bucket_batch(sizes, 16, 5, step)[1] for step in range(3)]
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    np.testing.assert_array_equal(bucket_batch((300,), 16, 5, 9)[1], batch_indices(300, 16, 5, 9))


def test_the_schedule_never_changes() -> None:
    """Published: a run that goes on under a newer version must see the buckets it would have seen."""
    assert [bucket_at((30, 17, 5, 1), step)[0] for step in range(12)] == [0, 1, 0, 0, 1, 2, 0, 1, 0, 0, 1, 0]
    assert bucket_at((400_123, 77_001, 9_999), 10**12) == (1, 158_073_012_360)


def test_examples_spread_over_buckets() -> None:
    sizes = (6, 3, 1)
    whole = spread(sizes, 100)
    assert sorted(whole) == [(b, row) for b, size in enumerate(sizes) for row in range(size)]
    assert spread(sizes, 4) == whole[:4]
    assert len({bucket for bucket, _ in spread((60, 30, 10), 10)}) == 3


def test_bad_input_is_told_in_one_line() -> None:
    for sizes in ((), (4, 0)):
        with pytest.raises(UserError, match=r"^buckets="):
            bucket_at(sizes, 0)
    with pytest.raises(UserError, match=r"^step=-1: expected 0 or more"):
        bucket_at((3,), -1)
