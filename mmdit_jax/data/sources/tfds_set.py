"""A TFDS set that is on disk in array_record files; read without TensorFlow, and without the set's builder."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.data.sources.captions import CAPTION_FIELDS, SYNTHETIC_FIELDS, clean
from mmdit_jax.data.sources.imagenet import read_names, sentence
from mmdit_jax.data.sources.interface import PART, Entry, Item, Unreadable
from mmdit_jax.errors import UserError, unknown

IMAGE_FIELDS = ("image", "jpg", "png", "webp")
_SYNSET = re.compile(r"n\d{8}")


class TfdsSource:
    """A split of a TFDS set, in its own order; keys are ``NAME/SPLIT/NUMBER``.

    An image is an Image feature (its file is taken as it is) or a uint8 Tensor. A caption is a text, a list of texts,
    or coco_captions' ``captions/text``, of which one is chosen by the item's key; of a set with class labels only
    (imagenet2012) it is "a photo of a …". TFDS calls ImageNet's classes by their synsets, which ``class_names`` tells.

    Args:
        spec: NAME, NAME/CONFIG or NAME/CONFIG:VERSION.
        folder: of TFDS sets.
        split: one of the set's splits.
        image_field, caption_field, synthetic_field: names of features, "/" within nested ones; guessed where None.
        class_names: file of names, as of ``ImageNetSource``.

    Raises:
        UserError: it isn't there, has tfrecord files, or lacks the split, a field, or names of its classes.
    """

    def __init__(
        self,
        spec: str,
        folder: Path,
        split: str,
        image_field: str | None = None,
        caption_field: str | None = None,
        synthetic_field: str | None = None,
        class_names: Path | None = None,
    ) -> None:
        self.name = f"tfds:{spec}"
        place = _place(spec, folder)
        self._builder = _builder(spec, place)
        info = self._builder.info
        if split not in info.splits:
            unknown("tfds-split", split, info.splits)
        self._split, self._size = split, int(info.splits[split].num_examples)
        features = info.features
        self._image = _field("image-field", image_field, features, IMAGE_FIELDS)
        self._synthetic = _field("synthetic-field", synthetic_field, features, SYNTHETIC_FIELDS, needed=False)
        label = caption_field is None and "label" in features and not any(f in features for f in CAPTION_FIELDS)
        self._caption = "label" if label else _field("caption-field", caption_field, features, CAPTION_FIELDS)
        self._classes = _classes(getattr(_feature(features, self._caption), "names", None), class_names)
        self._lock = threading.Lock()
        what = [
            spec,
            split,
            self._size,
            self._image,
            self._caption,
            self._synthetic,
            self._classes,
            (place / "dataset_info.json").read_text(),
        ]
        self.fingerprint = hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest()

    @property
    def parts(self) -> int:
        """Number of parts, each of ``PART`` records."""
        return -(-self._size // PART)

    def entries(self, part: int) -> list[Entry]:
        """The records of a part, by number."""
        rows = range(part * PART, min((part + 1) * PART, self._size))
        spec = self.name.removeprefix("tfds:")
        return [Entry(f"{spec}/{self._split}/{row:08d}", {"row": row}) for row in rows]

    def read(self, entry: Entry) -> Item:
        """A record's image and captions."""
        try:
            with self._lock:  # TFDS does not say that its sources are thread-safe
                record = self._records[entry.where["row"]]
        except Exception as error:  # array_record and protobuf raise what they like on damaged files
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise Unreadable(f"damaged record ({reason[:80]})") from None
        image = _value(record, self._image)
        if not isinstance(image, bytes | np.ndarray):
            raise Unreadable(f"its {self._image} is of type {type(image).__name__}, expected an image")
        caption = _value(record, self._caption)
        if self._classes and int(caption) < 0:
            raise Unreadable("no label")  # as test splits have it
        text = sentence(self._classes[int(caption)]) if self._classes else clean(caption, entry.key)
        synthetic = _value(record, self._synthetic) if self._synthetic else None
        return Item(image, text, clean(synthetic, entry.key))

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        kind = _feature(self._builder.info.features, self._image)
        decoders: Any = tfds.decode.SkipDecoding() if isinstance(kind, tfds.features.Image) else None
        for name in reversed(self._image.split("/")):
            decoders = {name: decoders} if decoders is not None else None
        return self._builder.as_data_source(self._split, decoders=decoders)


def _place(spec: str, folder: Path) -> Path:
    """The folder of a set's newest version, or of the one asked for."""
    name, _, version = spec.partition(":")
    base = folder / name
    found = sorted(
        (path.parent for path in base.glob("*/dataset_info.json") if version in ("", path.parent.name)),
        key=lambda path: [int(number) if number.isdigit() else -1 for number in path.name.split(".")],
    )
    if found:
        return found[-1]
    configs = sorted({path.parent.parent.name for path in base.glob("*/*/dataset_info.json")})
    if configs:
        raise UserError(
            f"source='tfds:{spec}': give one of its configurations: {', '.join(f'tfds:{name}/{c}' for c in configs)}"
        )
    raise UserError(
        f"source='tfds:{spec}': not in {folder}; build it with `tfds build {name} --file_format=array_record "
        f"--data_dir={folder}`, or give its --tfds-dir"
    )


def _builder(spec: str, place: Path) -> Any:
    import tensorflow_datasets as tfds

    try:
        told = json.loads((place / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    except (OSError, ValueError):
        raise UserError(
            f"source='tfds:{spec}': {place / 'dataset_info.json'} can't be read; build the set again"
        ) from None
    if told != "array_record":
        raise UserError(
            f"source='tfds:{spec}': its files are {told}; build it with --file_format=array_record, or, where "
            f"tensorflow is installed, `tfds convert_format --dataset_version_dir={place} "
            "--out_file_format=array_record --out_dir=NEW/NAME/VERSION`"
        )
    return tfds.builder_from_directory(place)


def _classes(labels: Sequence[str] | None, file: Path | None) -> list[str] | None:
    """Names of a set's classes, in the order of its labels; None where it has none."""
    if not labels:
        return None
    if file is None:
        if _SYNSET.fullmatch(labels[0]):
            raise UserError(f"class-names: the set calls its classes {labels[0]} and so on; give --class-names FILE")
        return list(labels)
    names = read_names(file)
    lacking = [label for label in labels if label not in names]
    if lacking:
        raise UserError(f"class-names={file}: no name for {lacking[0]!r}, and {len(lacking) - 1} more")
    return [names[label] for label in labels]


def _field(option: str, given: str | None, features: Any, guesses: tuple[str, ...], needed: bool = True) -> str:
    if given is not None:
        _feature(features, given, option)
        return given
    found = next((name for name in guesses if name in features), "")
    if not found and needed:
        raise UserError(f"{option}: not among its features ({', '.join(features)}); give --{option}")
    return found


def _feature(features: Any, field: str, option: str = "field") -> Any:
    for name in field.split("/"):
        inside = getattr(features, "feature", features)  # of a sequence
        if not hasattr(inside, "keys") or name not in inside:
            unknown(option, field, inside if hasattr(inside, "keys") else ["image"])
        features = inside[name]
    return features


def _value(record: Any, field: str) -> Any:
    for name in field.split("/"):
        record = record[name]
    return record
