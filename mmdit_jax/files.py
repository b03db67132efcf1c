"""Writing files so that a reader, or a process killed half-way, never meets half of one."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from mmdit_jax.remote import push


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
    finally:
        temporary.unlink(missing_ok=True)
    push(path)


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, atomically; the same value gives the same bytes."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
