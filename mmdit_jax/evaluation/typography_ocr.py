"""Read a word by optical character recognition: RapidOCR's recogniser, a network that has never seen our font's signs.

It comes with its weights in the package ``rapidocr-onnxruntime`` (extra ``ocr``), and needs no download.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, Final

import numpy as np
from PIL import Image

from mmdit_jax.errors import UserError

ROWS: Final = (0.25, 0.75)
"""Of the image, what is read: a word of `signs` stands between them."""
HEIGHT: Final = 64
"""Pixels that these rows are enlarged to; the network itself reads lines of 48."""
LOOKALIKES: Final = str.maketrans("0158", "OISB")
"""Signs have letters only: figures are read as the letters they look like."""
_BATCH: Final = 64


def ocr_available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("rapidocr_onnxruntime") is not None


def read_ocr(images: np.ndarray) -> list[str]:
    """What is written in each image, in capitals, letters only; "" where nothing is.

    Args:
        images: uint8 [N, R, R, 3].

    Raises:
        UserError: another shape or type, or the package is not installed.
    """
    at = images.shape
    if len(at) != 4 or at[1] != at[2] or at[3] != 3 or images.dtype != np.uint8:
        raise UserError(f"images={images.dtype}{list(at)}: expected uint8 [N, R, R, 3]")
    recogniser = _recogniser()
    top, bottom = (round(share * at[1]) for share in ROWS)
    size = (round(HEIGHT * at[2] / (bottom - top)), HEIGHT)
    found: list[str] = []
    for start in range(0, len(images), _BATCH):
        lines = [
            np.asarray(Image.fromarray(image[top:bottom]).resize(size, Image.Resampling.LANCZOS))
            for image in images[start : start + _BATCH]
        ]
        found += [_capitals(text) for text, _ in recogniser(lines)[0]]
    return found


def _capitals(text: str) -> str:
    return "".join(letter for letter in text.upper().translate(LOOKALIKES) if "A" <= letter <= "Z")


@functools.cache
def _recogniser() -> Any:
    if not ocr_available():
        raise UserError("ocr: rapidocr-onnxruntime is not installed; pip install 'mmdit-jax[ocr]'")
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR().text_rec
