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
    expected: dict[str, list[int]] = {}
    for path in sorted(folder.glob("checksums.*.json")):
        try:
            expected |= _told(path)
        except (ValueError, KeyError, TypeError, OSError) as error:
            _if_passing(error)
            return path.name, "cannot be read"
    for name in sorted(expected)[process::processes]:
        try:
            if _sum(folder / name) != expected[name]:
                return name, "is not what was written"
        except OSError as error:
            _if_passing(error)
            return name, str(error.strerror)
    return None


def damaged(folder: Path, suspects: Sequence[tuple[str, str]]) -> str | None:
    """The first of ``suspects``, which ``wrong_file`` gave to others, that is wrong here, too: in a few words."""
    expected: dict[str, list[int]] = {}
    for path in sorted(folder.glob("checksums.*.json")):
        try:
            expected |= _told(path)
        except (ValueError, KeyError, TypeError, OSError) as error:
            _if_passing(error)
    for name, what in suspects:
        try:
            if "/" not in name and fnmatch(name, "checksums.*.json"):
                _told(folder / name)
            elif _sum(folder / name) == expected.get(name):
                continue
            else:
                return f"{name} {what}"
        except (ValueError, KeyError, TypeError, OSError) as error:
            _if_passing(error)
            return f"{name} {what}"
    return None


def _if_passing(error: Exception) -> None:
    """Raise what a disk or a network says of itself, not of the file."""
    if is_infrastructure(error):
        raise error


def _told(path: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads(path.read_text())["files"]
    return dict(found)


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
