"""Reading tables: a path or a data frame in, clean columns out, every complaint one line."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from scaling.errors import TableError

NAMES = ("name", "run", "run_id", "left", "right", "prompt", "question", "judge", "voter", "ticket", "training")
"""Columns that are read as text even where all cells look like numbers: 0010000 and 10000 are two runs."""


def read_table(path: str | Path, *, text: Iterable[str] = ()) -> pd.DataFrame:
    """Read a CSV (any suffix) or Parquet (``.parquet``, ``.pq``) file; blank cells become NaN, nothing else does.

    Of a CSV, NAMES and the columns ``text`` are text as it stands, and of others those that are not all numbers. A
    Parquet file has types of its own.

    Raises TableError where the file is missing, unreadable, or holds no rows.
    """
    path = Path(path)
    if not path.exists():
        raise TableError(f"table={str(path)!r}: no such file; expected a CSV or Parquet file")
    if path.is_dir():
        raise TableError(f"table={str(path)!r}: is a folder; expected a CSV or Parquet file in it")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(path)
        else:
            # pandas passes over columns that are not there; a header may have a blank after a name.
            kinds = {f"{name}{blank}": str for name in (*NAMES, *text) for blank in ("", " ")}
            table = pd.read_csv(path, keep_default_na=False, na_values=[""], skipinitialspace=True, dtype=kinds)
    except pd.errors.EmptyDataError:
        raise TableError(f"table={str(path)!r}: empty file; expected a header line and rows") from None
    except (OSError, ValueError) as error:  # ParserError, UnicodeDecodeError and pyarrow's errors are ValueErrors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TableError(f"table={str(path)!r}: not a readable CSV or Parquet file ({reason})") from None
    table.columns = [str(column).strip() for column in table.columns]
    if table.empty:
        raise TableError(f"table={str(path)!r}: no rows; expected at least one below the header")
    return table


def require(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise TableError for the first of ``names`` that is not a column, with the nearest one that is."""
    for name in names:
        if name not in table.columns:
            columns = [str(column) for column in table.columns]
            close = difflib.get_close_matches(name.lower(), [column.lower() for column in columns], n=1, cutoff=0.0)
            nearest = next((column for column in columns if close and column.lower() == close[0]), "")
            listed = ", ".join(columns[:12]) + (", …" if len(columns) > 12 else "")
            raise TableError(f"column={name!r}: not in the table; did you mean {nearest!r}? (columns: {listed})")


def numbers(table: pd.DataFrame, name: str, *, positive: bool = False, allow_missing: bool = False) -> np.ndarray:
    """A column as float64 ``[rows]``; finite, and above zero where ``positive``.

    Rows are counted from 1, the header left out. Raises TableError naming the first row that will not do;
    with ``allow_missing`` blank cells become NaN instead.
    """
    require(table, [name])
    raw = table[name]
    values = np.array(pd.to_numeric(raw, errors="coerce"), dtype=np.float64)
    bad = ~np.isfinite(values)
    if allow_missing:
        bad &= ~raw.isna().to_numpy()
    if positive:
        bad |= values <= 0
    if bad.any():
        row = int(np.argmax(bad))
        expected = "a finite number above 0" if positive else "a finite number"
        cell = "blank" if pd.isna(raw.iloc[row]) else repr(str(raw.iloc[row]))
        more = f", and {int(bad.sum()) - 1} more" if bad.sum() > 1 else ""
        raise TableError(f"{name}={cell} (row {row + 1}{more}): expected {expected}")
    return values


_CONDITION = re.compile(r"(.+?)(!=|>=|<=|=|>|<)(.*)", re.DOTALL)
_ORDERS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def where(table: pd.DataFrame, conditions: Iterable[str]) -> pd.DataFrame:
    """The rows that meet every condition; rows are numbered anew from 1.

    ``COLUMN=VALUE`` and ``COLUMN!=VALUE`` compare as text or as numbers, ``COLUMN>=NUMBER`` (<=, >, <) as numbers.

    Raises TableError for a condition that is none of these, an unknown column, or no row left.
    """
    for condition in conditions:
        found = _CONDITION.fullmatch(condition)
        if found is None:
            raise TableError(f"where={condition!r}: expected COLUMN=VALUE (or !=, >=, <=, >, <)")
        name, sign, value = found.groups()
        require(table, [name])
        if sign in _ORDERS:
            try:
                bound = float(value)
            except ValueError:
                raise TableError(f"where={condition!r}: {value!r} is no number; expected COLUMN{sign}NUMBER") from None
            met = pd.Series(_ORDERS[sign](pd.to_numeric(table[name], errors="coerce"), bound), index=table.index)
        else:
            met = table[name].astype(str) == value
            if pd.api.types.is_numeric_dtype(table[name]) and not pd.api.types.is_bool_dtype(table[name]):
                met |= table[name] == pd.to_numeric(value, errors="coerce")  # 5 is 5.0
            met = ~met if sign == "!=" else met
        kept = table[met]
        if kept.empty:
            seen = ", ".join(repr(str(other)) for other in table[name].unique()[:6])
            raise TableError(f"where={condition!r}: no such row; the column holds {seen}")
        table = kept
    return table.reset_index(drop=True)


def labels(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as text ``[rows]`` (object array of str). Raises TableError naming the first blank row."""
    require(table, [name])
    missing = table[name].isna().to_numpy()
    if missing.any():
        raise TableError(f"{name}=blank (row {int(np.argmax(missing)) + 1}): expected a name")
    return np.array([str(value) for value in table[name]], dtype=object)
