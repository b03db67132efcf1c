"""How far an encoding is, on stderr: images a second, time left."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_EVERY = 10.0
"""Seconds between lines where there is no terminal; a terminal's line is renewed each second."""


class Progress:
    """Adds up what processes report, and tells.

    Args:
        quiet: tell nothing.
        stream: where to tell; stderr by default.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet, self._stream = quiet, stream or sys.stderr
        self._live = self._stream.isatty()
        self._begun: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._found = self._total = 0
        self._told = -_EVERY

    @property
    def rate(self) -> float | None:
        """Images encoded a second in this run; None before the first."""
        done = self._done.get("encode", 0)
        return done / (time.monotonic() - self._begun["found"]) if done else None

    @property
    def encoded(self) -> int:
        """Images encoded in this run."""
        return self._done.get("encode", 0)

    def report(self, what: str, more: int, total: int) -> None:
        """Take in a report (``job.Report``)."""
        now = time.monotonic()
        self._begun.setdefault(what, now)
        if what == "found":
            self._found, self._total = max(self._found, more), total
        else:
            self._done[what] = self._done.get(what, 0) + more
        if now - self._told >= (1.0 if self._live else _EVERY):
            self._told = now
            self._tell(self._line(what, total))

    def close(self) -> None:
        """End the line."""
        if "found" in self._begun:
            self._tell(self._line("encode", self._total))
        if self._live and not self._quiet:
            self._stream.write("\n")

    def _line(self, what: str, total: int) -> str:
        if what == "scan":
            return f"scanned {self._done.get('scan', 0):,} of {total:,} parts"
        done = self._found + self.encoded
        line = f"encoded {done:,} of {total:,} images"
        if self.rate:
            line += f", {self.rate:.1f} a second, {_duration((total - done) / self.rate)} left"
        return line

    def _tell(self, line: str) -> None:
        if not self._quiet:
            self._stream.write(f"\r{line:<78}" if self._live else line + "\n")
            self._stream.flush()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
