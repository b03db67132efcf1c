"""The position table of a checkpoint: which coordinates it spans, and writing one out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.positions import MAX_PERIOD, position_axis

# Largest difference from the computed table that rounding explains. The float32 tables of the public models were made
# from float32 coordinates, so that they differ by some 1e-6 at the far end.
TOLERANCE = {"F32": 2e-5, "F16": 1e-3, "BF16": 5e-3}


def span_of(first_row: np.ndarray) -> int | None:
    """The coordinates that a table spans, read off its first row; none where it is no sin-cos table from 0.

    Args:
      first_row: float32 [table, width], the entries of row 0, which differ in their column.
    """
    size, quarter = first_row.shape[0], first_row.shape[1] // 4
    sines, cosines = first_row[:, :quarter].astype(np.float64), first_row[:, quarter : 2 * quarter].astype(np.float64)
    frequencies = MAX_PERIOD ** (-np.arange(quarter) / quarter)
    # The slowest sine takes thousands of patches to turn: it gives the coordinate, each faster one makes it precise.
    coordinates = np.zeros(size)
    for i in reversed(range(quarter)):
        behind = np.arctan2(sines[:, i], cosines[:, i]) - frequencies[i] * coordinates
        coordinates += (np.mod(behind + np.pi, 2 * np.pi) - np.pi) / frequencies[i]
    span = coordinates[-1] / max(size - 1, 1) * size
    rounded = round(float(span)) if np.isfinite(span) else 0
    return rounded if rounded >= 1 and abs(span - rounded) < 0.05 * max(1.0, span / 64) else None


def rows(config: MMDiTConfig) -> Iterator[np.ndarray]:
    """The config's whole table row by row, each float32 [table, width]."""
    size, half = config.position_table, config.width // 2
    axis = position_axis(size, config.width, size, config.position_span)
    for row in axis:
        yield np.concatenate([axis, np.broadcast_to(row, (size, half))], axis=1)


def centre(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The entries for a grid of patches, row-major [rows x columns, width], out of a whole table [1, side², width]."""
    side = round(table.shape[1] ** 0.5)
    top, left = (side - grid[0]) // 2, (side - grid[1]) // 2
    whole = table.reshape(side, side, -1)
    return whole[top : top + grid[0], left : left + grid[1]].reshape(grid[0] * grid[1], -1)


def whole(config: MMDiTConfig) -> np.ndarray:
    """The config's table as a checkpoint stores it, float32 [1, table², width]."""
    return np.concatenate(list(rows(config)))[None]
