"""Writing files so that a reader, or a process killed half-way, never meets half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdit_jax.copies import push

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Ways of a disk to be full."""


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace ``path`` with ``data`` in one step; it is on disk when this returns, and at its URL where it has one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}:{os.getpid()}.tmp")  # hosts may share the folder
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename == str(temporary):  # which nobody asked for
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    push(path)


@contextlib.contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """array_record, and what writes by it, tell of a full disk in words only: in here it is an OSError of ``path``."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        for words, code in (("No space left", errno.ENOSPC), ("File too large", errno.EFBIG), ("quota", errno.EDQUOT)):
            if words in str(error):
                raise OSError(code, os.strerror(code), str(path)) from None
        raise


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, atomically; the same value gives the same bytes."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
