"""Buckets of aspect ratios with H·W ≈ S² (SD3 §5.3.1), and the crop that takes an image to its bucket."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmdit_jax.errors import UserError

Bucket = tuple[int, int]
"""(height, width) in pixels."""


def bucket_list(size: int, multiple: int, aspect: float) -> tuple[Bucket, ...]:
    """All buckets of a size, from the tallest to the widest.

    For each width w = S, S + m, S + 2m, … the height is the multiple of m nearest to S²/w, up to w/h = ``aspect``; of
    widths with one height the one whose area is nearest to S² stays. Upright buckets are the same, turned. At S = 256,
    m = 16, aspect 2: 256×256, 240×272, 224×288, 208×320, 192×336, and four upright; areas within 2 % of S².

    Args:
        size: S, pixels; a multiple of m.
        multiple: m, pixels: what the autoencoder's factor and the patch make of it, 16 for SD3.
        aspect: the largest ratio of sides, 1 or more; 1 gives the square alone.

    Raises:
        UserError: numbers that give no bucket.
    """
    if multiple < 1:
        raise UserError(f"multiple={multiple}: expected 1 or more")
    if size < multiple or size % multiple:
        raise UserError(f"size={size}: expected a multiple of {multiple} (the autoencoder's factor times the patch)")
    if not 1 <= aspect <= 16:
        raise UserError(f"bucket-aspect={aspect:g}: expected 1 to 16")
    best: dict[int, int] = {}
    width = size
    while True:
        height = max(multiple, round(size * size / width / multiple) * multiple)
        if width > height * aspect:
            break
        if height not in best or abs(width * height - size**2) < abs(best[height] * height - size**2):
            best[height] = width
        width += multiple
    wide = sorted(best.items(), reverse=True)
    upright = [(w, h) for h, w in reversed(wide) if w != h]
    return (*upright, *wide)


def nearest(heights: np.ndarray, widths: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """Which bucket's log aspect is nearest to each image's, int64 [N]; the earlier one of two that are equally near.

    Args:
        heights, widths: of images, [N], pixels.
        buckets: from the tallest to the widest.
    """
    logs = np.log([w / h for h, w in buckets])
    return np.argmin(np.abs(np.log(widths / heights)[:, None] - logs), axis=1)


def enlargement(heights: np.ndarray, widths: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """How much an image is enlarged to cover its bucket, float64 [N]; below 1 it is made smaller.

    Args:
        heights, widths: of images, [N], pixels.
        buckets: each image's own, [N, 2].
    """
    return np.maximum(buckets[:, 0] / heights, buckets[:, 1] / widths)


def fit(image: np.ndarray, bucket: Bucket) -> np.ndarray:
    """The image resized to cover its bucket, and cropped about its centre: uint8 [h, w, 3].

    One pass of Pillow's Lanczos filter, which is antialiased; an image that has the bucket's size keeps its bits.

    Args:
        image: uint8 [H, W, 3].
        bucket: (h, w).
    """
    height, width = image.shape[:2]
    if (height, width) == bucket:
        return image
    scale = max(bucket[0] / height, bucket[1] / width)
    shown_height, shown_width = min(height, bucket[0] / scale), min(width, bucket[1] / scale)
    top, left = (height - shown_height) / 2, (width - shown_width) / 2
    box = (left, top, left + shown_width, top + shown_height)
    resized = Image.fromarray(image).resize((bucket[1], bucket[0]), Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized)


def merge_sparse(counts: Sequence[int], buckets: Sequence[Bucket], least: int) -> list[int]:
    """Where each bucket's images go, so that no bucket has fewer than ``least`` unless it is the only one.

    The sparsest bucket is given up first (of equals, the one furthest from the square); its images go to the bucket
    nearest in log aspect of those still in use.

    Args:
        counts: images of each bucket.
        buckets: all buckets.
        least: images that make a bucket worth having.

    Returns:
        for each bucket the number of the bucket its images go to, itself where it stays. Empty buckets stay.
    """
    logs = [math.log(w / h) for h, w in buckets]
    target, held = list(range(len(buckets))), list(counts)
    while True:
        used = [b for b, count in enumerate(held) if count]
        sparse = [b for b in used if held[b] < least]
        if not sparse or len(used) == 1:
            return target
        given_up = min(sparse, key=lambda b: (held[b], -abs(logs[b]), b))
        into = min((b for b in used if b != given_up), key=lambda b: (abs(logs[b] - logs[given_up]), abs(logs[b]), b))
        held[into], held[given_up] = held[into] + held[given_up], 0
        target = [into if b == given_up else b for b in target]
