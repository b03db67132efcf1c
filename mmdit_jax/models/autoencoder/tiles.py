"""Work on large images in overlapping tiles, blended linearly: memory stays that of a tile.

The same grid, overlap and blending as diffusers' tiled decoding, so that results can be compared. Each tile has group
norms and attention of its own: a tiled image is not the whole one, away from the seams either.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmdit_jax.errors import UserError

OVERLAP = 0.25
"""Share of a tile's side that lies under the next tile's beginning."""


def tiled(function: Callable[[np.ndarray], np.ndarray], whole: np.ndarray, side: int, outcome_side: int) -> np.ndarray:
    """``function`` of ``whole`` tile by tile.

    Args:
        function: takes a tile [B, h, w, C] to [B, h·r, w·r, C'], r = outcome_side / side (1/8 for an encoder).
        whole: [B, H, W, C]. Tiles at its lower and right end are as small as what is left.
        side: of a tile.
        outcome_side: of a tile's outcome.

    Returns:
        float32 [B, H·r, W·r, C'].

    Raises:
        UserError: the tile is too small for an overlap of whole pixels on both sides.
    """
    step, blend = int(side * (1 - OVERLAP)), int(outcome_side * OVERLAP)
    keep = outcome_side - blend
    if blend < 1 or step * outcome_side != keep * side:
        raise UserError(f"tile={max(side, outcome_side)}: expected a multiple of 4 latent pixels")
    rows: list[np.ndarray] = []
    above: list[np.ndarray] = []
    for top in range(0, whole.shape[1], step):
        row: list[np.ndarray] = []
        for left in range(0, whole.shape[2], step):
            tile = np.array(function(whole[:, top : top + side, left : left + side]), np.float32)
            if above:
                _blend(above[len(row)], tile, blend, axis=1)
            if row:
                _blend(row[-1], tile, blend, axis=2)
            row.append(tile)
        rows.append(np.concatenate([tile[:, :keep, :keep] for tile in row], axis=2))
        above = row
    return np.concatenate(rows, axis=1)


def _blend(before: np.ndarray, tile: np.ndarray, extent: int, axis: int) -> None:
    """Fade from the end of ``before`` into the beginning of ``tile``, which is changed, along an axis."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    share = np.arange(extent, dtype=np.float32) / np.float32(extent)
    share = share.reshape([-1 if i == axis else 1 for i in range(tile.ndim)])
    end = np.take(before, range(before.shape[axis] - extent, before.shape[axis]), axis=axis)
    begin = tile[:, :extent] if axis == 1 else tile[:, :, :extent]
    begin[...] = end * (1 - share) + begin * share
