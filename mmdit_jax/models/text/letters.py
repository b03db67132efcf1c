"""The `letters` encoder: what a caption spells, a token a letter, no weights. As SD3's T5, it has no pooled state."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from mmdit_jax.models.text.interface import TextStates
from mmdit_jax.models.text.tokens import LENGTH, word_vector
from mmdit_jax.models.text.words import sinusoids

_VERSION = "letters-1"
_OWN, _START, _END = 0.5, 0.25, 0.25
"""Share of a token state's power that is its letter, its place from the start, and its place from the end."""
_QUOTED = re.compile(r"[\"“”]([^\"“”]*)[\"“”]")


class LettersEncoder:
    """Frozen hashed vectors of the characters between a caption's quotation marks; unit RMS, float16.

    `words` and `tower` know a word by its hash: they can tell STOP from SHOP, and don't say which letters it has. Here
    a word never seen is spelled as any other. A token also carries its places from both ends, by which a centred word
    says where in the image its letter stands. A caption without quotation marks has no tokens.
    """

    name = "letters"
    length = LENGTH
    width = 64
    pooled_width = 0

    @property
    def fingerprint(self) -> str:
        """Hash of the algorithm's version: there are no weights."""
        return hashlib.sha256(f"{_VERSION}:{self.length}:{self.width}".encode()).hexdigest()[:16]

    def encode(self, captions: Sequence[str]) -> TextStates:
        """States of captions: tokens float16 [N, 16, 64], of the first 16 characters; pooled float16 [N, 0]."""
        tokens = np.zeros((len(captions), self.length, self.width), np.float16)
        place = sinusoids(self.length, self.width)
        behind = np.roll(place, self.width // 2, axis=-1)  # other channels, so that the two ends don't mix
        for row, caption in enumerate(captions):
            spelled = quoted(caption)[: self.length]
            for i, letter in enumerate(spelled):
                state = np.sqrt(_OWN) * word_vector(letter, self.width) + np.sqrt(_START) * place[i]
                tokens[row, i] = state + np.sqrt(_END) * behind[len(spelled) - 1 - i]
        return TextStates(tokens, np.zeros((len(captions), 0), np.float16))


def quoted(caption: str) -> str:
    """What stands between the first two quotation marks, straight or curly; empty where there are none."""
    found = _QUOTED.search(caption)
    return found.group(1) if found else ""
