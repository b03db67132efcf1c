"""Roots that are URLs (``s3://…``, ``gs://…``): a folder of this host stands for one, with the small files of its runs.

What is written there is written to the URL, too, before the program goes on; what others wrote is fetched where a
command begins. Checkpoints are never here: Orbax reads and writes them at the URL itself, all hosts of a run their
parts. The folder is a copy that may be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit_jax.errors import UserError

MARK = ".remote"
"""File in such a folder, with the URL that it stands for."""
MIRRORS = "MMDIT_MIRRORS"
"""Variable that says where these folders lie; by default in ~/.cache/mmdit-jax."""
APART = ("checkpoints", "best", "damaged", "wandb", "_data", "_cache", "logs", "jobs", "stacks")
"""Folders that are not copied."""
ENGINES = "engines.json"
"""Of a study's jobs, the one file that others need: which engines it was given to."""
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}


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

    def listing(self) -> dict[str, int]:
        """Bytes of every object below, by its name from here."""
        try:
            found = self.files.find(self.path, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.path.rstrip("/")) + 1
        return {name[start:]: int(told["size"]) for name, told in found.items()}


@functools.cache
def _file_system(scheme: str) -> Any:
    import fsspec

    package = _PACKAGES.get(scheme)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"root='{scheme}://…': needs the package {package}; pip install 'mmdit-jax[{scheme}]'")
    try:
        options = {} if package is None else {"use_listings_cache": False}
        return fsspec.filesystem(scheme, **options)
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


def pull(folder: Path, *, ours: bool = False) -> None:
    """Fetch what lies below at the URL: what is not here, or of another size, or may have been replaced.

    Of a file that is appended to (events.jsonl) the longer one is the newer: a run on this host may be ahead. Whoever
    holds the lease (``ours``) takes what is at the URL: here may lie the end of an attempt that was killed, and another
    host has gone on.
    """
    remote = remote_of(folder)
    if remote is None:
        return
    for name, size in remote.listing().items():
        path = folder / name
        if any(part in APART for part in path.relative_to(folder).parts[:-1]) and path.name != ENGINES:
            continue
        here = path.stat().st_size if path.exists() else -1
        if (ours or here < size) if path.suffix == ".jsonl" else here != size or path.suffix in (".json", ".csv"):
            content = (remote / name).get()
            if content is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
                temporary.write_bytes(content)
                temporary.replace(path)


def push(path: Path) -> None:
    """Write a file to its URL, where it has one."""
    remote = remote_of(path)
    if remote is not None:
        remote.put(path.read_bytes())


def push_all(folder: Path) -> None:
    """Write all files below, with the exceptions of ``APART``; those last that say that something is done."""
    if remote_of(folder) is None:
        return
    for path in sorted(_below(folder), key=lambda path: path.name == "result.json"):
        push(path)


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in APART:
            yield from _below(path)
        elif path.is_file() and not path.name.startswith(".") and path.name != "lock":
            yield path
