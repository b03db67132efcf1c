"""Fréchet distance between Gaussian fits of two sets of features (Heusel et al. 2017), and its bootstrap over rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.errors import TableError

CHUNK_BYTES = 64 * 2**20
"""Working memory of a batch of resamples; more brings no speed."""


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian fit of the features to compare with.

    ``mean [d]``; ``root [d, r]`` with root·rootᵀ = covariance, r its rank; ``trace`` of the covariance. All float64.
    """

    mean: np.ndarray
    root: np.ndarray
    trace: float


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Fit mean and covariance (divided by N − 1, as FID does) to ``features [N, d]``.

    Raises TableError for fewer than 2 rows or features that are not finite.
    """
    features = _checked(features)
    mean = features.mean(axis=0)
    _, sizes, axes = np.linalg.svd((features - mean) / np.sqrt(len(features) - 1), full_matrices=False)
    keep = sizes > sizes[0] * np.finfo(np.float64).eps * max(features.shape)
    root = axes[keep].T * sizes[keep]
    return Gaussian(mean, root, float((root**2).sum()))


def distance(features: np.ndarray, reference: Gaussian) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) between a fit of ``features [N, d]`` and the reference."""
    return float(distances(features, np.ones((1, len(features))), reference)[0])


def distances(features: np.ndarray, counts: np.ndarray, reference: Gaussian) -> np.ndarray:
    """The distance of each resample of the rows: ``features [N, d]``, ``counts [B, N]`` -> float64 ``[B]``.

    ``counts`` says how often a resample has each row; all ones is the set itself. Equal to repeating the rows.

    The eigenvalues of Σ₁Σ₂ are those of RᵀΣ₁R with RRᵀ = Σ₂, symmetric, so their roots are real; with X the centred
    features, they are also those of XR(XR)ᵀ/(n − 1). The smaller of the two matrices is taken: N may be less than d.

    Raises TableError for features that are not finite, another width than the reference's, or a resample with fewer
    than 2 rows.
    """
    features, counts = _checked(features), np.asarray(counts, dtype=np.float64)
    count, width = features.shape
    if width != len(reference.mean):
        raise TableError(f"features: {width} wide; expected the reference's {len(reference.mean)}")
    if counts.ndim != 2 or counts.shape[1] != count or (counts < 0).any() or (counts.sum(axis=1) < 2).any():
        raise TableError(
            f"counts={counts.shape}: expected [B, {count}], none negative, 2 or more rows in each resample"
        )
    # About the rows' own mean, so that the squares below don't cancel.
    centre = features.mean(axis=0)
    features = features - centre
    total = counts.sum(axis=1)
    share = counts / total[:, None]
    mean = share @ features
    trace = total / (total - 1) * (share @ (features**2).sum(axis=1) - (mean**2).sum(axis=1))
    projected = features @ reference.root
    cross = _root_traces(projected, counts, total)
    gap = mean + (centre - reference.mean)
    return np.maximum((gap**2).sum(axis=1) + trace + reference.trace - 2 * cross, 0.0)


def _root_traces(projected: np.ndarray, counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """tr(Σ₁Σ₂)^½ of each resample, from XR ``[N, r]`` -> ``[B]``."""
    rows, rank = projected.shape
    size = min(rows, rank)
    chunk = max(1, CHUNK_BYTES // (8 * max(size * size, rows * rank if rank <= rows else 1, 1)))
    gram = projected @ projected.T if rows < rank else None
    out = np.empty(len(counts))
    for start in range(0, len(counts), chunk):
        part = slice(start, start + chunk)
        weight, number = counts[part], total[part]
        mean = weight / number[:, None]
        if gram is None:
            middle = mean @ projected
            weighted = np.sqrt(weight)[:, :, None] * projected
            matrix = weighted.transpose(0, 2, 1) @ weighted
            matrix -= number[:, None, None] * middle[:, :, None] * middle[:, None, :]
        else:
            towards = mean @ gram  # inner products of each row with the resample's mean
            inside = (towards * mean).sum(axis=1)
            matrix = gram - towards[:, :, None] - towards[:, None, :] + inside[:, None, None]
            matrix *= np.sqrt(weight)[:, :, None] * np.sqrt(weight)[:, None, :]
        values = np.linalg.eigvalsh(matrix / (number[:, None, None] - 1))
        # Zero eigenvalues come out as ±eps of the largest, whose root would count.
        floor = values[:, -1:] * np.finfo(np.float64).eps * size
        out[part] = np.sqrt(np.where(values > floor, values, 0.0)).sum(axis=1)
    return out


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise TableError(f"features={features.shape}: expected [N, d] with 2 or more rows")
    if not np.isfinite(features).all():
        row = int(np.argmax(~np.isfinite(features).all(axis=1)))
        raise TableError(f"features: not finite in row {row + 1}; expected finite numbers")
    return features
