"""Sets of latents and text states on disk, as `mmdit data encode` writes them: opened, checked, read at random.

A set is a folder: manifest.json, and array_record shards whose records are `records.pack(Encoded(…))`. A shard holds
examples of one bucket, that is of one latent shape; the shards of a bucket, in the manifest's order, are one index
space. The manifest is written last, so a folder without one is not finished.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mmdit_jax.data.records import FORMAT, Encoded, unpack
from mmdit_jax.data.store import CACHE_BYTES, MANIFEST
from mmdit_jax.errors import UserError, unknown
from mmdit_jax.host import allow_open_files
from mmdit_jax.models.text.interface import TextShape, TextStates

_READ = 256


@dataclass(frozen=True)
class LatentSpace:
    """The autoencoder that a set was made by. A latent as a model sees it is (z − shift)·scale."""

    channels: int
    factor: int
    """Pixels along a side of a latent pixel."""
    shift: float
    scale: float
    fingerprint: str
    folder: str
    """Where its weights lay when the set was made."""


@dataclass(frozen=True)
class TextSource:
    """A text encoder that a set was made by."""

    shape: TextShape
    fingerprint: str
    folder: str
    """Where its weights lay when the set was made; empty for those that ship with the package."""
    tokenizer: str | None
    """Where its tokenizer lay, if that was told apart; sets made before it could be have none."""


class Shard(NamedTuple):
    """A file of one bucket."""

    file: str
    examples: int
    bytes: int
    bucket: tuple[int, int]
    """Height and width in latent pixels."""


class Examples(NamedTuple):
    """N examples of one bucket."""

    mean: np.ndarray
    """Of the posterior, bfloat16 [N, h, w, C], before shift and scale."""
    logvar: np.ndarray
    """Its log variance, bfloat16 [N, h, w, C]."""
    text: dict[str, TextStates]
    """By encoder, tokens bfloat16 [N, L, width] and pooled bfloat16 [N, pooled_width]."""
    captions: np.ndarray
    """object [N] of str."""
    keys: np.ndarray
    """object [N] of str: where each came from."""


class EncodedSet:
    """An opened set. Opening reads the manifest and the files' lengths."""

    def __init__(self, folder: Path):
        """Open the set in ``folder``.

        Raises:
            FileNotFoundError: there is no manifest.
            UserError: the manifest is damaged or of another format, or a shard is missing or has another length.
        """
        self.folder = folder
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if manifest.get("format") != FORMAT:
                raise UserError(f"data={folder}: format {manifest.get('format')!r}; this version reads {FORMAT!r}")
            self.size = int(manifest["size"])
            """Side in pixels of the square whose area all buckets have, about."""
            self.latents = LatentSpace(**{name: manifest["latents"][name] for name in LatentSpace.__annotations__})
            self.text = {name: _text_source(told) for name, told in manifest["text"].items()}
            """By encoder."""
            self.dtype = str(manifest.get("settings", {}).get("dtype", "float32"))
            """Of the encoders' matrix products."""
            self._shards = {name: _shards(told) for name, told in manifest["splits"].items()}
            for shard in (shard for shards in self._shards.values() for shard in shards):
                found = (folder / shard.file).stat().st_size
                if found != shard.bytes:
                    raise ValueError(f"{shard.file} has {found} bytes of {shard.bytes}")
        except UserError:
            raise
        except FileNotFoundError as error:
            if not (folder / MANIFEST).exists():
                raise
            raise damaged(folder, error, folder / MANIFEST) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(folder, error, folder / MANIFEST) from None
        self.fingerprint = _fingerprint(manifest)
        """Hash of the manifest, but for the folders that the models lay in."""

    @property
    def latent_size(self) -> int:
        """Side in latent pixels of the square bucket."""
        return self.size // self.latents.factor

    def examples(self, split: str) -> int:
        """How many the split has; 0 where there is no such split."""
        return sum(shard.examples for shard in self._shards.get(split, ()))

    def split(self, name: str, encoders: Iterable[str] | None = None) -> EncodedSplit:
        """Random access to split "train" or "validation", with the states of these encoders, or of all.

        Raises:
            UserError: no such split, an empty one, an encoder whose states the set lacks, or more shards than this host
                lets a process open.
        """
        if name not in self._shards:
            unknown("split", name, self._shards)
        wanted = sorted(self.text) if encoders is None else list(encoders)
        for encoder in wanted:
            if encoder not in self.text:
                unknown("text_encoders", encoder, self.text)
        if not self.examples(name):
            raise UserError(f"data={self.folder}: split {name!r} holds no examples; encode with --validation N")
        files = sum(map(len, self._shards.values()))
        if not allow_open_files(files):  # each is kept open, since batches take examples of any
            raise UserError(
                f"data={self.folder}: {files:,} shards to hold open, more than this host's hard limit (ulimit -Hn); "
                "raise it, or encode with a larger --shard-examples"
            )
        shapes = {encoder: self.text[encoder].shape for encoder in wanted}
        return EncodedSplit(self.folder, self._shards[name], self.latents.channels, shapes)


