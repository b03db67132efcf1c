"""Ends a process that hangs, with the stacks of all its threads written down: what waits for ever holds a pod for ever.

By the kernel's own timer, so that it needs neither a thread nor Python: a process whose every thread waits, or holds
the interpreter, ends all the same. It ends by SIGALRM, which engines report as exit code 142: infrastructure, run me
again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SLOW = 4.0
"""What is known to take long (compilation, a checkpoint, a validation) is given so many times as long."""


class Watchdog:
    """Expects ``beat`` again and again. Inactive where ``seconds`` is 0, and outside the main thread."""

    def __init__(self, seconds: float, stacks: Path) -> None:
        self._seconds = seconds if threading.current_thread() is threading.main_thread() else 0.0
        self._path = stacks
        self._file: IO[bytes] | None = None
        if self._seconds:
            stacks.parent.mkdir(parents=True, exist_ok=True)
            self._file = stacks.open("ab")
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            # After the dump the signal goes on to what it does by default, which ends the process.
            faulthandler.register(signal.SIGALRM, file=self._file, all_threads=True, chain=True)

    def beat(self, slow: bool = False) -> None:
        """It goes on: the next beat comes within the time; ``slow``: or within ``SLOW`` times as long."""
        if self._seconds:
            signal.setitimer(signal.ITIMER_REAL, self._seconds * (SLOW if slow else 1.0))

    @contextlib.contextmanager
    def slowly(self) -> Iterator[None]:
        """What takes long: once, and afterwards it is as before."""
        self.beat(slow=True)
        yield
        self.beat()

    def rest(self) -> None:
        """Nothing is expected until the next beat."""
        if self._seconds:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def close(self) -> None:
        """End it. The file goes where nothing was written to it."""
        if self._file is None:
            return
        self.rest()
        faulthandler.unregister(signal.SIGALRM)
        self._file.close()
        self._file, self._seconds = None, 0.0
        with contextlib.suppress(OSError):
            if not self._path.stat().st_size:
                self._path.unlink()
                self._path.parent.rmdir()  # which is refused while others are in it
