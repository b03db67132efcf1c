"""The `emoji` set as a TFDS builder on array_record; nothing here or in reading it needs TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mmdit_jax.data.emoji import assets


@dataclasses.dataclass(kw_only=True)
class EmojiConfig(tfds.core.BuilderConfig):
    """What to build; the name of the configuration follows from it.

    Raises:
        UserError: emoji do not come at this resolution.
    """

    resolution: int = 32
    name: str = ""

    def __post_init__(self) -> None:
        assets.check_resolution(self.resolution)
        self.name = self.name or f"r{self.resolution}"


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Fluent emoji with label, tags and group; splits `train` and `validation` share no emoji code.

    A record: ``image`` uint8 [R, R, 3] on white, ``caption`` (label and tags, at most 16 words), ``label``, ``tags``
    (joined by "|"), ``group``, ``code``.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Fluent Emoji Flat 1.2.6, emojibase 17.0.0."}

    def __init__(self, *, config: EmojiConfig | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("file_format", "array_record")
        super().__init__(config=config or EmojiConfig(), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.resolution
        return self.dataset_info_from_configs(
            description=str(type(self).__doc__),
            homepage="https://github.com/microsoft/fluentui-emoji",
            license="MIT",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes"),
                    **{name: tfds.features.Text() for name in ("caption", "label", "tags", "group", "code")},
                }
            ),
            disable_shuffling=True,  # epochs are shuffled when read
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in ("train", "validation")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images = assets.images_at(self.builder_config.resolution)
        for number, (row, image) in enumerate(zip(assets.load()[0], images, strict=True)):
            if assets.split_of(row.code) == split:
                yield (
                    number,
                    {
                        "image": image,
                        "caption": row.caption(),
                        "label": row.label,
                        "tags": "|".join(row.tags),
                        "group": row.group,
                        "code": row.code,
                    },
                )
