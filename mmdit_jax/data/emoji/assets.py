"""The emoji that ship with the package: 3,139 drawings with label, tags and group (licences: NOTICE.txt)."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import zipfile
from pathlib import Path

import numpy as np

from mmdit_jax.errors import UserError

RESOLUTION = 64
"""Pixels a side of the stored images; 32 and 16 are averages of them."""
RESOLUTIONS = (16, 32, 64)
IMAGES = Path(__file__).parent / "images.npz"
TABLE = Path(__file__).parent / "emoji.tsv"
MAX_WORDS = 16

_TONES = {f"1f3f{digit}" for digit in "bcdef"}
_SIGNS = {"2640", "2642"}
_PERSON = {"1f468": "1f9d1", "1f469": "1f9d1"}


def normal_code(code: str) -> str:
    """A code in lower case without variation selectors: "2764-FE0F" is "2764"."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def base_code(code: str) -> str:
    """The code that all skin tones and genders of one emoji share, for those drawings are nearly the same.

    Skin tones and gender signs are removed; man and woman become person.
    """
    parts = [_PERSON.get(part, part) for part in normal_code(code).split("-") if part not in _TONES]
    kept = [part for part in parts if part not in _SIGNS]
    while kept and kept[-1] == "200d":
        kept.pop()
    return "-".join(kept or parts)


def split_of(code: str) -> str:
    """ "train" or "validation" (about a tenth), by a hash of the base code: it never changes with the set's order."""
    digest = hashlib.blake2b(base_code(code).encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "little") % 10 == 0 else "train"


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji's text. ``code`` is hexadecimal code points joined by "-", without variation selectors."""

    code: str
    label: str
    tags: tuple[str, ...]
    group: str

    def caption(self) -> str:
        """The label and up to four tags that say something new, at most 16 words. A function of the code alone."""
        digest = hashlib.blake2b(f"caption:{self.code}".encode(), digest_size=64).digest()
        said = set(_plain(self.label))
        fresh = [tag for tag in self.tags if not set(_plain(tag)) <= said]
        order = sorted(range(len(fresh)), key=lambda i: hashlib.blake2b(digest + bytes([i % 256])).digest())
        chosen = [fresh[i] for i in order[: digest[0] % 5]]
        parts = [self.label]
        for tag in chosen:
            if len(_plain(", ".join([*parts, tag]))) <= MAX_WORDS:
                parts.append(tag)
        return ", ".join(parts)


def _plain(text: str) -> list[str]:
    for mark in ',:;-–—_/()“”"':
        text = text.replace(mark, " ")
    return text.lower().split()


@functools.cache
def load() -> tuple[tuple[Emoji, ...], np.ndarray]:
    """All emoji in the order of their codes, and their images on white: uint8 [3139, 64, 64, 3], read-only.

    Raises:
        UserError: the files of the package are missing or damaged.
    """
    try:
        with np.load(IMAGES, allow_pickle=False) as data:
            images = data["images"]
        with open(TABLE, encoding="utf-8", newline="") as file:
            rows = tuple(
                Emoji(row["code"], row["label"], tuple(filter(None, row["tags"].split("|"))), row["group"])
                for row in csv.DictReader(file, delimiter="\t")
            )
        if images.shape != (len(rows), RESOLUTION, RESOLUTION, 3):
            raise ValueError(f"{len(rows)} rows for images of shape {images.shape}")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"emoji={IMAGES.parent}: unreadable ({error}); install the package anew") from None
    images.flags.writeable = False
    return rows, images


def check_resolution(resolution: int) -> None:
    """Raises UserError if emoji do not come at this resolution."""
    if resolution not in RESOLUTIONS:
        raise UserError(f"resolution={resolution}: emoji come at {', '.join(map(str, RESOLUTIONS))} px")


def images_at(resolution: int) -> np.ndarray:
    """All images at a resolution, uint8 [3139, R, R, 3], by averaging squares of pixels.

    Raises:
        UserError: the resolution isn't one of ``RESOLUTIONS``.
    """
    check_resolution(resolution)
    images = load()[1]
    factor = RESOLUTION // resolution
    if factor == 1:
        return images
    count = len(images)
    blocks = images.reshape(count, resolution, factor, resolution, factor, 3)
    return np.round(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
