"""Roots that are URLs (``s3://…``, ``gs://…``): a folder of this host stands for one, with the small files of its runs.

What is written there is written to the URL, too, before the program goes on; what others wrote is fetched where a
command begins. Checkpoints are never here: Orbax reads and writes them at the URL itself, all hosts of a run their
parts. The folder is a copy that may be deleted at any time.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from mmdit_jax.errors import UserError

MARK = ".remote"
"""File in such a folder, with the URL that it stands for."""
MIRRORS = "MMDIT_MIRRORS"
"""Variable that says where these folders lie; by default in ~/.cache/mmdit-jax."""
APART = ("checkpoints", "best", "damaged", "wandb", "_data", "_cache", "logs", "jobs", "stacks")
"""Folders that are not copied."""
HELD = ("lock", "lease.json")
"""Files by which a run is held, on this host and at the URL: a copy of either would say what is not so."""
ENGINES = "engines.json"
"""Of a study's jobs, the one file that others need: which engines it was given to."""
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
# s3fs asks for an object's size before it reads it, to read large ones in parts at once, between which one may be
# replaced; not where one part is all that it may read at once. Of its own accord it opens ten connections.
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"max_concurrency": 1, "config_kwargs": {"max_pool_connections": 32}}}
_AT_ONCE = 2**25
"""Bytes under way at once: they are in memory, and the renewal of a lease waits behind them."""

T = TypeVar("T")


class Entry(NamedTuple):
    """What a store's listing says of an object; its size in bytes."""

    size: int
    digest: str | None
    """The MD5 of its content. Of objects that are encrypted with a key of one's own, or were written in parts, it is
    another hash, which no file's MD5 equals; none of stores that tell nothing."""


@dataclass(frozen=True)
class Remote:
    """A file or folder at a URL."""

    url: str

    @property
    def scheme(self) -> str:
        return self.url.split("://", 1)[0]

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url}/{name}")

    @property
    def files(self) -> Any:
        """fsspec's file system of it, which remembers no listings: others write there, too."""
        return _file_system(self.scheme)

    @property
    def path(self) -> str:
        """As ``files`` calls it."""
        path: str = self.files._strip_protocol(self.url)
        return path

    def put(self, content: bytes) -> None:
        """Write the whole object: there is never half of one."""
        self.files.pipe_file(self.path, content)

    def get(self) -> bytes | None:
        """The whole object, or none where there is none."""
        try:
            content: bytes = self.files.cat_file(self.path)
        except FileNotFoundError:
            return None
        return content

    def create(self, content: bytes) -> bool:
        """Write it where there is none yet; whether this was so. Of several who try at once, one does."""
        try:
            self.files.pipe_file(self.path, content, mode="create")
        except FileExistsError:
            return False
        return True

    def delete(self) -> None:
        """Nothing happens where there is none."""
        try:
            self.files.rm_file(self.path)
        except FileNotFoundError:
            return

    def move(self, to: Remote) -> None:
        """Have the store copy all objects below to below ``to``, and then delete them."""
        names = list(self.listing())
        here = [(self / name).path for name in names]
        self.files.copy(here, [(to / name).path for name in names])
        self.files.rm(here)

    def listing(self) -> dict[str, Entry]:
        """Every object below, by its name from here."""
        try:
            found = self.files.find(self.path, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.path.rstrip("/")) + 1
        # A name that ends so is that of an empty object that consoles make for a folder.
        return {name[start:]: _entry(told) for name, told in found.items() if not name.endswith("/")}


def _entry(told: dict[str, Any]) -> Entry:
    digest = str(told["ETag"]).strip('"') if "ETag" in told else None
    if "md5Hash" in told:  # of Google's store
        digest = base64.b64decode(told["md5Hash"]).hex()
    return Entry(int(told["size"]), digest)


@functools.cache
def _file_system(scheme: str) -> Any:
    import fsspec

    package = _PACKAGES.get(scheme)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"root='{scheme}://…': needs the package {package}; pip install 'mmdit-jax[{scheme}]'")
    try:
        options = {} if package is None else {"use_listings_cache": False}
        return fsspec.filesystem(scheme, **options, **_OPTIONS.get(scheme, {}))
    except (ImportError, ValueError) as error:
        raise UserError(f"root='{scheme}://…': {error}") from error


def open_root(text: str) -> Path:
    """The folder of the studies: itself, or what stands for a URL on this host."""
    if "://" not in text:
        return Path(text)
    url = text.rstrip("/")
    home = Path(os.environ.get(MIRRORS) or Path.home() / ".cache" / "mmdit-jax")
    folder = home / hashlib.sha256(url.encode()).hexdigest()[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / MARK
        if not mark.exists() or mark.read_text() != url:
            temporary = folder / f"{MARK}.{os.getpid()}"
            temporary.write_text(url)
            temporary.replace(mark)  # whole: others look at it all the time
    except OSError as error:
        raise UserError(
            f"{MIRRORS}={str(home)!r}: cannot be written ({error.strerror}); name another folder"
        ) from error
    return folder


def remote_of(path: Path) -> Remote | None:
    """What ``path`` is a copy of; none of anything that is only here."""
    path = path.absolute()
    for parent in (path, *path.parents):
        mark = parent / MARK
        if mark.is_file():
            below = path.relative_to(parent).as_posix()
            root = Remote(mark.read_text())
            return root if below == "." else root / below
    return None


def location(path: Path) -> str:
    """How others, on other hosts, call it: its URL, or its whole path."""
    remote = remote_of(path)
    return str(path.absolute()) if remote is None else remote.url


def get_all(remotes: Sequence[Remote]) -> list[bytes | None]:
    """The whole objects, none where there is none; asked for at once, so they should be few and small."""
    paths = [remote.path for remote in remotes]
    return [_content(found) for found in remotes[0].files.cat_ranges(paths, None, None)] if remotes else []


def _content(found: bytes | BaseException) -> bytes | None:
    """What fsspec gives of one of several objects."""
    if isinstance(found, BaseException) and not isinstance(found, FileNotFoundError):
        raise found
    return found if isinstance(found, bytes) else None


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
            content = _content(part)
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
    lock = path.parent / HELD[0]
    if ours or path.suffix != ".jsonl" or not lock.exists():
        yield True
        return
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


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
        group = (path for path in paths if (path.name == "result.json") is done)
        for batch in _batches(group, lambda path: path.stat().st_size):
            named = {(remote / path.relative_to(folder).as_posix()).path: path for path in batch}
            remote.files.pipe({name: path.read_bytes() for name, path in named.items()})


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in APART:
            yield from _below(path)
        elif path.is_file() and not path.name.startswith(".") and path.name not in HELD:
            yield path
