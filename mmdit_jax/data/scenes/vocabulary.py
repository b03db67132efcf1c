"""The words of a scene: shapes, colours, backgrounds, numbers and relations, and how they form a phrase."""

from __future__ import annotations

from typing import Final

from mmdit_jax.data.scenes.geometry import SHAPES

COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.86, 0.10, 0.10),
    "green": (0.10, 0.62, 0.15),
    "blue": (0.10, 0.22, 0.88),
    "yellow": (0.96, 0.88, 0.08),
    "orange": (0.98, 0.50, 0.04),
    "purple": (0.52, 0.12, 0.68),
    "cyan": (0.08, 0.80, 0.86),
    "pink": (0.98, 0.45, 0.72),
}
"""RGB in [0, 1]."""

BACKGROUNDS: Final[dict[str, float]] = {"black": 0.04, "dark gray": 0.27, "light gray": 0.78, "white": 0.97}
"""Gray level in [0, 1]."""

RELATIONS: Final[dict[str, tuple[int, int]]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
"""Direction from the second object to the first, y down: GenEval's four relations in GenEval's words."""

MAX_OBJECTS: Final = 4
NUMBERS: Final = ("zero", "one", "two", "three", "four")

__all__ = ["BACKGROUNDS", "COLOURS", "MAX_OBJECTS", "NUMBERS", "RELATIONS", "SHAPES", "phrase"]


def phrase(shape: str, count: int = 1, colour: str | None = None) -> str:
    """``a red circle``, ``an orange star``, ``three crosses``: two or three words."""
    words = f"{colour} {shape}" if colour else shape
    if count == 1:
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    return f"{NUMBERS[count]} {words}{'es' if shape.endswith('s') else 's'}"
