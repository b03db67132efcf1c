"""``events.jsonl``: what happened to a run, one JSON object a line, append-only, written by process 0.

The file is the source of truth for curves and progress. A process killed in the middle of a line leaves a torn last
line: writers end it before they append, readers pass over it. A resumed run may say a step again; the later line
holds (same config, same hardware: the same numbers).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdit_jax.remote import remote_of

EVENTS = "events.jsonl"


PUSHED_EVERY = 20.0
"""Seconds between copies of the file to its URL, where it has one and no event is durable."""


class EventLog:
    """Appends events to ``<folder>/events.jsonl``; each line reaches the kernel before ``write`` returns.

    Object stores can't append: at a URL the whole file is written again, at every durable event and now and then.
    """

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self._file = None
        if not enabled:
            return
        self._path = path = folder / EVENTS
        self._remote, self._pushed = remote_of(path), time.monotonic()
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("ab", buffering=0)
        if torn:
            self._file.write(b"\n")

    def write(self, event: str, *, durable: bool = False, **fields: Any) -> None:
        """Append one event with the wall-clock ``time`` in seconds since 1970; ``durable`` waits for the disk."""
        if self._file is None:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields})
        self._file.write(line.encode() + b"\n")
        if durable:
            os.fsync(self._file.fileno())
        if self._remote is not None and (durable or time.monotonic() - self._pushed > PUSHED_EVERY):
            self._remote.put(self._path.read_bytes())
            self._pushed = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_events(folder: Path) -> Iterator[dict[str, Any]]:
    """The events of a run directory, oldest first; torn lines are passed over; none where there is no file."""
    path = folder / EVENTS
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event


def validations(folder: Path) -> list[dict[str, Any]]:
    """The run's validation events, one a step, in order of step."""
    by_step = {event["step"]: event for event in read_events(folder) if event["event"] == "validation"}
    return [by_step[step] for step in sorted(by_step)]
