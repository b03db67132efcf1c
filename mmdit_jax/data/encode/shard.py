"""The second pass: the items of one shard through the autoencoder and the text encoders into an array_record file."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import ml_dtypes
import numpy as np

from mmdit_jax.data.encode.buckets import Bucket, fit
from mmdit_jax.data.encode.scan import content_hash
from mmdit_jax.data.records import Encoded, pack
from mmdit_jax.data.sources import Entry, Source, Unreadable
from mmdit_jax.data.sources.captions import choose
from mmdit_jax.data.sources.images import decode
from mmdit_jax.errors import UserError
from mmdit_jax.files import full_disk_told
from mmdit_jax.models.text import TextEncoder, TextStates

if TYPE_CHECKING:
    from mmdit_jax.models.autoencoder.interface import Autoencoder

_KEPT = 1024
"""Captions whose states are kept for others of the same words: as many as ImageNet has classes. T5's take 0.6 GB."""
_AHEAD = 2
"""Batches of images that are read while one is encoded."""


@dataclass(frozen=True)
class Models:
    """What encodes."""

    vae: Autoencoder
    text: Mapping[str, TextEncoder]
    """By name, sorted."""


class Changed(ValueError):
    """An item isn't what it was when it was scanned."""


class Work(NamedTuple):
    """An item of a shard, as the scan saw it."""

    entry: Entry
    content: int


class _Ready(NamedTuple):
    pixels: np.ndarray
    caption: str
    synthetic: bool
    key: str


def encode_shard(
    work: Sequence[Work],
    bucket: Bucket,
    source: Source,
    models: Models,
    batch: int,
    choice: tuple[int, float],
    path: Path,
    pool: Executor,
    progress: Callable[[int], None],
) -> dict[str, object]:
    """Write a shard, whole or not at all; its bytes depend on the arguments only, not on who runs it or how often.

    Args:
        work: its items, in order.
        bucket: (h, w), pixels.
        source: where they are read.
        models: what encodes them.
        batch: images encoded together; the last batch is filled up, so that every call has one shape.
        choice: seed and share of synthetic captions.
        path: of the shard.
        pool: reads and decodes images ahead.
        progress: told the images of each batch once done; what it raises ends the shard.

    Returns:
        bytes, sha256, and how many captions are synthetic.

    Raises:
        Changed: an item isn't what it was when it was scanned.
        UserError: latents or states are not finite.
        OSError: it can't be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent, f".{path.name}.*.tmp")
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}:{os.getpid()}.tmp")
    synthetic = 0
    try:
        with full_disk_told(path):
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
            try:
                states: dict[str, dict[str, TextStates]] = {}
                for ready in _batches(work, bucket, source, choice, batch, pool):
                    _add_states(states, ready, models.text)
                    for example in _encode(ready, models.vae, states, batch):
                        writer.write(pack(example))
                    for caption in list(states)[:-_KEPT]:
                        del states[caption]
                    synthetic += sum(item.synthetic for item in ready)
                    progress(len(ready))
            finally:
                writer.close()
        try:
            told = _seal(temporary)
            os.replace(temporary, path)
        except FileNotFoundError:
            # Where there are no locks, another process may have written this shard too, and swept ours away.
            told = _seal(path)
    finally:
        temporary.unlink(missing_ok=True)
    return {**told, "synthetic": synthetic}


def _seal(path: Path) -> dict[str, object]:
    """Bring a file to the disk; its bytes and sha256."""
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def remove_stale(folder: Path, pattern: str = ".*.array_record.*.tmp") -> None:
    """Remove half-written shards of this host's processes that are gone."""
    for path in folder.glob(pattern):
        host, _, process = path.name.removesuffix(".tmp").rpartition(".array_record.")[2].rpartition(":")
        if host == socket.gethostname() and process.isdigit() and not Path(f"/proc/{process}").exists():
            path.unlink(missing_ok=True)


def _batches(
    work: Sequence[Work], bucket: Bucket, source: Source, choice: tuple[int, float], batch: int, pool: Executor
) -> Iterator[list[_Ready]]:
    """Captions and images cropped to their bucket, a batch at a time; the next ones are read meanwhile."""

    def one(item: Work) -> _Ready:
        key = item.entry.key
        try:
            found = source.read(item.entry)
            if content_hash(found) != item.content:
                raise Unreadable("other bytes")
            pixels = fit(decode(found.image), bucket)
        except Unreadable as error:
            raise Changed(f"source: {key} has changed since it was scanned ({error})") from None
        caption, synthetic = choose(choice[0], key, found.caption, found.synthetic, choice[1])
        assert caption is not None  # the scan dropped those without
        return _Ready(pixels, caption, synthetic, key)

    waiting: list[list[Future[_Ready]]] = []
    try:
        for start in range(0, len(work), batch):
            waiting.append([pool.submit(one, item) for item in work[start : start + batch]])
            if len(waiting) > _AHEAD:
                yield [future.result() for future in waiting.pop(0)]
        while waiting:
            yield [future.result() for future in waiting.pop(0)]
    finally:
        for future in (future for futures in waiting for future in futures):
            future.cancel()


def _add_states(
    states: dict[str, dict[str, TextStates]], ready: Sequence[_Ready], encoders: Mapping[str, TextEncoder]
) -> None:
    """Encode the captions of a batch that ``states`` (by caption, by encoder) lacks.

    Encoders pad to a shape of their own. ImageNet's thousand captions cost one call a class and shard.
    """
    new = [caption for caption in dict.fromkeys(item.caption for item in ready) if caption not in states]
    if not new:
        return
    states.update({caption: {} for caption in new})
    for name, encoder in encoders.items():
        found = encoder.encode(new)
        for row, caption in enumerate(new):
            one = TextStates(found.tokens[row].astype(ml_dtypes.bfloat16), found.pooled[row].astype(ml_dtypes.bfloat16))
            _finite(f"{name}: states of {caption[:60]!r}", *one)
            states[caption][name] = one


def _encode(
    ready: Sequence[_Ready], vae: Autoencoder, states: Mapping[str, Mapping[str, TextStates]], batch: int
) -> Iterator[Encoded]:
    """The examples of a batch."""
    pixels = np.zeros((batch, *ready[0].pixels.shape), np.uint8)
    pixels[: len(ready)] = [item.pixels for item in ready]
    mean, logvar = (array.astype(ml_dtypes.bfloat16) for array in vae.encode(pixels))
    for row, item in enumerate(ready):
        _finite(f"vae: latents of {item.key}", mean[row], logvar[row])
        yield Encoded(mean[row], logvar[row], states[item.caption], item.caption, item.key)


def _finite(what: str, *arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError(f"{what} are not finite; expected weights that give finite numbers")
