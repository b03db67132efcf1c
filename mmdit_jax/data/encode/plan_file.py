"""A plan on disk: made once, read by every process that encodes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmdit_jax.data.encode.plan import Plan, Unit
from mmdit_jax.files import write_atomic


@dataclass(frozen=True)
class Stored(Plan):
    """A plan, and where its items are."""

    starts: np.ndarray
    """Number of each part's first item, and of all items at the end, int64 [parts + 1]."""

    @property
    def images(self) -> int:
        """Examples of all splits."""
        return sum(len(unit.items) for unit in self.units)

    def locate(self, item: int) -> tuple[int, int]:
        """An item's part, and its row there."""
        part = int(np.searchsorted(self.starts, item, "right")) - 1
        return part, int(item - self.starts[part])


def save(plan: Plan, sizes: Sequence[int], path: Path) -> None:
    """Write a plan atomically.

    Args:
        plan: to write.
        sizes: items of each part of the source.
        path: of the file.
    """
    told = {
        "units": [[unit.file, unit.split, unit.bucket, len(unit.items)] for unit in plan.units],
        "dropped": plan.dropped,
        "buckets": plan.buckets,
        "reasons": plan.reasons,
    }
    items = np.concatenate([np.zeros(0, np.int64), *(unit.items for unit in plan.units)])
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    np.savez(buffer, told=text, items=items, starts=np.cumsum([0, *sizes]))
    write_atomic(path, buffer.getvalue())


def load(path: Path) -> Stored:
    """What ``save`` wrote."""
    with np.load(path) as arrays:
        told, items, starts = json.loads(arrays["told"].tobytes()), arrays["items"], arrays["starts"]
    ends = np.cumsum([length for *_, length in told["units"]]).tolist()
    units = tuple(
        Unit(file, split, (h, w), items[end - length : end])
        for (file, split, (h, w), length), end in zip(told["units"], ends, strict=True)
    )
    buckets = tuple(((h, w), train, validation) for (h, w), train, validation in told["buckets"])
    return Stored(units, tuple((key, why) for key, why in told["dropped"]), buckets, told["reasons"], starts)
