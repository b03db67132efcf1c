"""Which laws there are: what of, and what their parameters are called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Which law: the names of its abscissae, of each one's scale and exponent, and of its floor."""

    name: str
    abscissae: tuple[str, ...]
    scales: tuple[str, ...]
    exponents: tuple[str, ...]
    floor: str
    equation: str


POWER = Kind("power", ("C",), ("a",), ("b",), "floor", "floor + a·C^(−b)")
PARAMETERS = Kind("parameters", ("N",), ("A",), ("alpha",), "E", "E + A·N^(−alpha)")
DATA = Kind("data", ("D",), ("B",), ("beta",), "E", "E + B·D^(−beta)")
JOINT = Kind("joint", ("N", "D"), ("A", "B"), ("alpha", "beta"), "E", "E + A·N^(−alpha) + B·D^(−beta)")
KINDS = {kind.name: kind for kind in (POWER, PARAMETERS, DATA, JOINT)}
