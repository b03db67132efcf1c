"""What a source of captioned images offers: parts, entries in a fixed order, and each entry's bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

PART = 1024
"""Entries of a part, where the source is free to choose."""


class Unreadable(ValueError):
    """One item can't be read: it is dropped, with this message as the reason, and the others go on."""


@dataclass(frozen=True)
class Entry:
    """Where an item is, without its bytes."""

    key: str
    """Unique in the source, and the same whenever it is read."""
    where: dict[str, Any]
    """For the source's ``read``; plain JSON, since it is kept on disk between passes."""


@dataclass(frozen=True)
class Item:
    """An image and its captions, as the source has them."""

    image: bytes | np.ndarray
    """An encoded file (JPEG, PNG, WebP, …), or uint8 [H, W, 3]."""
    caption: str | None
    synthetic: str | None


class Source(Protocol):
    """Captioned images in a fixed order, cut into parts that can be read independently, by any process."""

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def fingerprint(self) -> str:
        """Hash of the listing and of the options: what decides the entries and their order."""

    @property
    def parts(self) -> int:
        """Number of parts."""

    def entries(self, part: int) -> list[Entry]:
        """What part ``part`` holds, in order.

        Raises:
            UserError: the part as a whole can't be read.
        """

    def read(self, entry: Entry) -> Item:
        """The bytes and captions of an entry; thread-safe.

        Raises:
            Unreadable: this one can't be read.
        """
