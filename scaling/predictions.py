"""Losses that were foretold: a file of lines that is only ever added to, and what came of them.

Each line ends with the digest of what it says, and holds that of the line before it, so that one that is changed, taken
out or put in later is seen. The first such files have lines without a digest of their own, the last of which can be
changed unseen until another follows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.errors import TableError
from scaling.laws import Law
from scaling.plain import plain
from scaling.tables import numbers

FILE = "predictions.jsonl"
KEY = ("run_id", "law", "floor", "table_sha256")
"""What there is one prediction of: one from more rows, or by another law, stands beside the first."""
LOSS = "val_loss"
"""The loss that is foretold unless another is asked for: tables name losses where one is another."""
FIRST = "none"
"""What stands in the first line for the digest of the one before."""
_END = re.compile(r', "digest": "([0-9a-f]{64})"}$')
"""How a line ends: the digest is of the line without this, but with its brace."""
_TEXT, _NUMBER, _OPEN = (str,), (int, float), (int, float, type(None))
_HELD: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("run_id", "name", "law", "table_sha256", "registered", "loss_column"), _TEXT),
    **dict.fromkeys(("rows", "loss", "level"), _NUMBER),
    **dict.fromkeys(("low", "high"), _OPEN),
    "floor": (bool,),
}
"""What every line holds, of those that are read."""
_BY_HAND = "expected the file as `mmdit predict` wrote it"


def prediction(law: Law, at: Mapping[str, float]) -> dict[str, Any]:
    """What a law expects of one new run at ``at`` (a value an abscissa): loss, its interval, and the law itself.

    ``low`` and ``high`` are of the run's loss (``Law.new_run``), ``law_low`` and ``law_high`` of the law's alone; None
    where open.
    """
    point = [at[x] for x in law.kind.abscissae]
    (low,), (high,) = (end.reshape(-1) for end in law.new_run(*point))
    (law_low,), (law_high,) = (end.reshape(-1) for end in law.profile_band(*point))
    return {
        "at": {x: float(at[x]) for x in law.kind.abscissae},
        "loss": float(law.predict(*point)),
        "low": plain(low),
        "high": plain(high),
        "law_low": plain(law_low),
        "law_high": plain(law_high),
        "level": law.level,
        "law": law.kind.name,
        "floor": law.params[law.kind.floor] > 0,
        "equation": law.kind.equation,
        "params": plain(law.params),
        "rows": law.rows,
        "run_noise": law.run_noise,
        "huber": law.huber,
        "ranges": {name: list(ends) for name, ends in zip(law.kind.abscissae, law.ranges, strict=True)},
        "reasons": list(law.reasons),
    }


def table_digest(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """SHA-256 of the rows that a law was fitted to, whatever their order: ``columns``, as CSV to 12 digits, sorted.

    Numbers that went through a file differ in their last digits, and whole ones become floats: the rows are the same.
    """
    values = zip(*(numbers(table, name) for name in columns), strict=True)
    lines = [",".join(columns), *sorted(",".join(f"{value:.12g}" for value in row) for row in values)]
    return _digest("\n".join(lines))


def added(text: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The file's text with a line for each of ``records``; KEY, name and registered are among their keys.

    Raises TableError where a run was foretold by this law from these rows before, or the text is not what was written.
    """
    known = {tuple(record[name] for name in KEY): record["registered"] for record in parse(text)}
    for record in records:
        key = tuple(record[name] for name in KEY)
        if key in known:
            raise TableError(
                f"run={record['name']!r}: foretold by the {record['law']} law from these rows on {known[key]}; "
                "expected another run, law or table (a prediction is never replaced)"
            )
        known[key] = record["registered"]
        before = _digest(text.splitlines()[-1]) if text else FIRST
        line = json.dumps({**record, "before": before}, sort_keys=True, allow_nan=False)
        text += ("" if text.endswith("\n") or not text else "\n") + f'{line[:-1]}, "digest": "{_digest(line)}"}}\n'
    return text


def parse(text: str, name: str = FILE) -> list[dict[str, Any]]:
    """The records of a file's text, first to last.

    Raises TableError naming the first line that is none, was changed, or does not follow from the one before it.
    """
    found: list[dict[str, Any]] = []
    before = FIRST
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = json.loads(line)
            held = {key: record[key] for key in ("before", *_HELD)}
        except (ValueError, KeyError, TypeError) as error:
            lacks = f" ({error.args[0]!r} is missing)" if isinstance(error, KeyError) else ""
            raise TableError(f"{name}: line {number} is not a prediction{lacks}; {_BY_HAND}") from None
        for key, types in _HELD.items():
            if not isinstance(held[key], types):
                raise TableError(f"{name}: line {number} has {key}={held[key]!r}; {_BY_HAND}")
        end = _END.search(line)
        sealed = bool(found) and "digest" in found[-1]
        if end is not None and end[1] != _digest(line[: end.start()] + "}"):
            raise TableError(f"{name}: line {number} was changed: its digest is another line's; {_BY_HAND}")
        if end is None and ("digest" in record or sealed):
            raise TableError(f"{name}: line {number} was changed: it does not end with its digest; {_BY_HAND}")
        if held["before"] != before:
            raise TableError(
                f"{name}: line {number} does not follow from line {number - 1}, which was changed or taken out; "
                f"{_BY_HAND}"
            )
        found.append(record)
        before = _digest(line)
    return found


def stored(folder: Path) -> str:
    """The text of a study's predictions, empty where nothing was foretold. Raises TableError where it is none."""
    path = folder / FILE
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not UTF-8 text (byte {error.start + 1}); {_BY_HAND}") from None


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """The records of a study's folder; none where nothing was foretold."""
    return parse(stored(folder), str(folder / FILE))


def law_name(law: str, floor: bool) -> str:
    """A law as tables call it: two predictions by ``power``, with a floor and without, are told apart."""
    return law if floor else f"{law}, no floor"


def with_truth(records: Sequence[Mapping[str, Any]], results: pd.DataFrame) -> pd.DataFrame:
    """A row a prediction: what was expected, and what came (NaN where the run is not done).

    ``results``: columns run_id and the predicted loss's (``loss_column``). ``error`` is predicted over actual less one;
    ``inside``: whether the actual loss lies in the interval.
    """
    by_id = results.set_index("run_id") if len(results) else pd.DataFrame()
    rows = []
    for record in records:
        column = record["loss_column"]
        low = 0.0 if record["low"] is None else record["low"]
        high = np.inf if record["high"] is None else record["high"]
        there = len(by_id) and record["run_id"] in by_id.index and column in by_id.columns
        actual = float(by_id.loc[record["run_id"], column]) if there else np.nan
        rows.append(
            {
                "name": record["name"],
                "run_id": record["run_id"],
                "law": record["law"],
                "floor": record["floor"],
                "loss_column": column,
                "registered": record["registered"],
                "rows": record["rows"],
                "predicted": record["loss"],
                "low": low,
                "high": high,
                "level": record["level"],
                "actual": actual,
                "error": record["loss"] / actual - 1,
                "inside": bool(low <= actual <= high) if np.isfinite(actual) else None,
            }
        )
    return pd.DataFrame(rows)


def _digest(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()
