"""Votes as CSV: the columns of battles.csv, which `mmdit elo` reads, then what tells one vote from another."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from launch.arena.gallery import Item
from launch.arena.store import WON, Vote
from mmdit_jax.errors import UserError
from scaling.tables import labels, require

JUDGE = "human"
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""A ticket."""
NAME = re.compile(r"[^\x00-\x20=+@-][^\x00-\x1f]{0,63}")
"""A voter; nothing that a spreadsheet would compute."""
COLUMNS = ("prompt", "left", "right", "outcome", "question", "judge", "seed", "ticket", "voter", "voted")


def to_csv(votes: Sequence[Vote]) -> str:
    """A row a vote. ``voted`` is in UTC; ``voter`` is the same for all votes of one browser, and tells no more."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for vote in votes:
        row = (vote.item.prompt, vote.left, vote.right, vote.outcome, vote.question, JUDGE, vote.item.seed)
        writer.writerow([*row, vote.ticket, vote.voter, _text(vote.voted)])
    return text.getvalue()


def read_csv(path: Path) -> pd.DataFrame:
    """A table of text, cells as they stand.

    Raises:
      UserError: no such file, or not a readable one.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:  # pandas' own are ValueErrors
        raise UserError(f"import={str(path)!r}: not a CSV file that can be read ({error})") from error


def from_table(table: pd.DataFrame, questions: Sequence[str]) -> list[Vote]:
    """The votes of a table with the columns of battles.csv and, where it is from an arena, all of ``COLUMNS``.

    A row without a ticket gets one made of its content and of how many such rows came before it: a table that is
    taken in twice counts once, and two equal rows of one table count twice.

    Raises:
      TableError: a missing column or a blank cell.
      UserError: a judge that is no person, or another cell that will not do.
    """
    names = ("prompt", "left", "right", "outcome", "question", "judge")
    require(table, [*names, "seed"])
    columns = {name: [str(cell) for cell in labels(table, name)] for name in names}
    seeds = pd.to_numeric(table["seed"], errors="coerce")
    given = {
        name: [None if pd.isna(cell) else str(cell) for cell in table[name]] if name in table else [None] * len(table)
        for name in ("ticket", "voter", "voted")
    }
    came: Counter[tuple[str, ...]] = Counter()
    found = []
    for row in range(len(table)):
        cells = {name: column[row] for name, column in columns.items()}
        seed = seeds.iloc[row]
        _check(cells, seed, questions, row)
        content = (*cells.values(), str(int(seed)), given["voter"][row] or "", given["voted"][row] or "")
        ticket = given["ticket"][row]
        for name, valid in (("ticket", ID), ("voter", NAME)):
            if (cell := given[name][row]) is not None and not valid.fullmatch(cell):
                raise UserError(f"{name}={cell!r} (row {row + 1}): expected an id of 64 or fewer letters and digits")
        if ticket is None:
            ticket = "csv-" + hashlib.sha256("\0".join((*content, str(came[content]))).encode()).hexdigest()[:20]
            came[content] += 1
        found.append(
            Vote(
                *(ticket, given["voter"][row] or "csv", Item(cells["prompt"], int(seed)), cells["left"]),
                *(cells["right"], cells["question"], cells["outcome"], _seconds(given["voted"][row], row)),
            )
        )
    return found


def _check(cells: dict[str, str], seed: float, questions: Sequence[str], row: int) -> None:
    for name, valid in (("judge", (JUDGE,)), ("question", questions), ("outcome", WON)):
        if cells[name] not in valid:
            raise UserError(f"{name}={cells[name]!r} (row {row + 1}): expected {' or '.join(map(repr, valid))}")
    if cells["left"] == cells["right"]:
        raise UserError(f"right={cells['right']!r} (row {row + 1}): a run against itself; expected two names")
    if not (0 <= seed < 2**31 and seed == int(seed)):
        raise UserError(f"seed={seed} (row {row + 1}): expected a whole number, 0 or more")


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _seconds(text: str | None, row: int) -> float:
    """Seconds since 1970 of what ``_text`` wrote; 0 where nothing was."""
    try:
        return 0.0 if text is None else datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UserError(f"voted={text!r} (row {row + 1}): expected a time, as 2024-03-05T12:00:00+00:00") from None
