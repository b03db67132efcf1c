"""Image files to RGB pixels."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from mmdit_jax.data.sources.interface import Unreadable

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Files that are taken for images; any letter case."""


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """RGB pixels, uint8 [H, W, 3]: upright as its EXIF says, on white where it is transparent, first frame only.

    Args:
        image: an encoded file, or uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha last).

    Raises:
        Unreadable: damaged, of an unknown format, far too large (more than 179 megapixels), or of another shape.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels, of odd metadata: errors are told, warnings are not
            with Image.open(io.BytesIO(image)) as opened:
                opened.load()
                pixels = np.asarray(_rgb(ImageOps.exif_transpose(opened)))
    except Exception as error:  # PIL's readers raise what they like on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"damaged image ({reason[:80]})" if image else "damaged image (empty file)") from None
    return pixels


def _from_array(image: np.ndarray) -> np.ndarray:
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    channels = 1 if image.ndim == 2 else image.shape[-1]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4) or image.size == 0:
        raise Unreadable(f"no image: {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    if channels == 3:
        return image
    return np.asarray(_rgb(Image.fromarray(image)))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":  # PIL would clip 16 bits, not scale them
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":  # of no known range
        raise ValueError("32-bit floats")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        alpha = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", alpha.size, (255, 255, 255, 255)), alpha).convert("RGB")
    return image.convert("RGB")
