"""Tickets and votes: what was shown to whom, and what they said of it, each said once.

A ticket is two images that one person was given, sides and questions with it. A vote is what they answered to one of
its questions; the first answer counts, whatever comes after it.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from launch.arena.databases import Cursor, Database
from launch.arena.gallery import Item
from mmdit_jax.errors import UserError

WON = ("left", "right", "tie")
OUTCOMES = (*WON, "skip")
"""A skipped question is answered, and is no vote."""
OPEN_SECONDS = 600.0
"""A ticket that nobody has touched for so long no longer counts as being voted on. Its voter may still go on."""
VERSION = "1"
TABLES = (
    "CREATE TABLE IF NOT EXISTS arena_settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS arena_tickets (
        ticket TEXT PRIMARY KEY, voter TEXT NOT NULL, prompt TEXT NOT NULL, seed INTEGER NOT NULL,
        left_run TEXT NOT NULL, right_run TEXT NOT NULL, questions TEXT NOT NULL,
        opened DOUBLE PRECISION NOT NULL, touched DOUBLE PRECISION NOT NULL, closed DOUBLE PRECISION)""",
    """CREATE TABLE IF NOT EXISTS arena_votes (
        ticket TEXT NOT NULL REFERENCES arena_tickets, question TEXT NOT NULL, outcome TEXT NOT NULL,
        voted DOUBLE PRECISION NOT NULL, PRIMARY KEY (ticket, question))""",
    "CREATE UNIQUE INDEX IF NOT EXISTS arena_one_open ON arena_tickets (voter) WHERE closed IS NULL",
    "CREATE INDEX IF NOT EXISTS arena_pair ON arena_tickets (left_run, right_run)",
    "CREATE INDEX IF NOT EXISTS arena_voter ON arena_tickets (voter)",
)
TICKET = "ticket, voter, prompt, seed, left_run, right_run, questions"


@dataclass(frozen=True)
class Ticket:
    """Two images that a person is asked about."""

    ticket: str
    voter: str
    item: Item
    left: str
    right: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A pair that may be shown next, and what both runs have drawn."""

    left: str
    right: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Vote:
    """One answer, with all that a row of a table of battles tells."""

    ticket: str
    voter: str
    item: Item
    left: str
    right: str
    question: str
    outcome: str
    voted: float
    """Seconds since 1970."""


def prepare(database: Database) -> None:
    """Make the tables where there are none.

    Raises:
      UserError: they are of another version of this package.
    """

    def make(cursor: Cursor) -> str:
        cursor.alone()  # IF NOT EXISTS is not enough for two PostgreSQL connections at once
        for sql in TABLES:
            cursor.change(sql)
        return _setting(cursor, "version", VERSION)

    found = database.write(make).result()
    if found != VERSION:
        raise UserError(f"votes={database.where!r}: version {found}, expected {VERSION}; use the mmdit that made it")


def kept_token(database: Database, name: str) -> str:
    """The token of that name: made once, so that links hold when the server is started again."""
    return database.write(lambda cursor: _setting(cursor, f"token {name}", secrets.token_urlsafe(18))).result()


def _setting(cursor: Cursor, name: str, value: str) -> str:
    """What is kept under that name; ``value`` where nothing was."""
    cursor.change("INSERT INTO arena_settings (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, value))
    ((kept,),) = cursor.rows("SELECT value FROM arena_settings WHERE name = ?", (name,))
    return str(kept)


def open_ticket(cursor: Cursor, voter: str) -> Ticket | None:
    """The one that this person has not finished."""
    rows = cursor.rows(f"SELECT {TICKET} FROM arena_tickets WHERE voter = ? AND closed IS NULL", (voter,))
    return _ticket(rows[0]) if rows else None


def find_ticket(cursor: Cursor, ticket: str) -> Ticket | None:
    """The ticket of that id."""
    rows = cursor.rows(f"SELECT {TICKET} FROM arena_tickets WHERE ticket = ?", (ticket,))
    return _ticket(rows[0]) if rows else None


def issue(cursor: Cursor, voter: str, candidates: Sequence[Candidate], questions: Sequence[str]) -> Ticket | None:
    """A ticket for the first of the pairs that this person has not seen all images of; none where they saw all.

    Of the pair's images one that was shown least, by chance among equals; by chance, too, who stands left. Whoever
    has an open ticket gets that one again.
    """
    for candidate in candidates:
        shown, own = _shown(cursor, voter, candidate)
        left = [item for item in candidate.items if item not in own]
        if not left:
            continue
        least = min(shown.get(item, 0) for item in left)
        item = random.choice([item for item in left if shown.get(item, 0) == least])
        first, second = random.sample((candidate.left, candidate.right), 2)
        now = time.time()
        made = Ticket(secrets.token_urlsafe(16), voter, item, first, second, tuple(questions))
        cursor.change(  # of two tabs that ask at once one makes it, and both get it
            f"INSERT INTO arena_tickets ({TICKET}, opened, touched) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT DO NOTHING",
            (made.ticket, voter, item.prompt, item.seed, first, second, json.dumps(made.questions), now, now),
        )
        return open_ticket(cursor, voter)
    return open_ticket(cursor, voter)


def _shown(cursor: Cursor, voter: str, pair: Candidate) -> tuple[dict[Item, int], set[Item]]:
    """How often each image of a pair was shown to anyone, and which this person saw."""
    rows = cursor.rows(
        "SELECT prompt, seed, COUNT(*), SUM(CASE WHEN voter = ? THEN 1 ELSE 0 END) FROM arena_tickets "
        "WHERE (left_run = ? AND right_run = ?) OR (left_run = ? AND right_run = ?) GROUP BY prompt, seed",
        (voter, pair.left, pair.right, pair.right, pair.left),
    )
    found = [(Item(prompt, seed), count, own) for prompt, seed, count, own in rows]
    return {item: count for item, count, _ in found}, {item for item, _, own in found if own}


def drop(cursor: Cursor, ticket: Ticket) -> None:
    """Close a ticket that can't be shown any more."""
    cursor.change("UPDATE arena_tickets SET closed = ? WHERE ticket = ?", (time.time(), ticket.ticket))


