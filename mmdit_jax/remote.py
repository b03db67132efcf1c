"""Roots that are URLs (``s3://…``, ``gs://…``): a folder of this host stands for one, and what is at the URL itself."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmdit_jax.errors import UserError

MARK = ".remote"
"""File in such a folder, with the URL that it stands for."""
MIRRORS = "MMDIT_MIRRORS"
"""Variable that says where these folders lie; by default in ~/.cache/mmdit-jax."""
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
# s3fs asks for an object's size before it reads it, to read large ones in parts at once, between which one may be
# replaced; not where one part is all that it may read at once. Of its own accord it opens ten connections.
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"max_concurrency": 1, "config_kwargs": {"max_pool_connections": 32}}}


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
    return [content_of(found) for found in remotes[0].files.cat_ranges(paths, None, None)] if remotes else []


def content_of(found: bytes | BaseException) -> bytes | None:
    """What fsspec gives of one of several objects."""
    if isinstance(found, BaseException) and not isinstance(found, FileNotFoundError):
        raise found
    return found if isinstance(found, bytes) else None
