"""Fixed features of where and when: 2-D sin-cos positions and the sinusoid of the timestep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from mmdit_jax.models.config import POSITION_BASE, TIME_FEATURES

if TYPE_CHECKING:
    from jaxtyping import Array, Float

MAX_PERIOD = 10_000.0


def sincos_positions(
    rows: int, columns: int, channels: int, table: int, span: int | None = None
) -> Float[Array, "tokens channels"]:
    """The centre of a table of 2-D sin-cos positions, one vector a patch, row-major, float32.

    The first half of the channels encodes the column and the second half the row, each as [sin, cos] with frequencies
    10000^(-i / (channels / 4)). In SD3, 192 entries span the coordinates 0 to 64, a third of a patch apart.

    Only the two axes of the crop are constants of the program; a whole table at SD3's size would be 350 MB.

    Args:
      rows, columns: of the patch grid, at most ``table`` each.
      channels: a multiple of 4.
      table: side of the whole table, in patches.
      span: coordinates that it spans, from 0; None: SD3's 64, or ``table`` where that is less.
    """
    span = span or min(POSITION_BASE, table)
    of_columns, of_rows = (position_axis(size, channels, table, span) for size in (columns, rows))
    by_column = jnp.broadcast_to(of_columns[None, :], (rows, columns, channels // 2))
    by_row = jnp.broadcast_to(of_rows[:, None], (rows, columns, channels // 2))
    return jnp.concatenate([by_column, by_row], axis=-1).reshape(rows * columns, channels)


def position_axis(size: int, channels: int, table: int, span: int) -> np.ndarray:
    """The centre of one axis of the table, float32 [size, channels / 2]; arguments as above."""
    first = (table - size) // 2
    frequencies = MAX_PERIOD ** (-np.arange(channels // 4, dtype=np.float64) / (channels // 4))
    angles = (first + np.arange(size))[:, None] * (span / table) * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def timestep_features(t: Float[Array, " batch"]) -> Float[Array, "batch 256"]:
    """[cos, sin] of 1000 t at 128 frequencies exp(-ln(10^4) i / 128), in float32 whatever the model computes in.

    bfloat16 would round 750 to 752 before the sinusoid; the features may be cast afterwards.
    """
    half = TIME_FEATURES // 2
    # Exponents in float32, as the released models had them: at t = 1 their rounding moves the angle by 1e-4.
    exponents = np.float32(-np.log(MAX_PERIOD)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = 1000.0 * t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def patchify(latents: Float[Array, "batch height width channels"], patch: int) -> jax.Array:
    """Latents to tokens [batch, rows x columns, patch x patch x channels]: row-major, a patch as (p, q, channel)."""
    batch, height, width, channels = latents.shape
    rows, columns = height // patch, width // patch
    tokens = latents.reshape(batch, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return tokens.reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(tokens: jax.Array, rows: int, columns: int, patch: int) -> Float[Array, "batch height width channels"]:
    """The inverse of ``patchify``."""
    batch = tokens.shape[0]
    latents = tokens.reshape(batch, rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return latents.reshape(batch, rows * patch, columns * patch, -1)
