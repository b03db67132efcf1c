"""Batches of global steps, of images or of an encoded set, through Grain: from any step, for any number of hosts."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any, SupportsIndex

import grain
import numpy as np

from mmdit_jax.data.encoded import EncodedSplit, Examples
from mmdit_jax.data.order import batch_indices
from mmdit_jax.data.pipeline import Split
from mmdit_jax.data.schedule import bucket_batch
from mmdit_jax.data.store import CACHE_BYTES
from mmdit_jax.errors import UserError

_BLOCK = 64


class _Steps:
    """Global step to batch, as a Grain source: seeking to any step costs nothing."""

    def __init__(self, source: Split, batch: int, seed: int, mine: slice):
        self._source, self._batch, self._seed, self._mine = source, batch, seed, mine
        self._block = functools.lru_cache(maxsize=2)(self._indices)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: SupportsIndex) -> dict[str, np.ndarray]:
        block, row = divmod(step.__index__(), _BLOCK)
        rows = self._block(block)[row, self._mine]
        return {"image": self._source.take(rows), "index": rows}

    def _indices(self, block: int) -> np.ndarray:
        """``batch_indices`` of ``_BLOCK`` steps in a row, [_BLOCK, batch]: so many cost no more than one."""
        return batch_indices(len(self._source), _BLOCK * self._batch, self._seed, block).reshape(_BLOCK, self._batch)


class _EncodedSteps:
    """The same for an encoded set, whose steps are of one bucket each."""

    def __init__(self, source: EncodedSplit, batch: int, seed: int, mine: slice):
        self._source, self._batch, self._seed, self._mine = source, batch, seed, mine

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: SupportsIndex) -> tuple[int, Examples]:
        bucket, rows = bucket_batch(self._source.sizes, self._batch, self._seed, step.__index__())
        return bucket, self._source.take(bucket, rows[self._mine])


def batches(
    source: Split,
    *,
    batch: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of global steps ``start_step``, ``start_step`` + 1, … without end, through Grain.

    The examples of step s are ``batch_indices(len(source), batch, seed, s)``, whatever came before and however many
    processes share the batch: each takes its slice, in order.

    Args:
        source: a split.
        batch: images of a global step, over all processes.
        seed: of the order.
        start_step: the first global step.
        process_index, process_count: this process among those that share the batch.

    Yields:
        "image" uint8 [batch / process_count, R, R, 3] and "index" int64 [batch / process_count], the rows in the split.

    Raises:
        UserError: a batch that does not divide by ``process_count``, an impossible process index or step.
    """
    mine = _slice(batch, start_step, process_index, process_count)
    # Rows that are in memory take a tenth of a millisecond to gather: less than handing them over from a thread.
    threads = 0 if source.in_memory else 4
    stream: Iterator[dict[str, np.ndarray]] = _from_step(
        _Steps(source, batch, seed, mine), start_step, threads, 2 * threads
    )
    return stream


def encoded_batches(
    source: EncodedSplit,
    *,
    batch: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[int, Examples]]:
    """The same for an encoded split: bucket and examples of each step are ``bucket_batch(sizes, batch, seed, s)``.

    Args, Raises: as of ``batches``.

    Yields:
        The bucket's number, and batch / process_count of its examples.
    """
    mine = _slice(batch, start_step, process_index, process_count)
    threads = 0 if source.in_memory else 4
    # Text states of large encoders make a batch of gigabytes: fewer are read ahead then.
    ahead = CACHE_BYTES * len(source) // (source.bytes * (mine.stop - mine.start))
    stream: Iterator[tuple[int, Examples]] = _from_step(
        _EncodedSteps(source, batch, seed, mine), start_step, threads, min(max(ahead, 1), 8) if threads else 0
    )
    return stream


def _slice(batch: int, start_step: int, process_index: int, process_count: int) -> slice:
    """This process's part of a global batch."""
    if batch < 1 or process_count < 1 or batch % process_count:
        raise UserError(f"batch={batch}: expected a multiple of the {process_count} processes")
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index={process_index}: expected 0 to {process_count - 1}")
    if start_step < 0:
        raise UserError(f"start_step={start_step}: expected 0 or more")
    return slice(process_index * batch // process_count, (process_index + 1) * batch // process_count)


def _from_step(steps: Any, start_step: int, threads: int, ahead: int) -> Iterator[Any]:
    dataset = grain.MapDataset.source(steps)[start_step:]
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))
