"""Who meets whom on which image: all pairs, or, of very many runs, as many as a table can hold, by a fair chance."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from mmdit_jax.errors import UserError

K = TypeVar("K", bound=Hashable)
MOST = 200_000
"""Battles a judge, by default: 36 runs on 240 images all meet, of more each meets some of the others on each image."""


def meetings(shown: Mapping[K, Sequence[str]], most: int = MOST) -> dict[tuple[str, str], list[K]]:
    """The images on which each pair of runs meets; pairs in order of names, images in the order of ``shown``.

    All pairs on every image where these are ``most`` battles or fewer. Otherwise the runs of each image stand in a
    ring, in an order that chance draws anew for each image, and each meets its next neighbours on either side, as
    many as ``most`` allows, one at least. So on each image all runs hang together and fight equally often, and over
    images all pairs come up alike. The order follows from names and images: another run comes in between, and changes
    no other's place.

    Args:
        shown: by image, the names of the runs that drew it.
        most: battles; more only where a ring on each image is more.

    Raises:
        UserError: ``most`` is below 1.
    """
    if most < 1:
        raise UserError(f"most={most}: expected 1 or more")
    reach = _reach([len(names) for names in shown.values()], most)
    found: dict[tuple[str, str], list[K]] = {}
    for image, names in shown.items():
        for pair in _pairs(image, names, reach):
            found.setdefault(pair, []).append(image)
    return dict(sorted(found.items()))


def every_pair(shown: Mapping[K, Sequence[str]]) -> int:
    """How many battles it would be if all met."""
    return sum(len(names) * (len(names) - 1) // 2 for names in shown.values())


def _reach(sizes: Sequence[int], most: int) -> int:
    """How many neighbours on one side; the largest that ``most`` allows, 1 or more."""

    def battles(reach: int) -> int:
        return sum(min(size * reach, size * (size - 1) // 2) for size in sizes)

    low, high = 1, max(max(sizes, default=0) // 2, 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if battles(middle) <= most else (low, middle - 1)
    return low


def _pairs(image: Hashable, names: Sequence[str], reach: int) -> Sequence[tuple[str, str]]:
    """Pairs of ``names`` that meet, each in order, once."""
    size = len(names)
    if 2 * reach >= size - 1:
        return list(itertools.combinations(sorted(names), 2))
    ring = sorted(names, key=lambda name: _chance(image, name))
    steps = ((ring[i], ring[(i + step) % size]) for step in range(1, reach + 1) for i in range(size))
    return [(one, two) if one < two else (two, one) for one, two in steps]


def _chance(image: Hashable, name: str) -> bytes:
    return hashlib.blake2b(f"{image!r}\n{name}".encode(errors="backslashreplace"), digest_size=8).digest()
