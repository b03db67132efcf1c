"""Where a fit of a sum of powers begins: many exponents, each with the best coefficients for it.

For given exponents the law is linear in E and the scales (variable projection; for laws of loss 2603.22339), so that a
hundred starts of thousands of resampled tables are products of matrices.
"""

from __future__ import annotations

import numpy as np

from scaling.descent import huber
from scaling.powers import Powers, exponent_grid

_CHUNK = 4_000_000
"""Numbers in one [draws, starts, rows] array."""
ROUNDS = 2
"""Reweighted solutions after the first: a few outliers would otherwise decide which exponents look best."""


def projected_starts(
    form: Powers,
    u: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    *,
    delta: float,
    lower: np.ndarray,
    upper: np.ndarray,
    starts: int = 100,
    keep: int = 4,
) -> np.ndarray:
    """The ``keep`` best of ``starts`` exponents with coefficients, for each of B tables: theta ``[B, keep, size]``.

    Args: ``u [n, K]``, ``target [B or 1, n]`` of log losses, ``weight [B or 1, n]``.

    Coefficients minimise Σ weight·(prediction/loss − 1)², reweighted as Huber's loss does; negative ones are set to a
    thousandth of the loss. The best are those with the least Huber loss of log residuals.
    """
    grid = exponent_grid(form.terms, starts)
    # basis[g, n, k]: each power, and the constant of the floor.
    basis = np.exp(-grid[:, None, :] * u[None])
    if form.floor:
        basis = np.concatenate([basis, np.ones((*basis.shape[:2], 1))], axis=-1)
    count, rows, _ = basis.shape
    pairs = (basis[..., :, None] * basis[..., None, :]).reshape(count, rows, -1)
    draws = max(len(target), len(weight))
    found = np.empty((draws, min(keep, count), form.size))
    chunk = max(1, _CHUNK // (count * rows))
    for first in range(0, draws, chunk):
        part = slice(first, min(first + chunk, draws))
        y, w = (values if len(values) == 1 else values[part] for values in (target, weight))
        y, w = (np.broadcast_to(values, (part.stop - first, rows)) for values in (y, w))
        coefficients = _solved(basis, pairs, np.exp(-y), w[None])
        for _ in range(ROUNDS):
            residual = _residual(basis, coefficients, y)
            shrink = np.minimum(1.0, max(delta, 1e-3) / np.maximum(np.abs(residual), 1e-12))
            coefficients = _solved(basis, pairs, np.exp(-y), w[None] * shrink)
        objective = (w[None] * huber(_residual(basis, coefficients, y), delta)).sum(-1).T  # [B, G]
        best = np.argsort(objective, axis=1, kind="stable")[:, : found.shape[1]]
        chosen = coefficients[best, np.arange(len(best))[:, None]]
        theta = np.concatenate(
            [np.log(chosen[..., : form.terms]), grid[best], *([np.log(chosen[..., -1:])] if form.floor else [])],
            axis=-1,
        )
        found[part] = np.clip(theta, lower, upper)
    return found


def _solved(basis: np.ndarray, pairs: np.ndarray, inverse: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Least squares of prediction/loss on 1: coefficients ``[G, B, k]``, above zero.

    ``inverse [B, n]`` is 1/loss, ``weight [1 or G, B, n]``.
    """
    size = basis.shape[-1]
    matrix = np.matmul(weight * inverse**2, pairs)
    right = np.matmul(weight * inverse, basis)
    matrix = matrix.reshape(*matrix.shape[:2], size, size)
    # Columns of one length: exponents near zero and a floor are nearly the same, which a small ridge settles.
    scale = np.sqrt(np.maximum(np.diagonal(matrix, axis1=-2, axis2=-1), 1e-300))
    matrix = matrix / (scale[..., :, None] * scale[..., None, :]) + 1e-9 * np.eye(size)
    found = np.linalg.solve(matrix, (right / scale)[..., None])[..., 0] / scale
    return np.maximum(found, 1e-3 * np.median(1 / inverse))


def _residual(basis: np.ndarray, coefficients: np.ndarray, target: np.ndarray) -> np.ndarray:
    """log prediction − log loss, ``[G, B, n]``."""
    return np.log(np.matmul(coefficients, basis.transpose(0, 2, 1))) - target
