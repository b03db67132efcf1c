"""Sizes and checksums of a checkpoint's files, written beside them: Orbax takes a flipped bit in a weight for a weight.

Each process of a run sums what it wrote, when the checkpoint is finished, and checks a share of all files before it is
loaded again, whatever their number was then. CRC-32: against damage, not against an adversary.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from mmdit_jax.files import write_atomic
from mmdit_jax.processes import is_infrastructure

_CHUNK = 2**22
_SUMS = "checksums.*.json"


def write_sums(folder: Path, process: int, processes: int) -> None:
    """Sum the files in ``folder`` (a finished checkpoint's) that this process wrote; process 0 also those of nobody."""
    own = (process,) if process else (0, -1)
    found = {name: _sum(folder / name) for name in _files(folder) if _writer(name) in own}
    told = {"processes": processes, "files": found}
    write_atomic(folder / f"checksums.{process}.json", json.dumps(told, sort_keys=True))


def wrong_file(folder: Path, process: int = 0, processes: int = 1) -> tuple[str, str] | None:
    """A file of this process's share that is wrong, and what it is; None: none, as far as sums could tell.

    A checkpoint has no sums, or not all, where the run was killed just after it: that is not held against it.

    Raises:
        OSError: the disk, or the way to it, is not there now.
    """
    expected, unreadable = _expected(folder)
    if unreadable:
        return unreadable[0], "cannot be read"
    for name in sorted(expected)[process::processes]:
        what = _wrong(folder / name, expected[name])
        if what is not None:
            return name, what
    return None


def damaged(folder: Path, suspects: Sequence[tuple[str, str]]) -> str | None:
    """The first of ``suspects``, which ``wrong_file`` gave to others, that is wrong here, too: in a few words."""
    expected, unreadable = _expected(folder)
    for name, what in suspects:
        is_sums = "/" not in name and fnmatch(name, _SUMS)
        if name in unreadable or (not is_sums and _wrong(folder / name, expected.get(name)) is not None):
            return f"{name} {what}"
    return None


def _expected(folder: Path) -> tuple[dict[str, list[int]], list[str]]:
    """The sums of all files that have any, and which files of sums can't be read."""
    expected: dict[str, list[int]] = {}
    unreadable = []
    for path in sorted(folder.glob(_SUMS)):
        try:
            expected |= json.loads(path.read_text())["files"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            _if_passing(error)
            unreadable.append(path.name)
    return expected, unreadable


def _wrong(path: Path, expected: list[int] | None) -> str | None:
    try:
        return None if _sum(path) == expected else "is not what was written"
    except OSError as error:
        _if_passing(error)
        return str(error.strerror)


def _if_passing(error: Exception) -> None:
    """Raise what a disk or a network says of itself, not of the file."""
    if is_infrastructure(error):
        raise error


def _files(folder: Path) -> list[str]:
    every = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", "checksums.")))
    return sorted(str(path.relative_to(folder)) for path in every)


def _writer(name: str) -> int:
    """The process that wrote the file; -1: any, so the first sums it."""
    found = re.search(r"\bocdbt\.process_(\d+)/", name)
    return int(found[1]) if found else -1


def _sum(path: Path) -> list[int]:
    """[bytes, CRC-32]."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]
