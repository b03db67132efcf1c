"""The leaderboard: ratings with intervals for each question, computed aside and kept for a while."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd

from launch.arena import store
from launch.arena.databases import Database
from launch.arena.store import Vote
from scaling.elo import rate
from scaling.errors import TableError

DRAWS = 400
"""Bootstraps over prompts: an interval's ends are good to a twentieth of its width."""
FEW_PROMPTS = 10
"""Intervals from fewer are rough, and told to be."""
SECONDS = 5.0
"""A board is not made anew within so long, nor within as long as it took to make."""


class Board:
    """What the page shows. One thread at a time makes it; the others get the last one meanwhile."""

    def __init__(self, database: Database, questions: Sequence[str]) -> None:
        self._database, self._questions = database, tuple(questions)
        self._made: dict[str, Any] = {}
        self._until = 0.0
        self._making = threading.Lock()

    def current(self) -> dict[str, Any]:
        """``votes``, ``voters``, and for each of ``questions``: question, votes, rows (best first), note.

        Raises:
          Unavailable: the votes can't be read.
        """
        if not self._making.acquire(blocking=not self._made):
            return self._made
        try:
            began = time.monotonic()
            if began >= self._until:
                votes = self._database.read(store.votes)
                if not self._made or len(votes) != self._made["votes"]:
                    self._made = board(votes, self._questions)
                self._until = time.monotonic() + max(SECONDS, time.monotonic() - began)
            return self._made
        finally:
            self._making.release()


def board(votes: Sequence[Vote], questions: Sequence[str]) -> dict[str, Any]:
    """See ``Board.current``."""
    told = []
    for question in questions:
        own = [vote for vote in votes if vote.question == question]
        rows, note = _rated(own)
        told.append({"question": question, "votes": len(own), "rows": rows, "note": note})
    return {"votes": len(votes), "voters": len({vote.voter for vote in votes}), "questions": told}


def _rated(votes: Sequence[Vote]) -> tuple[list[dict[str, Any]], str]:
    """Rows of name, elo, low, high, battles; or why there are none."""
    if not votes:
        return [], "no votes yet"
    table = pd.DataFrame(
        [(vote.item.prompt, vote.left, vote.right, vote.outcome) for vote in votes],
        columns=["prompt", "left", "right", "outcome"],
    )
    try:
        ratings = rate(table, draws=DRAWS).ratings
    except TableError as error:  # two groups of runs that have not met yet
        return [], f"no ratings yet: {error}"
    prompts = table["prompt"].nunique()
    note = f"votes on {prompts} prompts only: the intervals are rough yet" if prompts < FEW_PROMPTS else ""
    finite = lambda value: float(value) if math.isfinite(value) else None  # noqa: E731
    return [
        {
            "name": rating.name,
            "elo": rating.elo,
            "low": finite(rating.low),
            "high": finite(rating.high),
            "battles": rating.battles,
        }
        for rating in ratings
    ], note
