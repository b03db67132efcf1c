"""Small encoded sets for tests, written with the record format and array_record alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from deterministic import values

from mmdit_jax.data.records import FORMAT, Encoded, pack
from mmdit_jax.models.text import TextShape, TextStates

Bucket = tuple[int, int]

CHANNELS, FACTOR = 4, 8
TEXT = {"clip_l": TextShape(5, 6, 4), "t5": TextShape(3, 8, 0)}
"""In the layout "sd3": a context of 8 tokens and 8 channels, 4 channels pooled."""
SHIFT, SCALE = 0.25, 1.5
SIZES: dict[str, dict[Bucket, int]] = {
    "train": {(4, 4): 20, (2, 8): 9, (6, 4): 12},
    "validation": {(4, 4): 5, (2, 8): 2, (6, 4): 3},
}


def example(
    key: str, bucket: Bucket, text: Mapping[str, TextShape] = TEXT, channels: int = CHANNELS, words: str = "a picture"
) -> Encoded:
    """An example whose numbers follow from its key."""
    shape = (*bucket, channels)
    states = {
        name: TextStates(values(f"{key}/{name}", (length, width)), values(f"{key}/{name}/pooled", (pooled,)))
        for name, (length, width, pooled) in text.items()
    }
    logvar = values(f"{key}/logvar", shape) - 2
    return Encoded(values(f"{key}/mean", shape), logvar, states, f"{words} {key}", key)


def write_set(
    folder: Path,
    sizes: Mapping[str, Mapping[Bucket, int]] = SIZES,
    text: Mapping[str, TextShape] = TEXT,
    *,
    size: int = 32,
    channels: int = CHANNELS,
    shard: int = 8,
    seed: str = "",
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a set: per split and bucket so many examples, in shards of at most ``shard``, buckets taking turns.

    Args:
        folder: made.
        sizes: examples by split and bucket.
        text: shape of each encoder's states.
        size: of the manifest, in pixels.
        channels: of a latent.
        shard: examples of a file.
        seed: another one gives other examples.
        changes: what replaces entries of the manifest.
    """
    folder.mkdir(parents=True)
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, buckets in sizes.items():
        splits[split] = []
        for start in range(0, max(buckets.values()), shard):
            for bucket, count in buckets.items():
                rows = range(start, min(start + shard, count))
                if rows:
                    keys = [f"{seed}{split}/{bucket[0]}x{bucket[1]}/{row}" for row in rows]
                    examples = [example(key, bucket, text, channels) for key in keys]
                    splits[split].append(write_shard(folder, f"{split}-{len(splits[split]):03d}", examples, bucket))
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "size": size,
        "latents": {
            "channels": channels,
            "factor": FACTOR,
            "shift": SHIFT,
            "scale": SCALE,
            "fingerprint": "autoencoder",
            "folder": "/nowhere/vae",
        },
        "text": {
            name: {**shape._asdict(), "fingerprint": f"of {name}", "folder": f"/nowhere/{name}"}
            for name, shape in text.items()
        },
        "splits": splits,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | dict(changes or {})))
    return folder


def write_shard(folder: Path, name: str, examples: Sequence[Encoded], bucket: Bucket) -> dict[str, Any]:
    """Write one file; returns its entry of the manifest."""
    path = folder / f"{name}.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    records = [pack(item) for item in examples]
    for record in records:
        writer.write(record)
    writer.close()
    return {
        "file": path.name,
        "examples": len(records),
        "bytes": path.stat().st_size,
        "bucket": list(bucket),
        "sha256": hashlib.sha256(b"".join(records)).hexdigest(),
    }


def same(found: np.ndarray, given: np.ndarray) -> None:
    """``found`` is ``given`` in bfloat16."""
    np.testing.assert_array_equal(found, given.astype(found.dtype))
