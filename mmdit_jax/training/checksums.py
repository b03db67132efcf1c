"""Sizes and checksums of a checkpoint's files, written beside them: Orbax takes a flipped bit in a weight for a weight.

Each process of a run sums what it wrote, when the checkpoint is finished, and checks a share of all files before it is
loaded again, whatever their number was then. CRC-32: against damage, not against an adversary.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

from mmdit_jax.files import write_atomic

_CHUNK = 2**22


def write_sums(folder: Path, process: int, processes: int) -> None:
    """Sum the files in ``folder`` (a finished checkpoint's) that this process wrote; process 0 also those of nobody."""
    own = (process,) if process else (0, -1)
    found = {name: _sum(folder / name) for name in _files(folder) if _writer(name) in own}
    told = {"processes": processes, "files": found}
    write_atomic(folder / f"checksums.{process}.json", json.dumps(told, sort_keys=True))


def wrong_file(folder: Path, process: int = 0, processes: int = 1) -> str | None:
    """What is wrong with this process's share of the files, in a few words; None: nothing that sums could tell.

    A checkpoint has no sums, or not all, where the run was killed just after it: that is not held against it.
    """
    expected: dict[str, list[int]] = {}
    for path in sorted(folder.glob("checksums.*.json")):
        try:
            told = json.loads(path.read_text())
            expected |= told["files"]
        except (ValueError, KeyError, TypeError, OSError):
            return f"{path.name} cannot be read"
    for name in sorted(expected)[process::processes]:
        try:
            if _sum(folder / name) != expected[name]:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


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
