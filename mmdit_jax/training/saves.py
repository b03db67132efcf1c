"""A checkpoint on its way to the disk, followed to its end, or to the first process whose part of it fails."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from pathlib import Path
from typing import Any

import jax

from mmdit_jax.errors import Infrastructure, UserError
from mmdit_jax.processes import exchange, note, noted
from mmdit_jax.training.checksums import write_sums
from mmdit_jax.training.disk import told


class Save:
    """One that was begun, by all processes of the run, which call what is here in the same order."""

    def __init__(self, folder: Path, response: Any, *, sums: bool) -> None:
        self._folder, self._response, self._sums = folder, response, sums
        self._written = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"save of {folder.name}", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Return when it is on disk, or when Orbax will say what went wrong to whoever waits for it.

        Of several processes, Orbax has those that have written their parts wait 20 minutes for one that can't write
        its own; and that one waits, too, before it tells. Here it tells the others, and all end alike.

        Raises:
            UserError: a disk is full, or can't be written.
            Infrastructure: something else failed, in any of them.
        """
        if jax.process_count() == 1:
            self._written.wait()
            return
        key = f"unsaved {self._folder}"
        line: list[str] | None = None
        while line is None and not self._written.wait(0.1):
            error = _overheard().error
            if error is not None:
                known = told(error, self._folder.parent)
                text = str(known) if isinstance(known, UserError) else f"{type(error).__name__}: {error}"[:500]
                line = [type(known).__name__, text]
                note(key, self._folder.name)
            elif noted(key) is not None:
                break
        lines = [line for line in exchange(f"save of {self._folder}", line) if line is not None]
        if lines:
            kind, text = lines[0]
            raise UserError(text) if kind == "UserError" else Infrastructure(f"checkpoint {self._folder}: {text}")

    def end(self) -> None:
        """Return when its sums are written, too."""
        self._thread.join()

    def _follow(self) -> None:
        with contextlib.suppress(Exception):  # told by Orbax to whoever waits for it
            try:
                if self._response is not None:
                    self._response.result()
            finally:
                self._written.set()
            for _ in range(100 if self._sums else 0):  # process 0 gives it its name; another host may see that later
                if self._folder.is_dir():
                    write_sums(self._folder, jax.process_index(), jax.process_count())
                    return
                time.sleep(0.1)


def listen() -> None:
    """From here on hear of a background write that fails, and of none that did before."""
    _overheard().error = None


class _Overheard(logging.Filter):
    """The last error that Orbax has logged: it does so at once, long before it raises it."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level
        self.error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None and "orbax" in record.pathname:
            self.error = record.exc_info[1]
        return record.levelno >= self._level


@functools.cache
def _overheard() -> _Overheard:
    logger = logging.getLogger("absl")
    found = _Overheard(logger.getEffectiveLevel())  # what was not shown before is not shown now
    logger.addFilter(found)
    logger.setLevel(min(logger.getEffectiveLevel(), logging.ERROR))
    return found
