"""Small captioned sets in three layouts, and a tiny random autoencoder: for the tests of `mmdit data encode`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from deterministic import weights
from PIL import Image

from mmdit_jax.data.emoji import assets
from mmdit_jax.models.autoencoder import AutoencoderConfig, KLAutoencoder, save_autoencoder
from mmdit_jax.models.autoencoder.names import shapes

TINY_VAE = AutoencoderConfig(channels=4, widths=(8, 8, 8, 8), layers=1, groups=2, attention=False, image_size=64)


def write_vae(folder: Path, config: AutoencoderConfig = TINY_VAE) -> Path:
    """A random autoencoder in diffusers' layout."""
    save_autoencoder(folder, KLAutoencoder.from_tensors(config, weights(shapes(config))))
    return folder


def emoji(count: int, resolution: int = 32) -> tuple[np.ndarray, list[str]]:
    """The first emoji: uint8 [count, R, R, 3] and captions."""
    return assets.images_at(resolution)[:count], [row.caption() for row in assets.load()[0][:count]]


def png(image: np.ndarray) -> bytes:
    """A PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(folder: Path, images: Sequence[np.ndarray], captions: Sequence[str]) -> Path:
    """Pairs of image and text, a hundred a subfolder."""
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        place = folder / f"{i // 100:03d}" / f"{i:06d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(image))
        place.with_suffix(".txt").write_text(caption)
    return folder


def write_tars(folder: Path, images: Sequence[np.ndarray], captions: Sequence[str], each: int = 40) -> str:
    """WebDataset shards of png, and txt or json; returns the range that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-len(images) // each)
    for number in range(count):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as tar:
            for i in range(number * each, min((number + 1) * each, len(images))):
                text = json.dumps({"caption": captions[i]}) if i % 2 else captions[i]
                for suffix, data in (("png", png(images[i])), ("json" if i % 2 else "txt", text.encode())):
                    member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return str(folder / f"{{000..{count - 1:03d}}}.tar")


def write_tfds(folder: Path, images: Sequence[np.ndarray], captions: Sequence[str]) -> str:
    """A TFDS set on array_record with an Image feature and coco_captions' ``captions/text``; returns its name."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            text = tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64})
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "captions": text})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
                yield i, {"image": io.BytesIO(png(image)), "captions": [{"text": caption, "id": i}]}

    tfds.disable_progress_bar()
    Pictures(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return "tfds:pictures"


def write_labels(folder: Path, name: str, classes: Sequence[str], rows: Sequence[tuple[np.ndarray, int]]) -> str:
    """A TFDS set of images and labels, of which -1 is none; returns its name."""
    import tensorflow_datasets as tfds

    class Labelled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            label = tfds.features.ClassLabel(names=list(classes))
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, (image, label) in enumerate(rows):
                yield i, {"image": io.BytesIO(png(image)), "label": label}

    Labelled.name = name
    tfds.disable_progress_bar()
    Labelled(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return f"tfds:{name}"