class EncodedSplit:
    """A split of a set: buckets, each with rows 0 … size − 1. Small ones are kept in memory once they were read."""

    def __init__(self, folder: Path, shards: Sequence[Shard], channels: int, shapes: Mapping[str, TextShape]):
        self._folder, self._channels, self._shapes = folder, channels, dict(shapes)
        self._shards = [shard for shard in shards if shard.examples]
        self.buckets: tuple[tuple[int, int], ...] = tuple(sorted({shard.bucket for shard in self._shards}))
        """Height and width in latent pixels of each, in ascending order."""
        self.sizes: tuple[int, ...] = tuple(
            sum(shard.examples for shard in self._shards if shard.bucket == bucket) for bucket in self.buckets
        )
        """Examples of each."""
        self.bytes = sum(shard.bytes for shard in self._shards)
        """On disk."""
        self._read_once = functools.cache(lambda bucket: self._read(bucket, np.arange(self.sizes[bucket])))
        self._source = functools.cache(self._open)

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def in_memory(self) -> bool:
        """Whether ``take`` reads from memory: the split takes no more than ``store.CACHE_BYTES``."""
        return self.bytes <= CACHE_BYTES

    @property
    def squarest(self) -> tuple[int, int]:
        """The bucket whose sides are most alike; of several the one with most examples."""
        ranked = sorted(
            zip(self.buckets, self.sizes, strict=True),
            key=lambda item: (abs(math.log(item[0][0] / item[0][1])), -item[1]),
        )
        return ranked[0][0]

    def take(self, bucket: int, rows: np.ndarray, *, keep: bool = True) -> Examples:
        """Examples at ``rows`` of the bucket with this number, in that order.

        Args:
            bucket: its number.
            rows: in the bucket.
            keep: read a small split whole, for the next calls; else these rows only.

        Raises:
            UserError: a shard can't be read, or holds other examples than the manifest says.
        """
        if not (keep and self.in_memory):
            return self._read(bucket, rows)
        whole = self._read_once(bucket)
        text = {name: TextStates(states.tokens[rows], states.pooled[rows]) for name, states in whole.text.items()}
        return Examples(whole.mean[rows], whole.logvar[rows], text, whole.captions[rows], whole.keys[rows])

    def _read(self, bucket: int, rows: np.ndarray) -> Examples:
        count = len(rows)
        shape = (*self.buckets[bucket], self._channels)
        bf16 = ml_dtypes.bfloat16
        text = {
            name: TextStates(np.empty((count, length, width), bf16), np.empty((count, pooled), bf16))
            for name, (length, width, pooled) in self._shapes.items()
        }
        out = Examples(
            np.empty((count, *shape), bf16),
            np.empty((count, *shape), bf16),
            text,
            np.empty(count, object),
            np.empty(count, object),
        )
        for start in range(0, count, _READ):
            for i, example in enumerate(self._records(bucket, rows[start : start + _READ]), start):
                out.mean[i], out.logvar[i] = example.mean, example.logvar
                out.captions[i], out.keys[i] = example.caption, example.key
                for name, states in text.items():
                    states.tokens[i], states.pooled[i] = example.text[name]
        return out

    def _records(self, bucket: int, rows: np.ndarray) -> list[Encoded]:
        """Records of one bucket, whose shapes are those of the manifest."""
        expected = (*self.buckets[bucket], self._channels)
        try:
            found = [unpack(record) for record in self._source(bucket).__getitems__([int(row) for row in rows])]
            for example in found:
                if not example.mean.shape == example.logvar.shape == expected:
                    raise ValueError(f"latents of shape {example.mean.shape} in bucket {expected}")
                for name, shape in self._shapes.items():
                    tokens, pooled = example.text[name]
                    if (*tokens.shape, *pooled.shape) != tuple(shape):
                        raise ValueError(f"states of {name} of shape {tokens.shape}, {pooled.shape}: not {shape}")
        except Exception as error:  # array_record and safetensors raise what they like on damaged files
            raise damaged(self._folder, error) from None
        return found

    def _open(self, bucket: int) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        shards = [shard for shard in self._shards if shard.bucket == self.buckets[bucket]]
        source = ArrayRecordDataSource([str(self._folder / shard.file) for shard in shards])
        if len(source) != self.sizes[bucket]:
            raise ValueError(f"{len(source)} examples of {self.sizes[bucket]} in bucket {self.buckets[bucket]}")
        return source


def damaged(folder: Path, error: Exception, remedy: Path | None = None) -> UserError:
    """The error for a set that can't be read, and what to delete: the whole set, unless ``remedy`` is enough.

    Without its manifest a set is gone on with: `mmdit data encode` makes shards that are missing or cut off.
    """
    reason = f"{(str(error).splitlines() or [''])[0]}" or type(error).__name__
    what = remedy or "this folder"
    return UserError(f"data={folder}: damaged ({reason}); delete {what} and run its `mmdit data encode` again")


def _text_source(told: Mapping[str, Any]) -> TextSource:
    shape = TextShape(int(told["length"]), int(told["width"]), int(told["pooled_width"]))
    return TextSource(shape, told["fingerprint"], told["folder"], told.get("tokenizer"))


def _shards(told: Sequence[Mapping[str, Any]]) -> list[Shard]:
    return [
        Shard(item["file"], int(item["examples"]), int(item["bytes"]), (int(item["bucket"][0]), int(item["bucket"][1])))
        for item in told
    ]


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    """16 hexadecimal digits. The same models elsewhere are the same set."""

    def without(told: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in told.items() if name != "folder"}

    text = {name: without(told) for name, told in manifest["text"].items()}
    whole = {**manifest, "latents": without(manifest["latents"]), "text": text}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
