"""TFDS builders ``signs`` and ``signs_fixed``: procedural images of a word with true captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mmdit_jax.data.procedural import Procedural, ProceduralConfig
from mmdit_jax.data.signs.captions import examples
from mmdit_jax.data.signs.renderer import MIN_RESOLUTION


class SignsConfig(ProceduralConfig):
    """What to build. Every other example of split ``validation`` shows a word that ``train`` does not."""

    LEAST: ClassVar[int] = MIN_RESOLUTION


class Signs(Procedural):
    """A word of two to four letters on a plate, spelled in the caption. Example i depends on (seed, split, i) only.

    Features: ``image`` uint8 [resolution, resolution, 3]; ``caption`` text, the word in quotation marks.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "359 words, 51 of them held out; DejaVu Sans Mono Bold."}
    CONFIG: ClassVar[type[ProceduralConfig]] = SignsConfig
    FIXED: ClassVar[bool] = False
    """Whether words are short, and all in one size, place and colour."""

    def examples(self, split: str, start: int, stop: int) -> tuple[np.ndarray, Sequence[str]]:
        """As the base's."""
        config = self.builder_config
        return examples(config.seed, split, start, stop, config.resolution, fixed=self.FIXED)


class SignsFixed(Signs):
    """A word of two or three letters, black on white, of one size and in the middle. Features as of Signs."""

    FIXED: ClassVar[bool] = True
