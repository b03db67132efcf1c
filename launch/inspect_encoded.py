"""``mmdit data inspect`` of a pre-encoded set: what its manifest says, and its latents decoded."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from launch.encode import account
from mmdit_jax.data.encoded import EncodedSet, Examples
from mmdit_jax.data.store import MANIFEST, SPLITS
from mmdit_jax.evaluation.grids import grid_png
from mmdit_jax.evaluation.latent import no_autoencoder, open_autoencoder
from mmdit_jax.models.autoencoder import to_model_space

_SHOWN = 8


def inspect_encoded(source: EncodedSet, out: Path | None, vae: str | None) -> int:
    """Print sizes by bucket and the encoders; draw decoded examples of all buckets.

    Args:
        source: the set.
        out: PNG to write.
        vae: folder of the set's autoencoder; None: where it lay when the set was made.

    Raises:
        UserError: a shard is damaged, or its autoencoder isn't there any more.
    """
    print(account(source.folder, json.loads((source.folder / MANIFEST).read_text())))
    space = source.latents
    print(
        f"latents: {space.channels} channels, factor {space.factor}, "
        f"(z - {space.shift:g})·{space.scale:g}, {space.folder} ({space.fingerprint})"
    )
    for name, told in source.text.items():
        length, width, pooled = told.shape
        where = told.folder or "embedded"
        print(f"{name}: {length} tokens of {width}, pooled {pooled}, {where} ({told.fingerprint})")
    examples = _some(source)
    captions = [str(example.captions[0]) for example in examples]
    for example, caption in list(zip(examples, captions, strict=True))[:4]:
        print(f"  {example.keys[0]}: {caption}")
    if out:
        grid_png(_decoded(source, examples, vae)[None], [source.folder.name], captions, out)
        print(out)
    return 0


def _some(source: EncodedSet) -> list[Examples]:
    """A few examples, one by one: the first of each bucket in turn, then the second ones, and so on."""
    name = next(split for split in SPLITS if source.examples(split))
    split = source.split(name, ())
    places = [(row, bucket) for row in range(_SHOWN) for bucket, size in enumerate(split.sizes) if row < size]
    return [split.take(bucket, np.array([row]), keep=False) for row, bucket in places[:_SHOWN]]


def _decoded(source: EncodedSet, examples: list[Examples], given: str | None) -> np.ndarray:
    """Images of the means, centred on one white canvas each: uint8 [N, H, W, 3]."""
    vae = open_autoencoder(source, given)
    if vae is None:
        raise no_autoencoder(source)
    images = []
    for example in examples:
        means = jnp.asarray(example.mean, jnp.float32)
        images.append(vae.decode(np.asarray(to_model_space(means, vae.shift, vae.scale)))[0])
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    canvas = np.full((len(images), height, width, 3), 255, np.uint8)
    for place, image in zip(canvas, images, strict=True):
        top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
        place[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
