"""A folder of images with their captions beside them, or in one file that names them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mmdit_jax.data.sources.captions import CAPTION_FIELDS, SYNTHETIC_FIELDS, clean, first, from_json, printable
from mmdit_jax.data.sources.images import SUFFIXES
from mmdit_jax.data.sources.interface import PART, Entry, Item, Unreadable
from mmdit_jax.errors import UserError

LISTS = ("captions.jsonl", "metadata.jsonl")
"""Files at the top that give captions for all images (Hugging Face's imagefolder calls it metadata.jsonl)."""


class FolderSource:
    """Images below a folder, in the order of their paths; keys are these paths.

    Captions come from ``captions.jsonl`` or ``metadata.jsonl`` at the top, one ``{"file_name": …, "text": …}`` a line,
    where there is one; else from files beside each image: ``img.txt`` and ``img.synthetic.txt``, or ``img.json`` with
    "caption" and "synthetic".

    Raises:
        UserError: no such folder, no image in it, or a list that can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder.absolute())
        self._folder = folder
        if not folder.is_dir():
            raise UserError(
                f"source={str(folder)!r}: no such folder; expected a folder of images, tfds:NAME or tar files"
            )
        listed = next((folder / name for name in LISTS if (folder / name).is_file()), None)
        self._lines = _lines(listed) if listed else None
        self._paths = sorted(self._lines) if self._lines is not None else image_paths(folder)
        if not self._paths:
            raise UserError(f"source={str(folder)!r}: no images; expected {', '.join(SUFFIXES)} files in it or below")
        digest = hashlib.blake2b("\n".join(self._paths).encode(errors="surrogateescape"), digest_size=16)
        if listed:
            digest.update(listed.read_bytes())
        self.fingerprint = digest.hexdigest()

    @property
    def parts(self) -> int:
        """Number of parts, each of ``PART`` images."""
        return -(-len(self._paths) // PART)

    def entries(self, part: int) -> list[Entry]:
        """The images of a part: keys are paths relative to the folder."""
        return [Entry(printable(path), {"path": path}) for path in self._paths[part * PART : (part + 1) * PART]]

    def read(self, entry: Entry) -> Item:
        """The bytes of an image, and its captions."""
        image = self.read_image(entry)
        try:
            return Item(image, *self._captions(entry.key, entry.where["path"]))
        except OSError as error:
            raise _cannot_read(error) from None

    def read_image(self, entry: Entry) -> bytes:
        """The bytes of an image alone.

        Raises:
            Unreadable: it can't be read.
        """
        try:
            return (self._folder / entry.where["path"]).read_bytes()
        except OSError as error:
            raise _cannot_read(error) from None

    def _captions(self, key: str, name: str) -> tuple[str | None, str | None]:
        if self._lines is not None:
            line = self._lines[name]
            return first(line, CAPTION_FIELDS, key), first(line, SYNTHETIC_FIELDS, key)
        path = self._folder / name
        return sidecar_captions(key, lambda suffix: _read_if_there(path.with_name(path.stem + suffix)))


def sidecar_captions(key: str, read: Any) -> tuple[str | None, str | None]:
    """Caption and synthetic caption of an image from the files beside it.

    Args:
        key: of the item.
        read: from a suffix (".txt", ".synthetic.txt", ".json") to that file's bytes, or None where there is none.

    Raises:
        Unreadable: a file is no UTF-8, or the .json has no captions and is the only one.
    """
    # A text file wins: it is what a person edits.
    text, other = clean(read(".txt"), key), clean(read(".synthetic.txt"), key)
    table = read(".json")
    try:
        caption, synthetic = from_json(table, key) if table is not None else (None, None)
    except Unreadable:
        if text is None and other is None:
            raise
        caption = synthetic = None  # it holds something else
    return text or caption, other or synthetic


def image_paths(folder: Path) -> list[str]:
    """Paths of all images below ``folder``, relative to it, "/" between folders, sorted; hidden ones left out.

    Links to folders are followed, but for those that lead back to a folder on the way to them.
    """
    found: list[str] = []
    above: dict[str, tuple[str, ...]] = {str(folder): ()}
    for place, folders, files in os.walk(folder, followlinks=True):
        way = (*above.pop(place), os.path.realpath(place))
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not _leads_back(os.path.join(place, name), way)
        )
        above.update((os.path.join(place, name), way) for name in folders)
        base = Path(place).relative_to(folder).as_posix()
        prefix = "" if base == "." else base + "/"
        found += [prefix + name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return sorted(found)


def _leads_back(path: str, way: tuple[str, ...]) -> bool:
    """Whether ``path`` is a link to one of the folders of ``way``, or to one above them."""
    if not os.path.islink(path):
        return False
    real = os.path.realpath(path)
    return any(os.path.commonpath([real, folder]) == real for folder in way)


def _cannot_read(error: OSError) -> Unreadable:
    return Unreadable(f"cannot be read: {os.path.basename(error.filename or '')}: {error.strerror}")


def _read_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _lines(path: Path) -> dict[str, dict[str, Any]]:
    """The list's objects by file name."""
    found: dict[str, dict[str, Any]] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                name = value["file_name"]
                if not isinstance(name, str) or not name or "\0" in name:
                    raise TypeError
                os.fsencode(name)
            except (ValueError, KeyError, TypeError):
                raise UserError(f'{path}: line {number}: expected {{"file_name": …, "text": …}}') from None
            if name in found:
                raise UserError(f"{path}: line {number}: file_name={name!r} is there twice")
            found[name] = value
    return found
