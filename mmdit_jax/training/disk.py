"""What a disk refuses while a checkpoint is saved: asked before, told in one line after."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from mmdit_jax.errors import UserError
from mmdit_jax.files import NO_SPACE

STALE_SECONDS = 150.0
"""How long a host may see a folder as it was: NFS looks again after a minute, unless mounted otherwise."""


@contextlib.contextmanager
def room(folder: Path, state: Any) -> Iterator[None]:
    """Have the disk set aside what this process will write of ``state``, uncompressed, until the block ends.

    Raises:
        UserError: it can't.
    """
    leaves = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    size = sum(part.data.nbytes for leaf in leaves for part in leaf.addressable_shards if part.replica_id == 0)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if size and sys.platform == "linux":
                # Not os.posix_fallocate, which writes all of it where a file system can't set aside.
                libc = ctypes.CDLL(None, use_errno=True)
                number = libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(size)) and ctypes.get_errno()
                if number in NO_SPACE:
                    raise OSError(number, os.strerror(number))
            yield
    except OSError as error:
        raise told(error, folder) from error


def told(error: BaseException, folder: Path) -> BaseException:
    """The user's one line for a failed write (disk full, no permission), else the error itself."""
    text = str(error)
    numbers = [item.errno for item in _chain(error) if isinstance(item, OSError)]
    if (
        any(number in NO_SPACE for number in numbers)
        or "No space left" in text
        or "File too large" in text
        or "RESOURCE_EXHAUSTED" in text
    ):
        return UserError(
            f"root={folder}: disk full while saving a checkpoint; free space and run again, earlier ones are kept"
        )
    if any(number in (errno.EACCES, errno.EROFS, errno.EPERM) for number in numbers):
        return UserError(f"root={folder}: cannot be written; choose another --root or change its permissions")
    return error


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
