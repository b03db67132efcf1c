"""``mmdit data inspect`` of a pre-encoded set: what its manifest says, and its latents decoded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from launch.encode import account
from mmdit_jax.data.records import FORMAT, Encoded, unpack
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.grids import grid_png

_SHOWN = 8


def is_encoded(folder: Path) -> bool:
    """Whether there is a pre-encoded set, finished or begun."""
    return (folder / "manifest.json").is_file() or (folder / "work" / "settings.json").is_file()


def inspect_encoded(folder: Path, out: Path | None) -> int:
    """Print sizes by bucket and the encoders; draw decoded examples of all buckets.

    Raises:
        UserError: not finished, damaged, of another format, or its autoencoder isn't there any more.
    """
    manifest = _manifest(folder)
    print(account(folder, manifest))
    latents = manifest["latents"]
    print(
        f"latents: {latents['channels']} channels, factor {latents['factor']}, "
        f"(z - {latents['shift']:g})·{latents['scale']:g}, {latents['folder']} ({latents['fingerprint']})"
    )
    for name, told in manifest["text"].items():
        where = told["folder"] or "embedded"
        widths = f"{told['length']} tokens of {told['width']}, pooled {told['pooled_width']}"
        print(f"{name}: {widths}, {where} ({told['fingerprint']})")
    examples = list(_some(folder, manifest))
    for example in examples[:4]:
        print(f"  {example.key}: {example.caption}")
    if out:
        images = _decoded(latents, examples)
        grid_png(images[None], [folder.name], [example.caption for example in examples], out)
        print(out)
    return 0


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        raise UserError(
            f"data={folder}: begun, not finished; run mmdit data encode again with the same settings"
        ) from None
    except ValueError:
        raise UserError(f"data={folder}: manifest.json is damaged; delete it and run mmdit data encode again") from None
    if manifest.get("format") != FORMAT:
        raise UserError(f"data={folder}: format {manifest.get('format')!r}; expected {FORMAT!r}")
    for shard in (shard for shards in manifest["splits"].values() for shard in shards):
        path = folder / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise UserError(f"data={folder}: {path.name} is missing or cut off; delete manifest.json and encode again")
    return manifest


def _some(folder: Path, manifest: dict[str, Any]) -> Iterator[Encoded]:
    """A few examples: the first of each bucket in turn, then the second ones, and so on."""
    from array_record.python.array_record_module import ArrayRecordReader

    first: dict[tuple[int, int], Path] = {}
    for shard in (shard for split in ("train", "validation") for shard in manifest["splits"][split]):
        first.setdefault(tuple(shard["bucket"]), folder / shard["file"])
    readers = [ArrayRecordReader(str(path)) for path in first.values()]
    places = [(row, reader) for row in range(_SHOWN) for reader in readers if row < reader.num_records()]
    for row, reader in places[:_SHOWN]:
        (data,) = reader.read([row])
        yield unpack(data)


def _decoded(latents: dict[str, Any], examples: list[Encoded]) -> np.ndarray:
    """Images of the means, centred on one white canvas each: uint8 [N, H, W, 3]."""
    from mmdit_jax.models.autoencoder import load_autoencoder, to_model_space

    vae = load_autoencoder(latents["folder"])
    if vae.fingerprint != latents["fingerprint"]:
        raise UserError(f"vae={latents['folder']}: another autoencoder ({vae.fingerprint}) than encoded the set")
    images = []
    for example in examples:
        means = jnp.asarray(example.mean, jnp.float32)[None]
        images.append(vae.decode(np.asarray(to_model_space(means, vae.shift, vae.scale)))[0])
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    canvas = np.full((len(images), height, width, 3), 255, np.uint8)
    for place, image in zip(canvas, images, strict=True):
        top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
        place[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
