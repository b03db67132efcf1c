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

    def __init__(self, source: Split, batch: int, seed: int, rows: np.ndarray):
        self._source, self._batch, self._seed, self._rows = source, batch, seed, rows
        self._block = functools.lru_cache(maxsize=2)(self._indices)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: SupportsIndex) -> dict[str, np.ndarray]:
        block, row = divmod(step.__index__(), _BLOCK)
        index = self._block(block)[row, self._rows]
        return {"image": self._source.take(index), "index": index}

    def _indices(self, block: int) -> np.ndarray:
        """``batch_indices`` of ``_BLOCK`` steps in a row, [_BLOCK, batch]: so many cost no more than one."""
        return batch_indices(len(self._source), _BLOCK * self._batch, self._seed, block).reshape(_BLOCK, self._batch)


class _EncodedSteps:
    """The same for an encoded set, whose steps are of one bucket each."""

    def __init__(self, source: EncodedSplit, batch: int, seed: int, rows: np.ndarray):
        self._source, self._batch, self._seed, self._rows = source, batch, seed, rows

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: SupportsIndex) -> tuple[int, Examples]:
        bucket, index = bucket_batch(self._source.sizes, self._batch, self._seed, step.__index__())
        return bucket, self._source.take(bucket, index[self._rows])


def batches(
    source: Split, *, batch: int, seed: int, start_step: int = 0, rows: np.ndarray | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of global steps ``start_step``, ``start_step`` + 1, … without end, through Grain.

    The examples of step s are ``batch_indices(len(source), batch, seed, s)``, whatever came before and however many
    processes share the batch: each takes its rows.

    Args:
        source: a split.
        batch: images of a global step, over all processes.
        seed: of the order.
        start_step: the first global step.
        rows: which of a batch's images are taken, in this order (``sharding.own_rows``); None for all.

    Yields:
        "image" uint8 [len(rows), R, R, 3] and "index" int64 [len(rows)], where they are in the split.

    Raises:
        UserError: an empty batch, no rows or such that it does not have, a negative step.
    """
    taken = _taken(batch, start_step, rows)
    # Rows that are in memory take a tenth of a millisecond to gather: less than handing them over from a thread.
    threads = 0 if source.in_memory else 4
    stream: Iterator[dict[str, np.ndarray]] = _from_step(
        _Steps(source, batch, seed, taken), start_step, threads, 2 * threads
    )
    return stream


def encoded_batches(
    source: EncodedSplit, *, batch: int, seed: int, start_step: int = 0, rows: np.ndarray | None = None
) -> Iterator[tuple[int, Examples]]:
    """The same for an encoded split: bucket and examples of each step are ``bucket_batch(sizes, batch, seed, s)``.

    Args, Raises: as of ``batches``.

    Yields:
        The bucket's number, and len(rows) of its examples.
    """
    taken = _taken(batch, start_step, rows)
    threads = 0 if source.in_memory else 4
    # Text states of large encoders make a batch of gigabytes: fewer are read ahead then.
    ahead = CACHE_BYTES * len(source) // (source.bytes * len(taken))
    stream: Iterator[tuple[int, Examples]] = _from_step(
        _EncodedSteps(source, batch, seed, taken), start_step, threads, min(max(ahead, 1), 8) if threads else 0
    )
    return stream


def _taken(batch: int, start_step: int, rows: np.ndarray | None) -> np.ndarray:
    """The rows of a global batch, int64 [1 or more]."""
    if batch < 1:
        raise UserError(f"batch={batch}: expected 1 or more")
    if start_step < 0:
        raise UserError(f"start_step={start_step}: expected 0 or more")
    taken = np.arange(batch) if rows is None else np.asarray(rows, np.int64)
    if not len(taken):
        raise UserError("rows=[]: expected 1 or more; this process's devices hold no part of the batch")
    if taken.min() < 0 or taken.max() >= batch:
        raise UserError(f"rows={taken.min()} to {taken.max()}: expected 0 to {batch - 1}, for batch={batch}")
    return taken


def _from_step(steps: Any, start_step: int, threads: int, ahead: int) -> Iterator[Any]:
    dataset = grain.MapDataset.source(steps)[start_step:]
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))
