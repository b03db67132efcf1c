"""The `words` encoder: exact content per position, no weights. It plays the part of SD3's T5 (no pooled state)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mmdit_jax.models.text.interface import TextStates
from mmdit_jax.models.text.tokens import LENGTH, word_vectors

_VERSION = "words-1"
_OWN, _PREVIOUS, _POSITION = 0.5, 0.3, 0.2
"""Share of a token state's power that is its word, the word before it, and its position."""


def sinusoids(length: int, width: int) -> np.ndarray:
    """Sin-cos position table, float32 [length, width], unit RMS a row; periods from 2π to 8·length, geometric."""
    half = width // 2
    periods = 2 * np.pi * (8 * length / (2 * np.pi)) ** (np.arange(half) / (half - 1))
    angles = 2 * np.pi * np.arange(length)[:, None] / periods
    return (np.sqrt(2) * np.concatenate([np.sin(angles), np.cos(angles)], axis=1)).astype(np.float32)


class WordsEncoder:
    """Frozen hashed word vectors with positions; unit RMS, float16. Encoding is a table look-up.

    A token also carries the word before it, its channels rotated by half the width so that the two don't mix: with it
    "red circle" and "blue circle" end in different states, which even a shallow model can read.
    """

    name = "words"
    length = LENGTH
    width = 64
    pooled_width = 0

    @property
    def fingerprint(self) -> str:
        """Hash of the algorithm's version: there are no weights."""
        return hashlib.sha256(f"{_VERSION}:{self.length}:{self.width}".encode()).hexdigest()[:16]

    def encode(self, captions: Sequence[str]) -> TextStates:
        """States of captions: tokens float16 [N, 16, 64], pooled float16 [N, 0]."""
        tokens = np.empty((len(captions), self.length, self.width), np.float16)
        position = sinusoids(self.length, self.width) * np.float32(np.sqrt(_POSITION))
        for start in range(0, len(captions), 4096):
            own = word_vectors(captions[start : start + 4096], self.width)
            there = np.any(own != 0, axis=-1, keepdims=True)
            before = np.zeros_like(own)
            before[:, 1:] = np.roll(own[:, :-1], self.width // 2, axis=-1)
            states = np.float32(np.sqrt(_OWN)) * own + np.float32(np.sqrt(_PREVIOUS)) * before + position
            tokens[start : start + 4096] = np.where(there, states, 0)
        return TextStates(tokens, np.zeros((len(captions), 0), np.float16))
