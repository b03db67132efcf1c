"""Many correlations of one table: which columns, which rows share what, what is held fixed, p for all at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from scaling.bins import Bins, compare_bins
from scaling.coefficients import KINDS, Control
from scaling.correlation import PERMUTATIONS, Correlation, correlate
from scaling.dependence import Groups
from scaling.errors import TableError
from scaling.groups import holm
from scaling.permutation import orders
from scaling.plain import plain
from scaling.resample import group_index
from scaling.tables import labels, numbers, require

DECADE = 10.0
"""A held column whose largest value is more than so many times its smallest, all above 0, goes in by its logarithm."""
_POWERS = ("square", "cube")
LOGARITHM = re.compile(r"log\((.+)\)")
"""A held column that goes in by its logarithm whatever it spans."""


@dataclass(frozen=True)
class Question:
    """What is asked of a table.

    ``groups``: factors of rows that depend on each other, each of one or more columns; ``given``: columns held fixed,
    or ``log(COL)``, as powers up to ``degree``; ``within``: columns in whose combinations rows are compared; ``bins``:
    each ``x_k`` beside x.
    """

    x: tuple[str, ...]
    y: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...] = ()
    given: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    degree: int = 1
    bins: bool = False
    level: float = 0.95
    seed: int = 0

    @property
    def holds(self) -> bool:
        """Whether anything is held fixed."""
        return bool(self.given or self.within)


@dataclass(frozen=True)
class Pair:
    """Two columns: their ``correlation``; ``partial`` with ``held`` (in words) fixed; bins of x.

    ``left_out`` rows had a blank. ``adjusted``: Holm's p by coefficient, those of ``partial`` after ``given ``; empty
    where nothing else was asked.
    """

    x: str
    y: str
    correlation: Correlation
    left_out: int
    partial: Correlation | None = None
    held: str = ""
    left_of_x: float = 1.0
    bins: Bins | None = None
    adjusted: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""
        out = {"x": self.x, "y": self.y, **self._told(self.correlation, ""), "left_out": self.left_out}
        if self.partial is not None:
            told = self._told(self.partial, "given ")
            coefficients: dict[str, object] = {kind: told[kind] for kind in KINDS}
            out["partial"] = {"held": self.held, "left_of_x": self.left_of_x, **coefficients}
        if self.bins is not None:
            out["bins"] = self.bins.to_json()
        return out

    def _told(self, found: Correlation, prefix: str) -> dict[str, object]:
        told = found.to_json()
        for kind in KINDS if self.adjusted else ():
            adjusted = plain({"p_holm": self.adjusted.get(prefix + kind, float("nan"))})
            told[kind] = {**found.of(kind).to_json(), **adjusted}
        return told


def expand(table: pd.DataFrame, words: Iterable[str]) -> tuple[str, ...]:
    """Column names from names and patterns (``geneval_*``), in the order asked, each once.

    Raises TableError for a name that is no column, or a pattern that is like none.
    """
    out: list[str] = []
    for word in words:
        if is_pattern(word):
            found = [str(column) for column in table.columns if fnmatchcase(str(column), word)]
            found = [name for name in found if pd.api.types.is_numeric_dtype(table[name])]
            if not found:
                raise TableError(f"column={word!r}: like no column of numbers (columns: {', '.join(table.columns)})")
            out += found
        else:
            require(table, [word])
            out.append(word)
    return tuple(dict.fromkeys(out))


def is_pattern(word: str) -> bool:
    """Whether a word stands for all columns that are like it."""
    return any(letter in word for letter in "*?[")


def ask(table: pd.DataFrame, question: Question) -> tuple[list[Pair], dict[tuple[str, str], str]]:
    """Every x with every y: what was found, and by pair why there is nothing.

    Rows with a blank in a column of the pair, or of what is held fixed, are left out. Holm's p (Holm 1979) is over all
    pairs, for each coefficient by itself, since they say the same thing in three ways; a coefficient that has no p
    counts among them.
    """
    pairs: list[Pair] = []
    why: dict[tuple[str, str], str] = {}
    known: dict[bytes, np.ndarray] = {}
    for x in question.x:
        for y in question.y:
            if x == y:
                continue
            try:
                pairs.append(_pair(table, x, y, question, known))
            except TableError as error:
                why[x, y] = str(error)
    return (_adjusted(pairs) if len(pairs) > 1 else pairs), why


def _pair(table: pd.DataFrame, x: str, y: str, question: Question, known: dict[bytes, np.ndarray]) -> Pair:
    names = [x, y, *map(column_of, question.given)]
    for name in (x, y):
        if name in (*names[2:], *question.within):
            raise TableError(f"{name}: is held fixed; expected another column than the two that are correlated")
    bins: list[str] = []
    if question.bins:
        bins = [str(c) for c in table.columns if str(c).startswith(f"{x}_") and str(c)[len(x) + 1 :].isdigit()]
        bins.sort(key=lambda name: int(name[len(x) + 1 :]))
        if not bins:
            raise TableError(f"bins: the table has no {x}_0, {x}_1, …; expected a column a bin beside {x}")
    every = {name: numbers(table, name, allow_missing=True) for name in [*names, *bins]}
    whole = np.all([np.isfinite(column) for column in every.values()], axis=0)
    rows = table[whole].reset_index(drop=True)
    columns = {name: column[whole] for name, column in every.items()}
    if len(rows) < 3:
        emptiest = min(columns, key=lambda name: int(np.isfinite(every[name]).sum()))
        there = int(np.isfinite(every[emptiest]).sum())
        raise TableError(
            f"rows={len(rows)}: too few without a blank in {', '.join(columns)}; expected 3 or more "
            f"({emptiest} has {there} of {len(table)})"
        )
    for name in (x, y):
        if np.ptp(columns[name]) == 0:
            raise TableError(f"{name}={columns[name][0]:g} in every row: expected a column that changes")
    groups = Groups.of(len(rows), {" and ".join(factor): joined(rows, factor) for factor in question.groups})
    order = None
    if groups.equal():
        key = whole.tobytes()
        if key not in known:
            known[key] = orders(groups, PERMUTATIONS, question.seed)
        order = known[key]
    a, b = columns[x], columns[y]
    level, seed = question.level, question.seed
    found = correlate(a, b, groups=groups, level=level, seed=seed, order=order)
    partial, held, control, left = None, "", None, 1.0
    if question.holds:
        control, held = hold(rows, columns, question)
        partial = correlate(a, b, groups=groups, control=control, level=level, seed=seed)
        left = left_over(a, control)
    best = None
    if bins:
        stack = np.stack([columns[name] for name in bins], axis=1)
        best = compare_bins(a, stack, b, names=bins, groups=groups, control=control, level=level, seed=seed)
    return Pair(x, y, found, int((~whole).sum()), partial, held, left, best)


def joined(rows: pd.DataFrame, columns: Iterable[str]) -> np.ndarray:
    """Labels ``[rows]`` of the combinations of several columns. Raises TableError for a blank."""
    parts = [labels(rows, column) for column in columns]
    return np.array([" ".join(cells) for cells in zip(*parts, strict=True)], dtype=object)


def hold(rows: pd.DataFrame, columns: dict[str, np.ndarray], question: Question) -> tuple[Control, str]:
    """What is held fixed, as numbers and in words. Columns that span more than a DECADE go in by their logarithm.

    Raises TableError for a column that never changes.
    """
    held, words = [], []
    for asked in question.given:
        name = column_of(asked)
        column = columns[name]
        if np.ptp(column) == 0:
            raise TableError(f"given={name!r}: {column[0]:g} in every row; expected a column that changes")
        positive = column.min() > 0
        if name != asked and not positive:
            raise TableError(f"given={asked!r}: the column holds {column.min():g}; expected numbers above 0")
        logarithm = name != asked or (positive and column.max() > DECADE * column.min())
        held.append(np.log(column) if logarithm else column)
        words.append(
            (f"log {name}" if logarithm else name) + "".join(f" + its {n}" for n in _POWERS[: question.degree - 1])
        )
    strata = None
    told = [f"given {', '.join(words)}"] if words else []
    if question.within:
        strata, _ = group_index(joined(rows, question.within))
        told.append(f"within {' and '.join(question.within)}")
    matrix = np.stack(held, axis=1) if held else np.zeros((len(rows), 0))
    return Control(matrix, question.degree, strata), ", ".join(told)


def column_of(asked: str) -> str:
    """``COL`` of ``log(COL)``, or of itself."""
    found = LOGARITHM.fullmatch(asked)
    return found[1] if found else asked


def left_over(x: np.ndarray, control: Control) -> float:
    """The share of the variance of ``x [rows]`` that what is held fixed leaves: of little of it little can be told."""
    design = np.concatenate([np.ones((len(x), 1)), control.design()], axis=1)
    residual = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    return float((residual**2).sum() / ((x - x.mean()) ** 2).sum())


def percent(share: float) -> str:
    """Two digits of it: "100 %", "3.2 %", "0.0014 %"."""
    return f"{float(f'{100 * share:.2g}'):g} %"


def _adjusted(pairs: list[Pair]) -> list[Pair]:
    p: dict[str, dict[str, float]] = {}
    for place, pair in enumerate(pairs):
        for prefix, found in (("", pair.correlation), ("given ", pair.partial)):
            if found is None:
                continue
            for kind in KINDS:
                if math.isfinite(found.of(kind).r):
                    p.setdefault(prefix + kind, {})[str(place)] = found.of(kind).p
    adjusted = {name: holm(of) for name, of in p.items()}
    return [
        replace(pair, adjusted={name: of[str(place)] for name, of in adjusted.items() if str(place) in of})
        for place, pair in enumerate(pairs)
    ]
