"""A long table of scores -> a full array by two labels, seed and prompt draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.errors import TableError
from scaling.tables import numbers, require

SHOWN = 3
"""So many missing or repeated cells are named in a complaint; the rest are counted."""


@dataclass(frozen=True)
class Cells:
    """Every score of every cell: ``values[column]`` is float64 ``[rows, columns, seeds, 1 + draws]``.

    ``rows`` and ``columns`` are labels in order of appearance, ``seeds`` those of the trainings. The last axis is the
    score over all prompts, then over each bootstrap resample of the prompts.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    seeds: tuple[str, ...]
    draws: int
    values: dict[str, np.ndarray]

    @property
    def resampled(self) -> str:
        """What the table lets a bootstrap resample: ``prompts and seeds``, ``prompts``, ``seeds`` or ``none``."""
        parts = ["prompts"] * (self.draws > 0) + ["seeds"] * (len(self.seeds) > 1)
        return " and ".join(parts) or "none"

    def mean(self, column: str) -> np.ndarray:
        """The score over all prompts, averaged over seeds: ``[rows, columns]``."""
        return self.values[column][..., 0].mean(axis=-1)


def read_cells(
    table: pd.DataFrame, axes: tuple[str, str], values: Sequence[str], *, repeated: str, missing: str = ""
) -> Cells:
    """Fold a table with one row per (axes[0], axes[1][, seed][, draw]) into Cells.

    ``repeated`` is the advice given where two rows share a cell, ``missing`` where a cell has none.

    Raises TableError for an absent column, a cell that is missing or repeated (the first few are named), a score that
    is no finite number, or draws without draw 0.
    """
    require(table, [*axes, *values])
    keys = [*axes, *(name for name in ("seed", "draw") if name in table.columns)]
    coded = {key: codes(table, key) for key in keys}
    if "draw" in coded:
        coded["draw"] = _draws(table)
    scores = {value: numbers(table, value) for value in values}
    flat = np.zeros(len(table), dtype=np.int64)
    for key in keys:
        flat = flat * len(coded[key][1]) + coded[key][0]
    shape = tuple(len(coded[key][1]) for key in keys)
    seen = np.bincount(flat, minlength=int(np.prod(shape)))

    def named(cells: np.ndarray, told: list[str]) -> str:
        places = np.stack(np.unravel_index(cells, shape), axis=1)
        texts = dict.fromkeys(
            " ".join(f"{key}={coded[key][1][place[keys.index(key)]]}" for key in told) for place in places
        )
        more = f", and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        return "; ".join(list(texts)[:SHOWN]) + more

    if (seen > 1).any():
        twice = np.flatnonzero(seen > 1)
        same = table[flat == twice[0]]
        apart = [column for column in table.columns if column not in values and same[column].nunique() > 1]
        told = f"{len(same)} for {named(twice, [key for key in keys if key != 'draw'])}"
        differ = f" (they differ in {', '.join(apart)})" if apart else " (the same row again)"
        raise TableError(f"rows={len(table)}: {told}{differ}; {repeated}")
    if (seen == 0).any():
        empty = np.flatnonzero(seen == 0)
        # A cell that lacks all of its draws is one thing that is missing, not some hundreds.
        whole = "draw" in keys and (seen.reshape(-1, shape[-1]).sum(axis=1)[empty // shape[-1]] == 0).all()
        shown = [key for key in keys if key != "draw"] if whole else keys
        raise TableError(
            f"rows={len(table)}: none for {named(empty, shown)}; expected one for every "
            f"{', '.join(keys[:-1])} and {keys[-1]}{missing}"
        )
    full = (*shape[:2], shape[2] if "seed" in keys else 1, shape[-1] if "draw" in keys else 1)
    arrays = {}
    for value, column in scores.items():
        array = np.empty(len(seen))
        array[flat] = column
        arrays[value] = array.reshape(full)
    rows, columns = (tuple(coded[axis][1]) for axis in axes)
    seeds = tuple(coded["seed"][1]) if "seed" in keys else ("",)
    return Cells(rows, columns, seeds, full[-1] - 1, arrays)


def codes(table: pd.DataFrame, name: str) -> tuple[np.ndarray, list[str]]:
    """A column as (index ``[rows]``, labels in order of appearance); whole numbers are written without a point.

    Raises TableError naming the first blank row.
    """
    require(table, [name])
    index, unique = pd.factorize(table[name])
    if (index < 0).any():
        raise TableError(f"{name}=blank (row {int(np.argmax(index < 0)) + 1}): expected a name")
    texts = [f"{value:g}" if isinstance(value, (float, np.floating)) else str(value) for value in unique]
    again, labels = pd.factorize(np.array(texts, dtype=object))
    return again[index], [str(label) for label in labels]


def constant(table: pd.DataFrame, of: str, index: np.ndarray, name: str) -> np.ndarray:
    """The one value of ``name`` in each group: index ``[rows]`` from 0 -> text ``[groups]`` (object).

    Raises TableError for a group (a value of the column ``of``) that has several.
    """
    code, labels = codes(table, name)
    first = np.unique(index, return_index=True)[1]
    other = code != code[first][index]
    if other.any():
        row = int(np.argmax(other))
        raise TableError(
            f"{of}={str(table[of].iloc[row])!r}: {name} is {labels[code[first][index][row]]} in one row and "
            f"{labels[code[row]]} in another; expected one {name} for each {of}"
        )
    return np.array([labels[place] for place in code[first]], dtype=object)


def _draws(table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    found = numbers(table, "draw")
    wrong = (found < 0) | (found != np.round(found))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise TableError(
            f"draw={found[row]:g} (row {row + 1}): expected 0 (all prompts) or 1, 2, … (resamples of them)"
        )
    index = found.astype(np.int64)
    unique, code = np.unique(index, return_inverse=True)
    if unique[0] != 0:
        raise TableError(f"draw={unique[0]} is the lowest: expected rows with draw=0, the scores over all prompts")
    if len(unique) == 2:
        raise TableError(f"draw={unique[1]} is the only resample: expected 2 or more (some hundreds are good), or none")
    return code.reshape(-1), [str(value) for value in unique]
