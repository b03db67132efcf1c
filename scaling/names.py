"""Formulation names in figures: short enough to stand at a point, and grouped into the paper's families."""

from __future__ import annotations

import re
from collections.abc import Sequence

from scaling.reference import bare

_NUMBER = re.compile(r"-?\d+\.\d+")
MOST_FAMILIES = 8


def short(name: str) -> str:
    """As the paper writes it where space is dear: ``rf/lognorm(0.00,1.00)`` is ``lognorm(0,1)``."""
    text = bare(name)
    text = text.removeprefix("rf/") if text.startswith("rf/") else text
    text = _NUMBER.sub(lambda found: f"{float(found.group()):g}", text)
    return name[: len(name) - len(bare(name))] + text.replace("-", "−")


def families(names: Sequence[str]) -> list[str]:
    """The family of each name: what stands before its numbers, ``eps``, ``v`` and ``edm`` in one family each.

    Names that make more than MOST_FAMILIES are not formulations: they are one family, ``""``.
    """
    found = []
    for name in names:
        stem = bare(name).split("(")[0]
        first = stem.split("/")[0]
        found.append(first if first in ("eps", "v", "edm") else stem)
    return found if len(set(found)) <= MOST_FAMILIES else [""] * len(found)
