"""PNG files without what is written beside the pixels: generators leave prompts, settings and dates there."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT = (b"IHDR", b"PLTE", b"tRNS", b"sRGB", b"gAMA", b"cHRM", b"iCCP", b"IDAT", b"IEND")
"""What the pixels need, and the colours they stand for (PNG specification, third edition, 11.2 and 11.3)."""


def stripped(data: bytes) -> bytes:
    """The same pixels; of an animation the first frame.

    Raises:
      ValueError: not a PNG file, or a damaged one.
    """
    return SIGNATURE + b"".join(chunk for kind, chunk in _chunks(data) if kind in KEPT)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, whole chunk) of each, up to the end of the image."""
    if not data.startswith(SIGNATURE):
        raise ValueError("not a PNG file")
    at = len(SIGNATURE)
    while True:
        if len(data) < at + 12:
            raise ValueError("PNG file cut short")
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunk = data[at : at + 12 + size]
        kind = chunk[4:8]
        if len(chunk) != 12 + size or zlib.crc32(chunk[4:-4]) != struct.unpack(">I", chunk[-4:])[0]:
            raise ValueError(f"PNG file damaged at byte {at}")
        yield kind, chunk
        if kind == b"IEND":
            return
        at += len(chunk)
