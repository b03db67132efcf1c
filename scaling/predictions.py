"""Losses that were foretold: a file of lines that is only ever added to, and what came of them.

Each line holds the digest of the line before it, so that one that is changed, taken out or put in later is seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.errors import TableError
from scaling.laws import Law
from scaling.plain import plain

FILE = "predictions.jsonl"
KEY = ("run_id", "law", "floor", "table_sha256")
"""What there is one prediction of: one from more rows, or by another law, stands beside the first."""
FIRST = "none"
"""What stands in the first line for the digest of the one before."""


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
    """SHA-256 of the rows that a law was fitted to: of ``columns``, in order, as CSV."""
    return hashlib.sha256(table[list(columns)].to_csv(index=False).encode()).hexdigest()


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
        text += json.dumps({**record, "before": before}, sort_keys=True, allow_nan=False) + "\n"
    return text


def parse(text: str, name: str = FILE) -> list[dict[str, Any]]:
    """The records of a file's text, first to last.

    Raises TableError naming the first line that does not follow from the one before it.
    """
    found = []
    before = FIRST
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = json.loads(line)
            told = record["before"]
        except (ValueError, KeyError, TypeError):
            raise TableError(f"{name}: line {number} is not a prediction; the file was changed by hand") from None
        if told != before:
            raise TableError(
                f"{name}: line {number} does not follow from line {number - 1}, which was changed or taken out; "
                "expected the file as `mmdit predict` wrote it"
            )
        found.append(record)
        before = _digest(line)
    return found


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """The records of a study's folder; none where nothing was foretold."""
    path = folder / FILE
    return parse(path.read_text(encoding="utf-8"), str(path)) if path.exists() else []


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
