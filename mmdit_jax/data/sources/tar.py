"""WebDataset shards: tar files whose members belong together by the name before the first dot."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from mmdit_jax.data.sources.captions import printable
from mmdit_jax.data.sources.folder import sidecar_captions
from mmdit_jax.data.sources.images import SUFFIXES
from mmdit_jax.data.sources.interface import Entry, Item, Unreadable
from mmdit_jax.errors import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class TarSource:
    """Samples of tar files; a part is one tar, keys are ``TAR/STEM``.

    Members of a sample (``000123.jpg``, ``000123.txt``, ``000123.json``, ``000123.synthetic.txt``) share the path up to
    the first dot of the file's name, as in WebDataset. Only headers are read to find them; the data are then read
    where they lie.

    Args:
        pattern: a tar file, a glob (``shards/*.tar``), or a range (``shards/{000..099}.tar``).

    Raises:
        UserError: no such file, or one of a range is missing.
    """

    def __init__(self, pattern: str) -> None:
        self.name = os.path.abspath(pattern)
        self._tars = _expand(pattern)
        digest = hashlib.blake2b(digest_size=16)
        for path in self._tars:
            digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
        self.fingerprint = digest.hexdigest()

    @property
    def parts(self) -> int:
        """Number of tar files."""
        return len(self._tars)

    def entries(self, part: int) -> list[Entry]:
        """The samples of a tar that have an image, in the order of their first member."""
        path = self._tars[part]
        samples: dict[str, dict[str, list[int]]] = {}
        try:
            # "r:" takes no compressed files: there would be no place to read from.
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.isfile():
                        stem, suffix = _split(member.name)
                        samples.setdefault(stem, {}).setdefault(suffix, [member.offset_data, member.size])
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"source={str(path)!r}: not a whole, uncompressed tar file ({error})") from None
        # The folder's name tells shards of one name apart.
        label = f"{part:05d}-{path.stem}"
        return [
            Entry(printable(f"{label}/{stem}"), {"part": part, "members": members})
            for stem, members in samples.items()
            if any(suffix in SUFFIXES for suffix in members)
        ]

    def read(self, entry: Entry) -> Item:
        """The bytes of a sample's image, and its captions."""
        members = entry.where["members"]
        suffix = next(suffix for suffix in members if suffix in SUFFIXES)
        try:
            with self._tars[entry.where["part"]].open("rb") as file:

                def member(name: str) -> bytes | None:
                    if name not in members:
                        return None
                    start, length = members[name]
                    data = os.pread(file.fileno(), length, start)
                    if len(data) != length:
                        raise Unreadable(f"ends early in its tar file: {name}")
                    return data

                image = member(suffix)
                captions = sidecar_captions(entry.key, member)
        except OSError as error:
            raise Unreadable(f"cannot be read: its tar file: {error.strerror}") from None
        assert image is not None
        return Item(image, *captions)


def _split(name: str) -> tuple[str, str]:
    """A member's sample, and its suffix in lower case with the dot: ("a/000", ".synthetic.txt")."""
    folder, _, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, dot + suffix.lower()


def _expand(pattern: str) -> list[Path]:
    """The tar files that ``pattern`` means, sorted; ranges in braces are as many as they say."""
    found: list[Path] = []
    for text in _ranges(pattern):
        path = Path(text)
        if path.is_file():
            found.append(path)
        elif any(sign in text for sign in "*?["):
            base = Path(path.anchor) if path.is_absolute() else Path()
            found += sorted(base.glob(str(path.relative_to(path.anchor) if path.is_absolute() else path)))
        else:
            raise UserError(f"source={pattern!r}: no file {text!r}")
    if not found:
        raise UserError(
            f"source={pattern!r}: no such files; expected tar files, as shards/*.tar or shards/{{000..099}}.tar"
        )
    return found


def _ranges(pattern: str) -> Iterator[str]:
    match = _RANGE.search(pattern)
    if not match:
        yield pattern
        return
    low, high = match.groups()
    for number in range(int(low), int(high) + 1):
        yield from _ranges(pattern[: match.start()] + str(number).zfill(len(low)) + pattern[match.end() :])
