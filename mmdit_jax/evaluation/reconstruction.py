"""How near reconstructions are to their images: PSNR and SSIM of each image."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d

from mmdit_jax.errors import UserError

_PEAK = 255.0
_K1, _K2, _SIGMA, _RADIUS = 0.01, 0.03, 1.5, 5


def psnr(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair, float64 [N], in dB: 10 log₁₀(255² / mean squared error).

    Infinite for equal images.

    Args:
        images, others: uint8 [N, H, W, C].
    """
    first, second = _pair(images, others)
    error = ((first - second) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(_PEAK**2 / error)


def ssim(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Structural similarity of each pair (Wang et al. 2004, eq. 13), float64 [N], 1 for equal images.

    Gaussian window of 11 × 11, σ = 1.5, K₁ = 0.01, K₂ = 0.03; windows that lie within the image, channels apart, then
    the mean of all.

    Args:
        images, others: uint8 [N, H, W, C], H and W at least 11.

    Raises:
        UserError: images too small.
    """
    first, second = _pair(images, others)
    if min(first.shape[1:3]) <= 2 * _RADIUS:
        raise UserError(f"images={list(first.shape)}: expected sides of {2 * _RADIUS + 1} or more")
    mean1, mean2 = _blur(first), _blur(second)
    variance1, variance2 = _blur(first**2) - mean1**2, _blur(second**2) - mean2**2
    covariance = _blur(first * second) - mean1 * mean2
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    above = (2 * mean1 * mean2 + c1) * (2 * covariance + c2)
    below = (mean1**2 + mean2**2 + c1) * (variance1 + variance2 + c2)
    return (above / below).mean(axis=(1, 2, 3))


def _blur(images: np.ndarray) -> np.ndarray:
    """Weighted mean over each window that lies within the image: [N, H, W, C] -> [N, H − 10, W − 10, C]."""
    window = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2)
    window /= window.sum()
    out = correlate1d(correlate1d(images, window, axis=1), window, axis=2)
    return out[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]


def _pair(images: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.shape != others.shape or images.ndim != 4 or images.dtype != np.uint8 or others.dtype != np.uint8:
        raise UserError(
            f"images={images.dtype}{list(images.shape)}, {others.dtype}{list(others.shape)}: "
            "expected two uint8 [N, H, W, C] of one shape"
        )
    return images.astype(np.float64), others.astype(np.float64)
