"""Locks of the kernel's, by which others see that somebody is at something: they go with the process that has them."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

LOCK = "lock"
"""The file of a run directory that whoever is at the run on this host holds (see ``launch.hold``)."""


@contextlib.contextmanager
def unheld(path: Path) -> Iterator[bool]:
    """Whether nobody holds the file; if so, nobody does until the block ends.

    Raises:
      OSError: there is no such file, or it can't be read.
    """
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
