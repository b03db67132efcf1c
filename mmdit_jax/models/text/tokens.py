"""Captions to words, words to numbers: normalisation and hashing shared by the embedded text encoders.

No vocabulary file: a word's number and its vector come from a cryptographic hash of its spelling, so they are the same
on every machine and for words nobody has seen before.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

LENGTH = 16
"""Word tokens of an encoded caption; longer captions are cut, shorter ones padded with zeros."""

_WORD = re.compile(r"[a-z0-9]+")
_APOSTROPHES = str.maketrans("", "", "'’`")


def words(caption: str) -> list[str]:
    """The normalised words of a caption: accents and apostrophes removed, lower case, letters and digits only."""
    plain = unicodedata.normalize("NFKD", caption.translate(_APOSTROPHES).lower())
    return _WORD.findall("".join(c for c in plain if not unicodedata.combining(c)))


@functools.lru_cache(maxsize=65536)
def bucket(word: str, buckets: int) -> int:
    """A number in [1, buckets) for a word; 0 is left for padding."""
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % (buckets - 1)


def token_ids(captions: Sequence[str], buckets: int) -> np.ndarray:
    """Hashed word numbers of captions: int32 [N, LENGTH], 0 where there is no word."""
    ids = np.zeros((len(captions), LENGTH), np.int32)
    for row, caption in enumerate(captions):
        numbers = [bucket(word, buckets) for word in words(caption)[:LENGTH]]
        ids[row, : len(numbers)] = numbers
    return ids


def _hash_vector(text: str, width: int) -> np.ndarray:
    """A fixed random vector for a string: float32 [width], uniform with mean 0 and variance 1."""
    # A hash rather than a numpy Generator: numpy may change a Generator's stream between versions.
    raw = np.frombuffer(hashlib.shake_256(text.encode()).digest(2 * width), "<u2")
    return ((raw.astype(np.float32) + 0.5) / 32768 - 1) * np.float32(np.sqrt(3))


@functools.lru_cache(maxsize=65536)
def word_vector(word: str, width: int) -> np.ndarray:
    """A word's frozen vector: float32 [width], unit RMS; read-only.

    Half its power is the word's own, half the sum over its letter trigrams (as fastText's subword vectors), so
    "circle" and "circles" resemble each other and unrelated words don't.
    """
    marked = f"<{word}>"
    grams = sorted({marked[i : i + 3] for i in range(len(marked) - 2)})
    parts = np.sum([_hash_vector("gram:" + gram, width) for gram in grams], axis=0)
    vector = _hash_vector("word:" + word, width) + parts / np.float32(np.sqrt(len(grams)))
    vector = (vector / np.sqrt(np.mean(vector**2))).astype(np.float32)
    vector.flags.writeable = False
    return vector


def word_vectors(captions: Sequence[str], width: int) -> np.ndarray:
    """Frozen word vectors of captions: float32 [N, LENGTH, width], zeros where there is no word."""
    out = np.zeros((len(captions), LENGTH, width), np.float32)
    for row, caption in enumerate(captions):
        for column, word in enumerate(words(caption)[:LENGTH]):
            out[row, column] = word_vector(word, width)
    return out