def answers(cursor: Cursor, ticket: str) -> dict[str, str]:
    """Outcome by question, of those that are answered."""
    return {
        question: outcome
        for question, outcome in cursor.rows("SELECT question, outcome FROM arena_votes WHERE ticket = ?", (ticket,))
    }


def vote(cursor: Cursor, ticket: Ticket, question: str, outcome: str) -> dict[str, str]:
    """Count an answer, unless the question has one; the answers of the ticket, which is closed by its last."""
    now = round(time.time(), 3)  # as a CSV file tells it: votes that went out and came in are in the same order
    # First of all: it holds the row, so that of two answers at once the later one sees both.
    cursor.change("UPDATE arena_tickets SET touched = ? WHERE ticket = ?", (now, ticket.ticket))
    cursor.change(
        "INSERT INTO arena_votes (ticket, question, outcome, voted) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (ticket.ticket, question, outcome, now),
    )
    found = answers(cursor, ticket.ticket)
    _close_answered(cursor, ticket, found, now)
    return found


def _close_answered(cursor: Cursor, ticket: Ticket, found: Mapping[str, str], now: float) -> None:
    if set(ticket.questions) <= found.keys():
        cursor.change("UPDATE arena_tickets SET closed = ? WHERE ticket = ? AND closed IS NULL", (now, ticket.ticket))


def judged(cursor: Cursor, voter: str) -> int:
    """How many tickets this person has finished."""
    ((count,),) = cursor.rows("SELECT COUNT(*) FROM arena_tickets WHERE voter = ? AND closed IS NOT NULL", (voter,))
    return int(count)


def total(cursor: Cursor) -> int:
    """How many votes there are, skipped questions left out."""
    ((count,),) = cursor.rows("SELECT COUNT(*) FROM arena_votes WHERE outcome <> 'skip'")
    return int(count)


def counts(cursor: Cursor, runs: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What ``scaling.next_battle`` chooses by, the runs in that order.

    Returns:
      By question float64 [runs, runs, 4], (left won, right won, tie, skipped) with the first run left; and
      int [runs, runs], tickets that are being voted on.
    """
    index = {run: number for number, run in enumerate(runs)}
    found: dict[str, np.ndarray] = {}
    rows = cursor.rows(
        "SELECT question, left_run, right_run, outcome, COUNT(*) FROM arena_votes JOIN arena_tickets USING (ticket) "
        "GROUP BY question, left_run, right_run, outcome"
    )
    for question, left, right, outcome, count in rows:
        if left in index and right in index:
            own = found.setdefault(question, np.zeros((len(runs), len(runs), len(OUTCOMES))))
            own[index[left], index[right], OUTCOMES.index(outcome)] += count
    waiting = np.zeros((len(runs), len(runs)), int)
    for left, right, count in cursor.rows(
        "SELECT left_run, right_run, COUNT(*) FROM arena_tickets WHERE closed IS NULL AND touched > ? "
        "GROUP BY left_run, right_run",
        (time.time() - OPEN_SECONDS,),
    ):
        if left in index and right in index:
            waiting[index[left], index[right]] += count
    return found, waiting


def votes(cursor: Cursor) -> list[Vote]:
    """All votes, in the order they were given; skipped questions left out."""
    rows = cursor.rows(
        "SELECT ticket, voter, prompt, seed, left_run, right_run, question, outcome, voted "
        "FROM arena_votes JOIN arena_tickets USING (ticket) WHERE outcome <> 'skip' ORDER BY voted, ticket, question"
    )
    return [
        Vote(ticket, voter, Item(prompt, seed), left, right, question, outcome, voted)
        for ticket, voter, prompt, seed, left, right, question, outcome, voted in rows
    ]


def add(cursor: Cursor, new: Sequence[Vote]) -> int:
    """Take in votes from elsewhere; how many were not there. Any that is there must be the same.

    Raises:
      UserError: a ticket with another pair, or an answer that is another one; nothing is taken in then.
    """
    count = 0
    for one in new:
        cursor.change(
            f"INSERT INTO arena_tickets ({TICKET}, opened, touched, closed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT DO NOTHING",
            (
                *(one.ticket, one.voter, one.item.prompt, one.item.seed, one.left, one.right),
                *(json.dumps([one.question]), one.voted, one.voted, one.voted),
            ),
        )
        kept = find_ticket(cursor, one.ticket)
        if kept is None or (kept.item, kept.left, kept.right) != (one.item, one.left, one.right):
            raise UserError(f"ticket={one.ticket!r}: is of another pair here; nothing was taken in")
        count += cursor.change(
            "INSERT INTO arena_votes (ticket, question, outcome, voted) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (one.ticket, one.question, one.outcome, one.voted),
        )
        found = answers(cursor, one.ticket)
        if (is_now := found[one.question]) != one.outcome:
            raise UserError(
                f"ticket={one.ticket!r}, question={one.question!r}: {one.outcome!r} there, {is_now!r} here; "
                "nothing was taken in"
            )
        _close_answered(cursor, kept, found, one.voted)  # it may be open here: the file is older than the votes
    return count


def _ticket(row: tuple[object, ...]) -> Ticket:
    ticket, voter, prompt, seed, left, right, questions = row
    return Ticket(
        *(str(ticket), str(voter), Item(str(prompt), int(str(seed))), str(left), str(right)),
        tuple(json.loads(str(questions))),
    )
