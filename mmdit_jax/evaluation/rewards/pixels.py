"""Images as CLIP's family of models sees them: shorter side to the model's, the middle cut out, channels normalised.

Whatever the image's size, it is resized by bicubic interpolation: images of 32 px are enlarged.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
"""Of CLIP's training images, by channel."""


def resized_sides(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width with the shorter one at ``size``, the longer one rounded down."""
    short, long = min(height, width), max(height, width)
    other = int(size * long / short)
    return (size, other) if height <= width else (other, size)


def corner(side: int, size: int, *, down: bool) -> int:
    """Where the middle ``size`` of ``side`` begins: half a pixel goes down (transformers) or to even (torchvision)."""
    return (side - size) // 2 if down else round((side - size) / 2)


def fit(image: np.ndarray, size: int, *, down: bool) -> np.ndarray:
    """The image as uint8 [size, size, 3], resized by Pillow.

    Args:
        image: uint8 [H, W, 3].
        size: side in pixels.
        down: see ``corner``.
    """
    height, width = resized_sides(image.shape[0], image.shape[1], size)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    top, left = corner(height, size, down=down), corner(width, size, down=down)
    return resized[top : top + size, left : left + size]


def normalise(image: np.ndarray) -> np.ndarray:
    """An image uint8 [H, W, 3] as float32 [3, H, W] with CLIP's mean and deviation taken out."""
    return ((image.astype(np.float32) / 255 - MEAN) / DEVIATION).transpose(2, 0, 1)
