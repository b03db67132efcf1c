"""Voters of known taste, through the store and its choice of pairs: their ratings come back, within the intervals."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from arena_cases import make_study
from scipy.stats import kendalltau

from launch.arena import pairs as pairs_module
from launch.arena import store
from launch.arena.board import board
from launch.arena.databases import Sqlite
from launch.arena.gallery import open_gallery
from launch.arena.pairs import Pairs
from scaling.elo import ELO

QUESTION = "aesthetics"
STRENGTH = np.array([-1.2, -0.5, 0.0, 0.4, 1.3])
TIES = 0.5
TIMES, VOTES = 6, 250


def ask(rng: np.random.Generator, left: float, right: float) -> str:
    """Davidson's model, from its formula."""
    p, q = np.exp(left), np.exp(right)
    chances = np.array([p, q, TIES * np.sqrt(p * q)])
    return str(rng.choice(["left", "right", "tie"], p=chances / chances.sum()))


@pytest.mark.slow
def test_ratings_of_simulated_voters_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "FRESH_SECONDS", 0.0)
    random.seed(0)
    rng = np.random.default_rng(0)
    gallery = open_gallery(make_study(tmp_path / "study", runs=len(STRENGTH), prompts=40))
    strength = dict(zip(gallery.runs, STRENGTH, strict=True))
    truth = {run: 1000 + ELO * (value - STRENGTH.mean()) for run, value in strength.items()}
    covered, errors, widths = 0, [], []
    for time in range(TIMES):
        database = Sqlite(tmp_path / f"{time}.sqlite")
        store.prepare(database)
        pairs = Pairs(gallery, database, (QUESTION,))
        shown = np.zeros((len(STRENGTH), len(STRENGTH)), int)
        for number in range(VOTES):
            candidates = pairs.ordered()
            voter = f"voter {number % 10}"
            ticket = database.write(lambda c, v=voter, p=candidates: store.issue(c, v, p, (QUESTION,))).result()
            assert ticket is not None
            outcome = ask(rng, strength[ticket.left], strength[ticket.right])
            database.write(lambda c, t=ticket, o=outcome: store.vote(c, t, QUESTION, o)).result()
            ends = sorted(gallery.runs.index(run) for run in (ticket.left, ticket.right))
            shown[ends[0], ends[1]] += 1
        (told,) = board(database.read(store.votes), (QUESTION,))["questions"]
        database.close()
        (group,) = told["groups"]
        assert told["votes"] == VOTES and group["note"] == ""
        assert sum(row["battles"] for row in group["rows"]) == 2 * VOTES
        assert shown[0, -1] < shown.sum() / 10 * 0.75  # the most uneven pair tells least, and is shown less
        assert kendalltau([truth[row["name"]] for row in group["rows"]], range(len(STRENGTH)))[0] <= -0.6
        for row in group["rows"]:
            covered += row["low"] <= truth[row["name"]] <= row["high"]
            errors.append(row["elo"] - truth[row["name"]])
            widths.append(row["high"] - row["low"])
    # 30 intervals of 95 %: 24 or fewer have a chance of 0.3 %.
    assert covered >= 25
    # A normal estimate errs by a width of its interval over 2 × 1.96.
    expected = np.sqrt(np.mean(np.square(widths))) / 3.92
    assert 0.6 * expected < np.sqrt(np.mean(np.square(errors))) < 1.6 * expected
    print(f"covered {covered} of {len(errors)}, error {np.std(errors):.0f}, expected {expected:.0f}")
