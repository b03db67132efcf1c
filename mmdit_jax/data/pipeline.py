"""From a data set's name to its examples: built by TFDS on array_record, or encoded, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from mmdit_jax.data import store
from mmdit_jax.data.encoded import EncodedSet
from mmdit_jax.data.store import CACHE_BYTES
from mmdit_jax.errors import UserError, unknown

_READ = 1024


def prepare(
    name: str,
    data_dir: str | Path,
    *,
    resolution: int = 32,
    examples: int = 32_768,
    validation_examples: int = 1_024,
    seed: int = 0,
) -> Path:
    """Build a data set unless it is there already; returns its folder.

    A killed build starts again cleanly; of two at once, one builds and the other waits.

    Args:
        name: "scenes", "signs", "signs_fixed" or "emoji".
        data_dir: where data sets live; made if need be.
        resolution: height and width in pixels.
        examples: of split "train"; `emoji` has its own number, as of the two arguments below.
        validation_examples: of split "validation".
        seed: of a procedural set.

    Raises:
        UserError: an unknown name, numbers the set can't have, a folder that can't be written, a damaged data set.
    """
    make = functools.partial(_make, name, resolution, examples, validation_examples, seed)
    return store.build(make, Path(data_dir).expanduser().absolute())


def load(
    name: str,
    data_dir: str | Path,
    *,
    resolution: int = 32,
    examples: int = 32_768,
    validation_examples: int = 1_024,
    seed: int = 0,
) -> Dataset:
    """Open a data set that ``prepare`` built with the same arguments.

    Raises:
        UserError: it isn't there, or is damaged.
    """
    root = Path(data_dir).expanduser().absolute()
    builder = _make(name, resolution, examples, validation_examples, seed, root)
    folder = Path(builder.data_path)
    try:
        manifest = store.check(folder)
    except FileNotFoundError:
        raise UserError(f"data={folder}: not built yet; prepare data set {name!r} in {root} first") from None
    return Dataset(name, folder, builder, manifest["examples"])


def open_encoded(name: str, data_dir: str | Path) -> EncodedSet | None:
    """The encoded set in DATA_DIR/<name>, or none where this is the name of a set that TFDS builds.

    Raises:
        UserError: no such set, one that is not finished or is damaged, or one under the name of a built-in set.
    """
    root = Path(data_dir).expanduser().absolute()
    folder = root / name
    there = (folder / store.MANIFEST).exists()
    if name in store.BUILDERS:
        if there:
            raise UserError(f"data={folder}: an encoded set under the name of a built-in one; rename this folder")
        return None
    if not there and folder.is_dir():
        raise UserError(f"data={folder}: no {store.MANIFEST}, so not finished; run its `mmdit data encode` again")
    if not there:
        store.builder(name, root, 1, 1, 1, 0)  # says what there is, and how a set is made
    return EncodedSet(folder)


def _make(
    name: str, resolution: int, examples: int, validation_examples: int, seed: int, data_dir: Path
) -> store.Builder:
    return store.builder(name, data_dir, resolution, examples, validation_examples, seed)


@dataclasses.dataclass(eq=False)
class Dataset:
    """An opened data set."""

    name: str
    folder: Path
    builder: store.Builder
    sizes: dict[str, int]
    """Examples of each split."""
    _splits: dict[str, Split] = dataclasses.field(default_factory=dict)

    def split(self, name: str) -> Split:
        """Random access to split "train" or "validation".

        Raises:
            UserError: no such split, or its files can't be read.
        """
        if name not in self.sizes:
            unknown("split", name, self.sizes)
        if name not in self._splits:
            try:
                source = self.builder.as_data_source(split=name)
                if len(source) != self.sizes[name]:
                    raise ValueError(f"{len(source)} examples of {self.sizes[name]} in split {name}")
            except Exception as error:  # array_record and TFDS raise what they like on damaged files
                raise store.damaged(self.folder, error) from None
            self._splits[name] = Split(source, self.folder)
        return self._splits[name]


class Split:
    """A split as a random-access source of {"image": uint8 [R, R, 3], "caption": str}."""

    def __init__(self, source: Any, folder: Path):
        self._source = source
        self._folder = folder

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        (record,) = self._records([range(len(self))[index]])
        return {"image": record["image"], "caption": _text(record["caption"])}

    @functools.cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(R, R, 3)."""
        return tuple(self._records([0])[0]["image"].shape)

    @functools.cached_property
    def in_memory(self) -> bool:
        """Whether ``take`` reads from memory: the images take no more than ``CACHE_BYTES``."""
        return len(self) * int(np.prod(self.image_shape)) <= CACHE_BYTES

    @property
    def images(self) -> np.ndarray:
        """All images, uint8 [N, R, R, 3], read-only, decoded once."""
        return self._decoded[0]

    @property
    def captions(self) -> list[str]:
        """All captions, decoded once."""
        return self._decoded[1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of every caption and image: a key for what is computed from them."""
        digest = hashlib.blake2b("\n".join(self.captions).encode(), digest_size=8)
        digest.update(self.images.data)
        return digest.hexdigest()

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Images at ``rows``, uint8 [len(rows), R, R, 3]."""
        if self.in_memory:
            return self.images[rows]
        return np.stack([record["image"] for record in self._records([int(row) for row in rows])])

    @functools.cached_property
    def _decoded(self) -> tuple[np.ndarray, list[str]]:
        images = np.empty((len(self), *self.image_shape), np.uint8)
        captions: list[str] = []
        for start in range(0, len(self), _READ):
            records = self._records(list(range(start, min(start + _READ, len(self)))))
            images[start : start + len(records)] = [record["image"] for record in records]
            captions += [_text(record["caption"]) for record in records]
        images.flags.writeable = False
        return images, captions

    def _records(self, rows: list[int]) -> list[dict[str, Any]]:
        try:
            records: list[dict[str, Any]] = self._source.__getitems__(rows)
        except Exception as error:  # array_record and protobuf raise what they like on damaged files
            raise store.damaged(self._folder, error) from None
        return records


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
