"""Claims on pieces of work: one holder at a time, and none that outlives its holder."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP)


class Claims:
    """Byte n of one file is locked while piece n is being done.

    The kernel (or the file server) lets go of a lock when its process ends, however it ends. Where a file system has
    no locks, every claim is granted: two may then do the same piece, which gives the same file twice.
    One object a process and file: POSIX drops all of a process's locks when it closes any handle of the file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @contextmanager
    def attempt(self, piece: int) -> Iterator[bool]:
        """Hold piece ``piece`` within the block, if nobody else does: whether it is held."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, piece)
            locked = True
        except OSError as error:
            if error.errno not in (*_NO_LOCKS, errno.EACCES, errno.EAGAIN):
                raise
            locked = False
            if error.errno not in _NO_LOCKS:
                yield False
                return
        try:
            yield True
        finally:
            if locked:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, piece)

    @contextmanager
    def wait(self, piece: int) -> Iterator[None]:
        """Hold piece ``piece`` within the block, once nobody else does."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, piece)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield

    def close(self) -> None:
        """Let go of everything."""
        os.close(self._file)
