"""The names of formulations, as the SD3 paper writes them: their grammar, and how numbers go in and out of them.

A name is a form and, after it, any of two modifiers: ``rf/lognorm(0.00,1.00)/shift(3.00)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmdit_jax.diffusion.densities import KINDS, MAX_BINS, MODE_MAX, MODE_MIN
from mmdit_jax.diffusion.paths import EDM_SCHEDULES


@dataclass(frozen=True)
class Number:
    """One number of a name: which slot of the Formulation it fills, and the values it may take."""

    label: str
    slot: str  # "m", "s", "shift", "snr_cap", or "masses"
    low: float = -np.inf
    high: float = np.inf
    open_low: bool = False  # whether ``low`` itself is excluded

    def holds(self, value: float) -> bool:
        """Whether ``value`` is finite and in range."""
        above = value > self.low if self.open_low else value >= self.low
        return bool(np.isfinite(value)) and above and value <= self.high

    def valid(self) -> str:
        """The valid values in words, for an error message."""
        if self.open_low:
            return f"{self.label} > {self.low:g} and finite"
        if np.isfinite(self.high):
            return f"{self.low:g} <= {self.label} <= {self.high:.4f}".removesuffix("0000").removesuffix(".")
        return f"{self.label} >= {self.low:g} and finite" if np.isfinite(self.low) else f"{self.label} finite"


@dataclass(frozen=True)
class Form:
    """One row of the list: a stem, numbers in parentheses if any, and what they stand for."""

    stem: str
    path: str
    prediction: str
    kind: int = 0  # index of the density (rf) or of the schedule of σ (edm)
    numbers: tuple[Number, ...] = ()
    most: int = 0  # how many numbers it may have where one Number stands for all of a list; 0: one each

    def counts(self, count: int) -> bool:
        """Whether it takes ``count`` numbers."""
        return 1 <= count <= self.most if self.most else count == len(self.numbers)

    def paired(self, values: Sequence[float | None]) -> list[tuple[Number, float | None]]:
        """Each value with the Number that it fills."""
        return [(self.numbers[0 if self.most else i], value) for i, value in enumerate(values)]

    def usage(self) -> str:
        """How it is written, with the numbers' labels."""
        labels = [number.label for number in self.numbers]
        return f"{self.stem}({','.join([*labels, '…'] if self.most else labels)})" if labels else self.stem

    def write(self, values: Sequence[float]) -> str:
        """The canonical name: at least two decimals, more where float32 needs them."""
        return f"{self.stem}({','.join(map(decimal, values))})" if self.numbers else self.stem


@dataclass(frozen=True)
class Modifier:
    """What may follow a form: its word, its number, and the value of that number which changes nothing."""

    word: str
    number: Number
    neutral: float

    def write(self, value: float) -> str:
        """``/word(value)``, or nothing where the value changes nothing."""
        return "" if np.float32(value) == np.float32(self.neutral) else f"/{self.word}({decimal(value)})"


def decimal(value: float) -> str:
    """Shortest decimal that float32 reads back as ``value``, with two decimals at least; never ``-0.00``."""
    return np.format_float_positional(np.float32(value) + np.float32(0), unique=True, min_digits=2)


SHIFT_MIN, SHIFT_MAX = 0.01, 100.0  # beyond, uniform times pile up where they are cut, 1e-5 from an end
_SCALE = Number("s", "s", low=0.0, open_low=True)
FORMS: tuple[Form, ...] = (
    Form("rf", "rf", "velocity", KINDS.index("uniform")),
    Form("rf/lognorm", "rf", "velocity", KINDS.index("lognorm"), (Number("m", "m"), _SCALE)),
    Form("rf/mode", "rf", "velocity", KINDS.index("mode"), (Number("s", "s", MODE_MIN, MODE_MAX),)),
    Form("rf/cosmap", "rf", "velocity", KINDS.index("cosmap")),
    Form("rf/histogram", "rf", "velocity", KINDS.index("histogram"), (Number("mass", "masses", 0.0, 1e6),), MAX_BINS),
    Form("rf/adaptive", "rf", "velocity", KINDS.index("adaptive"), (Number("p", "s", -4.0, 4.0),)),
    Form("edm", "edm", "F", EDM_SCHEDULES.index("normal"), (Number("Pm", "m"), Number("Ps", "s", 0.0, open_low=True))),
    Form("edm/rf", "edm", "F", EDM_SCHEDULES.index("rf")),
    Form("edm/cos", "edm", "F", EDM_SCHEDULES.index("cos")),
    Form("eps/linear", "linear", "eps"),
    Form("v/linear", "linear", "v"),
    Form("eps/cos", "cos", "eps"),
    Form("v/cos", "cos", "v"),
)
MODIFIERS: tuple[Modifier, ...] = (
    Modifier("shift", Number("alpha", "shift", SHIFT_MIN, SHIFT_MAX), 1.0),
    Modifier("minsnr", Number("gamma", "snr_cap", 0.0, open_low=True), 0.0),
)
EXAMPLES: dict[str, tuple[float, ...]] = {
    "rf/lognorm": (0.0, 1.0),
    "rf/mode": (1.29,),
    "rf/histogram": (1.0, 2.0, 1.0),
    "rf/adaptive": (-1.0,),
    "edm": (-1.2, 1.2),
    "shift": (3.0,),
    "minsnr": (5.0,),
}


def find(path: str, prediction: str, kind: int) -> Form:
    """The form of a formulation's parts; there is exactly one."""
    (form,) = (form for form in FORMS if (form.path, form.prediction, form.kind) == (path, prediction, kind))
    return form
