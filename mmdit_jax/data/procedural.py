"""What TFDS builders of procedural sets share: images with true captions, written and read without TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

import numpy as np
import tensorflow_datasets as tfds

from mmdit_jax.errors import UserError

_CHUNK: Final = 512  # examples rendered together


@dataclasses.dataclass(kw_only=True)
class ProceduralConfig(tfds.core.BuilderConfig):
    """What to build. The name follows from the numbers, so that two configurations never share a folder.

    Raises:
        UserError: a number that cannot be.
    """

    LEAST: ClassVar[int] = 1
    """Resolution from which on images show what captions say."""

    resolution: int = 32
    examples: int = 20_000
    """In split ``train``."""
    validation_examples: int = 1_024
    seed: int = 0
    name: str = dataclasses.field(default="", init=False)

    def __post_init__(self) -> None:
        for field in ("examples", "validation_examples"):
            if vars(self)[field] < 1:
                raise UserError(f"{field}={vars(self)[field]}: expected 1 or more")
        if self.resolution < self.LEAST:
            raise UserError(f"resolution={self.resolution}: expected {self.LEAST} or more")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: expected 0 or more")
        self.name = f"r{self.resolution}_n{self.examples}_v{self.validation_examples}_s{self.seed}"


class Procedural(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A set whose example i of a split depends on (seed, split, i) and nothing else.

    Features: ``image`` uint8 [resolution, resolution, 3]; ``caption`` text. Image is a Tensor, not an Image feature:
    decoding those needs TensorFlow. A set has a config of its own, and ``examples``.
    """

    CONFIG: ClassVar[type[ProceduralConfig]] = ProceduralConfig

    def __init__(self, *, config: ProceduralConfig | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("file_format", "array_record")
        super().__init__(config=config or self.CONFIG(), **kwargs)

    def examples(self, split: str, start: int, stop: int) -> tuple[np.ndarray, Sequence[str]]:
        """(images uint8 [n, resolution, resolution, 3], captions) of the examples from ``start`` to ``stop``."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.resolution
        return self.dataset_info_from_configs(
            description=str(type(self).__doc__),
            features=tfds.features.FeaturesDict(
                {
                    # As bytes: as a list of integers it would be four times slower to write.
                    "image": tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes"),
                    "caption": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,  # the examples are random already, and position i is example i
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = self.builder_config
        return {
            "train": self._generate_examples("train", config.examples),
            "validation": self._generate_examples("validation", config.validation_examples),
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for start in range(0, count, _CHUNK):
            images, captions = self.examples(split, start, min(start + _CHUNK, count))
            for offset, (image, caption) in enumerate(zip(images, captions, strict=True)):
                yield start + offset, {"image": image, "caption": caption}
