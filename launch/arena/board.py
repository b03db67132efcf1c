"""The leaderboard: ratings with intervals for each question, computed aside and kept for a while."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd

from launch.arena import notes, store
from launch.arena.databases import Database
from launch.arena.store import Vote
from scaling.components import components
from scaling.elo import Rating, rate

DRAWS = 400
"""Bootstraps over prompts: an interval's ends are good to a twentieth of its width."""
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
        """``votes``, ``voters``, and for each of ``questions``: question, votes, groups (title, rows best first, note).

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
        told.append({"question": question, "votes": len(own), "groups": _groups(own)})
    return {"votes": len(votes), "voters": len({vote.voter for vote in votes}), "questions": told}


def _groups(votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """Runs that have met, be it through others; those that have not can't be compared, and are rated apart."""
    if not votes:
        return [{"title": "", "rows": [], "note": "No votes yet."}]
    table = pd.DataFrame(
        [(vote.item.prompt, vote.left, vote.right, vote.outcome) for vote in votes],
        columns=["prompt", "left", "right", "outcome"],
    )
    groups = components(table)
    found = []
    for number, group in enumerate(groups, 1):
        own = table[table["left"].isin(group)]
        ratings = rate(own, draws=DRAWS)
        title = f"Group {number} of {len(groups)}, rated apart: these runs have not met the others"
        found.append(
            {
                "title": title if len(groups) > 1 else "",
                "rows": [_row(rating) for rating in ratings.ratings],
                "note": " ".join([*notes.one_way(own, ratings.separated), *notes.few_prompts(own)]),
            }
        )
    return found


def _row(rating: Rating) -> dict[str, Any]:
    """name, elo, low, high, battles."""
    finite = lambda value: float(value) if math.isfinite(value) else None  # noqa: E731
    return {
        "name": rating.name,
        "elo": rating.elo,
        "low": finite(rating.low),
        "high": finite(rating.high),
        "battles": rating.battles,
    }
