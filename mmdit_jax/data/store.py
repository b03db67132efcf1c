"""Data sets on disk: built once by their TFDS builder, whole or not at all, and checked when opened.

A set lives in DATA_DIR/<name>/<config>/<version>/, TFDS's own layout, with `manifest.json` beside its shards. It is
built in a hidden folder and renamed, so a killed build leaves nothing that looks finished.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from mmdit_jax.errors import UserError, nearest
from mmdit_jax.files import NO_SPACE, full_disk_told

MANIFEST = "manifest.json"
SPLITS = ("train", "validation")
CACHE_BYTES = 4 * 2**30
"""Splits that take less are read once and kept in memory."""

logger = logging.getLogger(__name__)


class Builder(Protocol):
    """The part of a TFDS builder that is used here."""

    info: Any

    @property
    def data_path(self) -> Any:
        """Where its data set is or will be."""

    def download_and_prepare(self) -> None:
        """Write the data set."""

    def as_data_source(self, split: str) -> Any:
        """Random access to decoded records."""


def _emoji(data_dir: Path, resolution: int, examples: int, validation_examples: int, seed: int) -> Builder:
    from mmdit_jax.data.emoji.builder import Emoji, EmojiConfig

    return Emoji(data_dir=str(data_dir), config=EmojiConfig(resolution=resolution))


def _procedural(
    name: str, data_dir: Path, resolution: int, examples: int, validation_examples: int, seed: int
) -> Builder:
    from mmdit_jax.data.scenes.builder import Scenes
    from mmdit_jax.data.signs.builder import Signs, SignsFixed

    made = {"scenes": Scenes, "signs": Signs, "signs_fixed": SignsFixed}[name]
    config = made.CONFIG(resolution=resolution, examples=examples, validation_examples=validation_examples, seed=seed)
    return made(data_dir=str(data_dir), config=config)


BUILDERS: dict[str, Callable[[Path, int, int, int, int], Builder]] = {
    "scenes": functools.partial(_procedural, "scenes"),
    "emoji": _emoji,
    "signs": functools.partial(_procedural, "signs"),
    "signs_fixed": functools.partial(_procedural, "signs_fixed"),
}
"""By name: (data_dir, resolution, examples, validation_examples, seed) to a builder. `emoji` has its own numbers."""


def builder(name: str, data_dir: Path, resolution: int, examples: int, validation_examples: int, seed: int) -> Builder:
    """The TFDS builder of a data set.

    Raises:
        UserError: an unknown name (the nearest is offered, and how a set is encoded), or numbers the set does not have.
    """
    if name not in BUILDERS:
        raise UserError(
            f"data.name={name!r}: no encoded set in {data_dir / name}, and none is built in; did you mean "
            f"{nearest(name, BUILDERS)!r}? Else make it: mmdit data encode … --name {name}"
        )
    with _quiet():
        return BUILDERS[name](data_dir, resolution, examples, validation_examples, seed)


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a finished data set, whose files are all there in full length.

    Raises:
        FileNotFoundError: no data set here.
        UserError: a file is missing or has another length.
    """
    if not folder.exists():
        raise FileNotFoundError(folder)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        lengths: dict[str, int] = manifest["files"]
        for file, length in lengths.items():
            found = (folder / file).stat().st_size
            if found != length:
                raise ValueError(f"{file} has {found} bytes of {length}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, error) from None
    return manifest


def damaged(folder: Path, error: Exception) -> UserError:
    """The error for a data set that can't be read."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"data={folder}: damaged ({reason}); delete this folder and run again to rebuild it")


def build(make: Callable[[Path], Builder], data_dir: Path) -> Path:
    """Build a data set unless it is there; returns its folder. Safe to run twice at once, and to kill.

    Args:
        make: gives the builder for a data folder.
        data_dir: where data sets live.

    Raises:
        UserError: the folder can't be written, the disk is full, or what is there is damaged.
    """
    folder = Path(make(data_dir).data_path)
    with contextlib.suppress(FileNotFoundError):
        check(folder)
        return folder
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _lock(data_dir / ".building.lock"):
            with contextlib.suppress(FileNotFoundError):
                check(folder)
                return folder
            for stale in data_dir.glob(".building-*"):
                shutil.rmtree(stale, ignore_errors=True)
            hidden = Path(tempfile.mkdtemp(prefix=".building-", dir=data_dir))
            try:
                _build_in(make(hidden), hidden, folder, data_dir)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        full = error.errno in NO_SPACE
        advice = "free some space" if full else "give a folder that can be written"
        raise UserError(f"data_dir={data_dir}: cannot write ({error.strerror or error}); {advice}") from None
    return folder


def _build_in(made: Builder, hidden: Path, folder: Path, data_dir: Path) -> None:
    logger.info("building %s", folder)
    with full_disk_told(hidden), _quiet():
        made.download_and_prepare()
    built = Path(made.data_path)
    manifest = {
        "files": {file.name: file.stat().st_size for file in sorted(built.iterdir())},
        "examples": {split: int(made.info.splits[split].num_examples) for split in SPLITS},
    }
    (built / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for file in built.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(built, folder)
    except OSError as error:
        # Where locks don't reach (some network file systems), another builder may have been first: its set is as good.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        check(folder)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file lock, which the kernel releases when its holder is killed."""
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS's progress bars, its prints on stdout and its remarks on custom configurations to itself."""
    import tensorflow_datasets as tfds

    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        absl.setLevel(level)
