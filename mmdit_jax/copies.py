"""The small files of runs whose root is a URL: this host's copies of them, in the folder that stands for it.

What is written there is written to the URL, too, before the program goes on; what others wrote is fetched where a
command begins. Checkpoints are never here: Orbax reads and writes them at the URL itself, all hosts of a run their
parts. The folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

from mmdit_jax.locks import LOCK, unheld
from mmdit_jax.remote import Entry, Remote, content_of, remote_of

APART = ("checkpoints", "best", "damaged", "wandb", "_data", "_cache", "logs", "jobs", "stacks")
"""Folders that are not copied."""
RESULT = "result.json"
"""Of a run: that it is done."""
LEASE = "lease.json"
"""Of a run: by which host it is held, at the URL alone."""
HELD = (LOCK, LEASE)
"""Files by which a run is held, on this host and at the URL: a copy of either would say what is not so."""
ENGINES = "engines.json"
"""Of a study's jobs, the one file that others need: which engines it was given to."""
_AT_ONCE = 2**25
"""Bytes under way at once: they are in memory, and the renewal of a lease waits behind them."""

T = TypeVar("T")


def pull(folder: Path, *, ours: bool = False, only: Collection[str] = ()) -> None:
    """Fetch what lies below at the URL: what is not here, or of another size, or has been replaced.

    Of a file that is appended to (events.jsonl) the longer one is the newer: a run on this host may be ahead. Whoever
    holds the lease (``ours``) takes what is at the URL: here may lie the end of an attempt that was killed, and another
    host has gone on. Of a longer one what is new is fetched, and all of it where that doesn't go on from what is here:
    the digest of the whole tells.

    Args:
      only: names of files, wherever they lie below; none: all.
    """
    remote = remote_of(folder)
    if remote is None:
        return
    entries = {name: entry for name, entry in remote.listing().items() if _copied(name, only)}
    starts = {name: at for name, entry in entries.items() if (at := _start(folder / name, entry, ours)) is not None}
    apart = _fetch(folder, remote, entries, starts, ours)
    _fetch(folder, remote, entries, dict.fromkeys(apart, 0), ours)


def _copied(name: str, only: Collection[str]) -> bool:
    *folders, last = PurePosixPath(name).parts
    if last in HELD or (only and last not in only):
        return False
    return last == ENGINES or not any(folder in APART for folder in folders)


def _start(path: Path, entry: Entry, ours: bool) -> int | None:
    """From which byte on the object is to be fetched; none: it is here."""
    here = path.stat().st_size if path.exists() else -1
    if path.suffix == ".jsonl":
        if here >= entry.size and (not ours or _same(path, entry)):
            return None
        return here if 0 < here < entry.size and entry.digest is not None else 0
    if here != entry.size:
        return 0
    return 0 if path.suffix in (".json", ".csv") and not _same(path, entry) else None


def _same(path: Path, entry: Entry) -> bool:
    """Whether the file surely is the object: another content of the same size is not."""
    return entry.digest == _md5(path.read_bytes())


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _fetch(folder: Path, remote: Remote, entries: dict[str, Entry], starts: dict[str, int], ours: bool) -> list[str]:
    """Fetch objects, each from its byte on; returns those whose new end doesn't go on from what is here."""
    apart = []
    for names in _batches(starts, lambda name: entries[name].size - starts[name]):
        # Without bounds where all of it is wanted: it may have been replaced by a longer one since it was listed.
        begins = [starts[name] or None for name in names]
        ends = [entries[name].size if starts[name] else None for name in names]
        found = remote.files.cat_ranges([(remote / name).path for name in names], begins, ends)
        for name, part in zip(names, found, strict=True):
            path = folder / name
            if starts[name]:
                before = path.read_bytes()[: starts[name]]
                if not isinstance(part, bytes) or _md5(before + part) != entries[name].digest:
                    apart.append(name)
                    continue
                part = before + part
            content = content_of(part)
            if content is not None:  # not deleted since it was listed
                path.parent.mkdir(parents=True, exist_ok=True)
                with _may_replace(path, ours) as may:
                    if may:
                        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
                        temporary.write_bytes(content)
                        temporary.replace(path)
    return apart


@contextlib.contextmanager
def _may_replace(path: Path, ours: bool) -> Iterator[bool]:
    """Not what a live run of this folder appends to: its handle would then be of a file that is gone.

    Hosts may share the folder, and see the file's length late.
    """
    lock = path.parent / LOCK
    if ours or path.suffix != ".jsonl" or not lock.exists():
        yield True
        return
    with unheld(lock) as free:
        yield free


def _batches(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Items of so many bytes together as may be under way at once; a larger one alone."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and total + size(item) > _AT_ONCE:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch


def push(path: Path) -> None:
    """Write a file to its URL, where it has one."""
    remote = remote_of(path)
    if remote is not None:
        remote.put(path.read_bytes())


def push_all(folder: Path) -> None:
    """Write all files below, with the exceptions of ``APART``; those last that say that something is done."""
    remote = remote_of(folder)
    if remote is None:
        return
    paths = list(_below(folder))
    for done in (False, True):
        group = (path for path in paths if (path.name == RESULT) is done)
        for batch in _batches(group, lambda path: path.stat().st_size):
            named = {(remote / path.relative_to(folder).as_posix()).path: path for path in batch}
            remote.files.pipe({name: path.read_bytes() for name, path in named.items()})


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in APART:
            yield from _below(path)
        elif path.is_file() and not path.name.startswith(".") and path.name not in HELD:
            yield path
