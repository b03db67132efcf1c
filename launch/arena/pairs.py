"""Which two runs are shown next: those whose battle is expected to tell most."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

import numpy as np

from launch.arena import store
from launch.arena.databases import Database
from launch.arena.gallery import Gallery
from launch.arena.store import OUTCOMES, WON, Candidate
from scaling.components import linked

FRESH_SECONDS = 1.0
"""How long votes that were counted may be looked at again: what was handed out in between is added."""


class Pairs:
    """Orders the pairs of runs that have a prompt in common. May be asked by several threads."""

    def __init__(self, gallery: Gallery, database: Database, questions: Sequence[str]) -> None:
        self._gallery, self._database, self._questions = gallery, database, tuple(questions)
        runs = gallery.runs
        self._items = {
            (i, j): items
            for i in range(len(runs))
            for j in range(i + 1, len(runs))
            if (items := gallery.common(runs[i], runs[j]))
        }
        self._lock = threading.Lock()
        self._counted: dict[str, np.ndarray] = {}
        self._waiting = np.zeros((len(runs), len(runs)), int)
        self._at = -np.inf

    @property
    def count(self) -> int:
        return len(self._items)

    @property
    def groups(self) -> list[list[str]]:
        """Runs that can be shown together, be it through others: only these can be compared."""
        runs = self._gallery.runs
        return linked(runs, [(runs[i], runs[j]) for i, j in self._items])

    def ordered(self) -> list[Candidate]:
        """All pairs, the one to be shown first.

        By the votes on the question that has fewest, since its ratings are least certain; by chance among equals.
        Tickets that are being voted on count as votes to come, and so do skipped questions: else a pair that nobody
        can judge would be shown for ever.

        Raises:
          Unavailable: the votes can't be read.
        """
        from scaling.next_battle import next_pairs

        with self._lock:
            if time.monotonic() - self._at > FRESH_SECONDS:
                runs = self._gallery.runs
                self._counted, self._waiting = self._database.read(lambda cursor: store.counts(cursor, runs))
                self._at = time.monotonic()
            blank = np.zeros((*self._waiting.shape, len(OUTCOMES)))
            by_question = [self._counted.get(question, blank) for question in self._questions]
            fewest = min(counts[..., : len(WON)].sum() for counts in by_question)
            counts = random.choice([counts for counts in by_question if counts[..., : len(WON)].sum() == fewest])
            to_come = self._waiting + counts[..., OUTCOMES.index("skip")]
            best = next_pairs(counts[..., : len(WON)], k=len(to_come) ** 2, in_flight=to_come)
            pairs = [pair for i, j, _ in best if (pair := (min(i, j), max(i, j))) in self._items]
            self._waiting[pairs[0]] += 1
        runs = self._gallery.runs
        return [Candidate(runs[i], runs[j], self._items[i, j]) for i, j in pairs]
