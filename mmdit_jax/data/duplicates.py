"""Exact and near duplicates among images: fingerprints of each, and groups found without comparing all pairs.

Two images are exact duplicates if their decoded pixels are the same, whatever file they came in. They are near
duplicates if their perceptual hashes (64 signs of low frequencies of the brightness) differ in at most k bits and their
colours on a 4 by 4 grid differ little: the hash finds candidates, the colours tell a red heart from a blue one.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmdit_jax.errors import UserError

MOST = 11
"""The largest distance that can be asked for."""
DISTANCE = 6
"""Default for bits of 64 that may differ; docs/data.md has what each number finds, and wrongly finds."""
COLOUR = 16.0
"""Levels of 255 that the grids of mean colours may differ, root mean square, after the brightness is made equal."""
GRID = 4
_SIDE, _KEPT = 32, 8
_BANDS = 4
_BLOCK = 1 << 20
"""Pairs that are compared at once."""


class Fingerprint(NamedTuple):
    """What is kept of an image."""

    pixels: tuple[int, int]
    """Hash of the decoded pixels and their shape, 2 × 64 bits."""
    perceptual: int
    """64 bits."""
    colours: np.ndarray
    """Mean colours on the grid, uint8 [GRID, GRID, 3]."""


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Of an image, uint8 [H, W, 3]."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    low, high = (int.from_bytes(part, "little") for part in (digest.digest()[:8], digest.digest()[8:]))
    picture = Image.fromarray(image)
    colours = np.asarray(picture.resize((GRID, GRID), Image.Resampling.BOX))
    return Fingerprint((low, high), perceptual_hash(picture), colours)


def perceptual_hash(picture: Image.Image) -> int:
    """64 bits: signs of the 8 × 8 lowest frequencies of the brightness at 32 × 32, about their median (Zauner 2010)."""
    grey = np.asarray(picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    cosines = _cosines()
    frequencies = (cosines @ grey @ cosines.T).reshape(-1)
    bits = frequencies > np.median(frequencies[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@functools.cache
def _cosines() -> np.ndarray:
    """The DCT-II's lowest rows, [_KEPT, _SIDE]."""
    return np.cos(np.pi * np.arange(_KEPT)[:, None] * (2 * np.arange(_SIDE) + 1) / (2 * _SIDE))


def check_distance(distance: int) -> None:
    """Refuse a distance that ``near_pairs`` does not take."""
    if not 0 <= distance <= MOST:
        raise UserError(f"distance={distance}: expected 0 to {MOST} bits of 64")


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bits that differ, elementwise on uint64."""
    return np.bitwise_count(a ^ b)


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """All pairs i < j of hashes that differ in at most ``distance`` bits, int64 [P, 2], sorted.

    The 64 bits are cut into four bands: two hashes that differ in at most d bits differ in at most ⌊d/4⌋ in one of
    them (pigeonhole; Norouzi et al. 2012). So each hash is compared only with those whose band is one of the 1, 17 or
    137 values that near to its own: of 12 million hashes, a 2,000th of all pairs at d ≤ 7.

    Args:
        hashes: uint64 [N].
        distance: 0 to 11.

    Raises:
        UserError: another distance.
    """
    check_distance(distance)
    width = 64 // _BANDS
    found = [np.zeros((0, 2), np.int64)]
    for number in range(_BANDS):
        band = (hashes >> np.uint64(number * width)) & np.uint64((1 << width) - 1)
        order = np.argsort(band, kind="stable")
        for flips in range(distance // _BANDS + 1):
            for bits in itertools.combinations(range(width), flips):
                mask = np.uint64(sum(1 << bit for bit in bits))
                for pairs in _matches(band, band[order] ^ mask, order):
                    close = hamming(hashes[pairs[:, 0]], hashes[pairs[:, 1]]) <= distance
                    found.append(pairs[close])
    return np.unique(np.concatenate(found), axis=0)


def _matches(band: np.ndarray, wanted: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs i < j, int64 [_, 2], of items whose ``band`` is ``wanted`` by another; in pieces of bounded size."""
    ordered = band[order]
    start = np.searchsorted(ordered, wanted, "left")
    count = np.searchsorted(ordered, wanted, "right") - start
    ends = np.cumsum(count)
    row = 0
    while row < len(order):
        stop = max(row + 1, int(np.searchsorted(ends, (ends[row - 1] if row else 0) + _BLOCK, "right")))
        here = count[row:stop]
        within = np.arange(here.sum()) - np.repeat(np.cumsum(here) - here, here)
        left = np.repeat(order[row:stop], here)
        right = order[np.repeat(start[row:stop], here) + within]
        yield np.stack([left, right], axis=1)[left < right]
        row = stop


def colour_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """RMS difference of two grids of colours in levels, each scaled to the same mean brightness first: float64 [N].

    Args:
        a, b: uint8 [N, GRID, GRID, 3].
    """
    a, b = (x.reshape(len(x), -1, 3).astype(np.float64) for x in (a, b))
    means = [np.maximum(x.mean(axis=(1, 2), keepdims=True), 1.0) for x in (a, b)]
    common = np.sqrt(means[0] * means[1])
    difference = a * (common / means[0]) - b * (common / means[1])
    return np.sqrt((difference**2).mean(axis=(1, 2)))


def near_duplicates(
    hashes: np.ndarray, colours: np.ndarray, distance: int = DISTANCE, colour: float = COLOUR
) -> np.ndarray:
    """Pairs i < j of near duplicates, int64 [P, 2], sorted.

    Args:
        hashes: perceptual hashes, uint64 [N].
        colours: grids of colours, uint8 [N, GRID, GRID, 3].
        distance: bits that may differ.
        colour: levels that colours may differ, root mean square; 255 leaves colour out.
    """
    pairs = near_pairs(hashes, distance)
    return pairs[same_colours(pairs, colours, colour)]


def same_colours(pairs: np.ndarray, colours: np.ndarray, colour: float = COLOUR) -> np.ndarray:
    """Which pairs' colours differ by no more than ``colour``, bool [P]; arguments as of ``near_duplicates``."""
    keep = [np.zeros(0, bool)]
    for start in range(0, len(pairs), _BLOCK):
        left, right = pairs[start : start + _BLOCK].T
        keep.append(colour_difference(colours[left], colours[right]) <= colour)
    return np.concatenate(keep)


def exact_pairs(pixels: np.ndarray) -> np.ndarray:
    """Pairs (first, other) of images with the same pixels, int64 [P, 2]: each other one beside the first of its kind.

    Args:
        pixels: hashes, uint64 [N, 2].
    """
    _, first, which = np.unique(pixels, axis=0, return_index=True, return_inverse=True)
    firsts = first[which.reshape(-1)]
    others = np.flatnonzero(firsts != np.arange(len(pixels)))
    return np.stack([firsts[others], others], axis=1)


def groups(count: int, pairs: np.ndarray) -> np.ndarray:
    """The smallest member of the group each item belongs to, int64 [count]: groups are what pairs connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), bool)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    return first[label].astype(np.int64)
