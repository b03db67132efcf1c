"""TFDS builder ``scenes``: procedural images with true captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mmdit_jax.data.procedural import Procedural, ProceduralConfig
from mmdit_jax.data.scenes.captions import examples
from mmdit_jax.data.scenes.renderer import MIN_RESOLUTION


class ScenesConfig(ProceduralConfig):
    """What to build."""

    LEAST: ClassVar[int] = MIN_RESOLUTION


class Scenes(Procedural):
    """Colourful shapes with captions. Example i of a split depends on (seed, split, i) and nothing else.

    Features: ``image`` uint8 [resolution, resolution, 3]; ``caption`` text of at most 16 words.
    Image is a Tensor, not an Image feature: decoding those needs TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "5 shapes, 8 colours, 4 backgrounds, 1 to 4 objects."}
    CONFIG: ClassVar[type[ProceduralConfig]] = ScenesConfig

    def examples(self, split: str, start: int, stop: int) -> tuple[np.ndarray, Sequence[str]]:
        """As the base's."""
        return examples(self.builder_config.seed, split, start, stop, self.builder_config.resolution)
