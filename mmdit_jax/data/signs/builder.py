"""TFDS builders ``signs`` and ``signs_fixed``: procedural images of a word with true captions.

They are written and read without TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import numpy as np
import tensorflow_datasets as tfds

from mmdit_jax.data.signs.captions import examples
from mmdit_jax.data.signs.renderer import MIN_RESOLUTION
from mmdit_jax.errors import UserError

_CHUNK: Final = 512  # examples rendered together


@dataclasses.dataclass(kw_only=True)
class SignsConfig(tfds.core.BuilderConfig):
    """What to build. The name follows from the numbers, so that two configurations never share a folder.

    Raises:
        UserError: a number that cannot be.
    """

    resolution: int = 32
    examples: int = 20_000
    """In split ``train``."""
    validation_examples: int = 1_024
    """Every other one shows a word that split ``train`` does not."""
    seed: int = 0
    name: str = dataclasses.field(default="", init=False)

    def __post_init__(self) -> None:
        for field in ("examples", "validation_examples"):
            if vars(self)[field] < 1:
                raise UserError(f"{field}={vars(self)[field]}: expected 1 or more")
        if self.resolution < MIN_RESOLUTION:
            raise UserError(f"resolution={self.resolution}: expected {MIN_RESOLUTION} or more")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: expected 0 or more")
        self.name = f"r{self.resolution}_n{self.examples}_v{self.validation_examples}_s{self.seed}"


class Signs(tfds.core.GeneratorBasedBuilder):
    """A word of two to four letters on a plate, spelled in the caption. Example i depends on (seed, split, i) only.

    Features: ``image`` uint8 [resolution, resolution, 3]; ``caption`` text, the word in quotation marks.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "359 words, 51 of them held out; DejaVu Sans Mono Bold."}
    FIXED: ClassVar[bool] = False
    """Whether words are short, and all in one size, place and colour."""

    def __init__(self, *, config: SignsConfig | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("file_format", "array_record")
        super().__init__(config=config or SignsConfig(), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.resolution
        return self.dataset_info_from_configs(
            description=str(type(self).__doc__),
            features=tfds.features.FeaturesDict(
                {
                    # As in `scenes`: bytes are written fast, and read without TensorFlow.
                    "image": tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes"),
                    "caption": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,  # the examples are random already, and position i is sign i
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = self.builder_config
        return {
            "train": self._generate_examples("train", config.examples),
            "validation": self._generate_examples("validation", config.validation_examples),
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        for start in range(0, count, _CHUNK):
            stop = min(start + _CHUNK, count)
            images, captions = examples(config.seed, split, start, stop, config.resolution, fixed=self.FIXED)
            for offset, (image, caption) in enumerate(zip(images, captions, strict=True)):
                yield start + offset, {"image": image, "caption": caption}


class SignsFixed(Signs):
    """A word of two or three letters, black on white, of one size and in the middle. Features as of Signs."""

    FIXED: ClassVar[bool] = True
