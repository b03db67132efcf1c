"""The largest batch that fits, found in few compilations: pure, told what a batch needs by whoever compiles it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

TRIES = 3
"""Compilations, while a batch that fits is known."""
_GROWTH = 16


def rungs() -> Iterator[int]:
    """Batches that are considered, ascending: 1 to 8, then 4, 5, 6 and 7 times a power of two, an eighth to a quarter
    apart."""
    yield from (1, 2, 3)
    for power in itertools.count():
        yield from (step * 2**power for step in (4, 5, 6, 7))


def rung(at_most: float) -> int:
    """The largest of ``rungs``, or 1."""
    return max(itertools.takewhile(lambda size: size <= at_most, rungs()), default=1)


def largest_batch(
    needs: Callable[[int], float],
    limit: float,
    fixed: float,
    first: int,
    has_time: Callable[[], bool] = lambda: True,
) -> int | None:
    """The largest batch whose bytes are within ``limit``, as far as few questions can tell; None if 1 is too large.

    A batch that fits is the answer where the line through what is known says that the next one would not.

    Args:
      needs: bytes of a batch; asked of no batch twice. It may be infinite.
      fixed: bytes of no images at all, or fewer.
      first: the batch asked about first.
      has_time: whether another may be asked about, where one that fits is known.
    """
    known = {0: fixed}
    fits, over = 0, None
    batch = rung(first)
    while True:
        known[batch] = needs(batch)
        if known[batch] <= limit:
            fits = batch
        else:
            over = batch
        if over == 1:
            return None
        enough = len(known) > TRIES or not has_time()
        if fits and enough:
            return fits
        guess = rung(batch / 2) if enough or known[batch] == float("inf") else rung(_through(known, limit))
        if over is not None:
            guess = min(guess, rung(over - 1))
        if guess <= fits:
            return fits
        batch = min(max(guess, 1), _GROWTH * batch)


def _through(known: dict[int, float], limit: float) -> float:
    """Where the line through the two largest batches that are known reaches ``limit``."""
    low, high = sorted(size for size, bytes_ in known.items() if bytes_ < float("inf"))[-2:]
    slope = (known[high] - known[low]) / (high - low)
    return high + (limit - known[high]) / slope if slope > 0 else float(_GROWTH * high)
