"""The line a user watches: loss, images/s, MFU, share of the measured matrix-product rate, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence


def duration(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Progress:
    """Rewrites one line of a terminal; elsewhere prints a line every ``seconds``. Writes to stderr."""

    def __init__(self, label: str, steps: int, enabled: bool = True, seconds: float = 15.0) -> None:
        self._label, self._steps, self._enabled, self._seconds = label, steps, enabled, seconds
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._enabled:
            sys.stderr.write(f"{self._label}  {text}\n")

    def show(self, step: int, runs: Sequence[Mapping[str, float]]) -> None:
        """``runs``: of each, what ``Meter.read`` returns. The line has the first one's loss, and all runs' speed.

        Where one of them was not timed, the line says nothing of speed; nothing of MFU where there is no data sheet.
        """
        if not self._enabled:
            return
        now = time.monotonic()
        if now - self._last < (0.2 if self._terminal else self._seconds) and step < self._steps:
            return
        self._last = now
        line = f"{self._label}  step {step}/{self._steps}  loss {runs[0]['loss']:.4f}"
        if all("images_per_second" in run for run in runs):
            rate, share = (sum(run[key] for run in runs) for key in ("images_per_second", "ceiling_share"))
            mfu = f"  MFU {100 * sum(run['mfu'] for run in runs):.0f} %" if "mfu" in runs[0] else ""
            left = duration(runs[0]["seconds_left"])
            line += f"  {rate:,.0f} images/s{mfu}  {100 * share:.0f} % of ceiling  {left} left"
        sys.stderr.write(f"\r\x1b[2K{line}" if self._terminal else f"{line}\n")
        sys.stderr.flush()

    def close(self) -> None:
        if self._enabled and self._terminal:
            sys.stderr.write("\n")
