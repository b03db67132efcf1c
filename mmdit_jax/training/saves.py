"""A checkpoint on its way to the disk, followed to its end, or to the first process whose part of it fails."""

from __future__ import annotations

import functools
import logging
import threading
import time
from pathlib import Path
from typing import Any

import jax

from mmdit_jax.errors import Infrastructure, UserError
from mmdit_jax.processes import note, noted, together
from mmdit_jax.training.checksums import write_sums
from mmdit_jax.training.disk import STALE_SECONDS, told

_UNSAVED = "unsaved"
"""What a process notes whose part of any checkpoint fails: the run ends then, in all of them."""


class Save:
    """One that was begun, by all processes of the run, which call what is here in the same order."""

    def __init__(self, folder: Path, response: Any, *, sums: bool) -> None:
        self._folder, self._response, self._sums = folder, response, sums
        self._written = threading.Event()
        self._error: BaseException | None = None
        self._given_up = False
        self._thread = threading.Thread(target=self._follow, name=f"save of {folder.name}", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Return when it is on disk; a process alone leaves it to Orbax to tell what went wrong.

        Of several, Orbax has those that have written their parts wait 20 minutes for one that can't write its own; and
        that one waits, too, before it tells. Here it tells the others, and all end alike.

        Raises:
            UserError: a disk is full, or can't be written.
            Infrastructure: something else failed, in any of them.
        """
        self.is_over()
        if jax.process_count() == 1:
            return
        try:
            together(f"save of {self._folder}", self._told)
        except Exception:
            self._given_up = True
            raise

    def _told(self) -> None:
        error = _failure() or self._error
        if error is not None:
            known = told(error, self._folder.parent)
            if isinstance(known, UserError):
                raise known from error
            raise Infrastructure(f"checkpoint {self._folder}: {type(error).__name__}: {error}") from error

    def is_over(self) -> bool:
        """Return when it is on disk, or not to be; whether Orbax, too, will not wait any more."""
        if jax.process_count() == 1:
            return self._written.wait()
        while not self._given_up and not self._written.wait(0.5):
            if _failure() is not None:
                note(_UNSAVED, str(self._folder))
                return False
            if noted(_UNSAVED) is not None:
                return False
        return not self._given_up

    def end(self) -> None:
        """Return when its sums are written, too."""
        self._thread.join()

    def _follow(self) -> None:
        try:
            if self._response is not None:
                self._response.result()
        except Exception as error:
            self._error = error
            return
        finally:
            self._written.set()
        until = time.monotonic() + STALE_SECONDS  # process 0 gives it its name; another host may see that later
        while self._sums and time.monotonic() < until:
            if self._folder.is_dir():
                try:
                    write_sums(self._folder, jax.process_index(), jax.process_count())
                except OSError as error:  # the checkpoint is there, and loads without
                    logging.getLogger(__name__).warning("checkpoint %s: its sums are missing (%s)", self._folder, error)
                return
            time.sleep(0.1)


def listen() -> None:
    """From here on this process, if it is one of several, hears of a write in the background that fails."""
    if jax.process_count() > 1:
        _overheard()


def _failure() -> BaseException | None:
    """What has failed in this process, of any checkpoint: the run is to end."""
    return _overheard().error


class _Overheard(logging.Filter):
    """The last error of a write in the background: Orbax logs it at once, and raises it long after."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level
        self.error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        failed = record.levelno >= logging.ERROR and record.pathname.endswith("async_checkpointer.py")
        if failed and record.exc_info:
            self.error = record.exc_info[1] or self.error
        return not logging.ERROR <= record.levelno < self._level  # what was not shown before is not shown now


@functools.cache
def _overheard() -> _Overheard:
    logger = logging.getLogger("absl")
    found = _Overheard(logger.getEffectiveLevel())
    logger.addFilter(found)
    logger.setLevel(min(logger.getEffectiveLevel(), logging.ERROR))
    return found
