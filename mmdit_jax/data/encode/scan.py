"""The first pass: every image is read once, measured and hashed, and damaged ones are found."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmdit_jax.data.duplicates import GRID, Fingerprint, fingerprint
from mmdit_jax.data.sources import Entry, Item, Source, Unreadable
from mmdit_jax.data.sources.images import decode
from mmdit_jax.files import write_atomic

VERSION = 1
"""Of what is kept; another one is scanned anew."""
_NOTHING = Fingerprint((0, 0), 0, np.zeros((GRID, GRID, 3), np.uint8))


@dataclass(frozen=True)
class Scan:
    """What was found of N entries, in order."""

    entries: list[Entry]
    problems: list[str]
    """Why an entry can't be used; "" where it can."""
    sizes: np.ndarray
    """Height and width in pixels, int32 [N, 2]; 0 where it can't be used."""
    content: np.ndarray
    """Hash of the bytes of image and captions, uint64 [N]: a later pass sees whether they changed."""
    pixels: np.ndarray
    """Hash of the decoded pixels, uint64 [N, 2]."""
    perceptual: np.ndarray
    """Perceptual hash, uint64 [N]."""
    colours: np.ndarray
    """Grid of mean colours, uint8 [N, GRID, GRID, 3]."""

    def __len__(self) -> int:
        return len(self.entries)


def scans_folder(data_dir: Path, source: Source) -> Path:
    """Where the scans of a source are kept, under the folder of data sets."""
    digest = hashlib.blake2b(f"{VERSION}:{source.name}:{source.fingerprint}".encode(), digest_size=8)
    return data_dir / "_scans" / digest.hexdigest()


def content_hash(item: Item) -> int:
    """64 bits of everything that an item is."""
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(item.image, np.ndarray):
        digest.update(repr((item.image.shape, str(item.image.dtype))).encode())
        digest.update(np.ascontiguousarray(item.image).data)
    else:
        digest.update(item.image)
    digest.update(repr((item.caption, item.synthetic)).encode())
    return int.from_bytes(digest.digest(), "little")


def scan_part(source: Source, part: int, pool: Executor, alive: Callable[[], None]) -> Scan:
    """Read, decode and hash a part's items.

    Args:
        source: of the images.
        part: of it.
        pool: reads and decodes.
        alive: called after each item; what it raises ends the scan.
    """
    entries = source.entries(part)
    rows = []
    for found in pool.map(lambda entry: _scan_entry(source, entry), entries):
        rows.append(found)
        alive()
    problems, sizes, content, marks = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
    seen: set[str] = set()
    for row, entry in enumerate(entries):
        if entry.key in seen:
            problems[row] = "another item has this key"
        seen.add(entry.key)
    return Scan(
        entries,
        problems,
        np.array(sizes, np.int32).reshape(-1, 2),
        np.array(content, np.uint64),
        np.array([mark.pixels for mark in marks], np.uint64).reshape(-1, 2),
        np.array([mark.perceptual for mark in marks], np.uint64),
        np.array([mark.colours for mark in marks], np.uint8).reshape(-1, GRID, GRID, 3),
    )


def _scan_entry(source: Source, entry: Entry) -> tuple[str, tuple[int, int], int, Fingerprint]:
    try:
        item = source.read(entry)
        if item.caption is None and item.synthetic is None:
            raise Unreadable("no caption")
        image = decode(item.image)
    except Unreadable as error:
        return str(error), (0, 0), 0, _NOTHING
    return "", (image.shape[0], image.shape[1]), content_hash(item), fingerprint(image)


def without_places(scan: Scan) -> Scan:
    """The same without what ``read`` needs, which is most of what a scan takes in memory: enough to plan with."""
    return dataclasses.replace(scan, entries=[Entry(entry.key, {}) for entry in scan.entries])


_ARRAYS = ("sizes", "content", "pixels", "perceptual", "colours")


def save(scan: Scan, path: Path) -> None:
    """Write a scan, atomically."""
    told = [[entry.key, entry.where, problem] for entry, problem in zip(scan.entries, scan.problems, strict=True)]
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    np.savez(buffer, told=text, **{name: getattr(scan, name) for name in _ARRAYS})
    write_atomic(path, buffer.getvalue())


def load(path: Path) -> Scan:
    """What ``save`` wrote.

    Raises:
        FileNotFoundError: it isn't there.
        ValueError: it is damaged.
    """
    try:
        with np.load(path) as arrays:
            told = json.loads(arrays["told"].tobytes())
            found = {name: arrays[name] for name in _ARRAYS}
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    return Scan([Entry(key, where) for key, where, _ in told], [problem for *_, problem in told], **found)


def join(scans: Sequence[Scan]) -> Scan:
    """Several parts as one."""
    return Scan(
        [entry for scan in scans for entry in scan.entries],
        [problem for scan in scans for problem in scan.problems],
        *(np.concatenate([getattr(scan, name) for scan in scans]) for name in _ARRAYS),
    )
