"""Votes in and out as CSV, PNG files, and the choice of what is shown."""

from __future__ import annotations

import io
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from arena_cases import QUESTIONS, WORD, make_study, votes_in
from PIL import Image, PngImagePlugin

from launch.arena import store
from launch.arena.databases import Cursor, Sqlite
from launch.arena.gallery import Item, open_gallery
from launch.arena.pairs import Pairs
from launch.arena.png import stripped
from launch.arena.store import Candidate
from launch.cli import main
from mmdit_jax.errors import UserError
from scaling.elo import rate

PAIR = Candidate("a", "b", [Item("x", 0), Item("x", 1), Item("y", 0)])


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Sqlite]:
    found = Sqlite(tmp_path / "votes.sqlite")
    store.prepare(found)
    yield found
    found.close()


def judge(database: Sqlite, voter: str, outcomes: tuple[str, ...] = ("left", "tie", "right")) -> store.Ticket | None:
    """One more ticket of ``PAIR``, all answered."""
    ticket = database.write(lambda cursor: store.issue(cursor, voter, [PAIR], QUESTIONS)).result()
    if ticket is not None:
        for question, outcome in zip(QUESTIONS, outcomes, strict=True):
            database.write(lambda cursor, q=question, o=outcome: store.vote(cursor, ticket, q, o)).result()
    return ticket


def test_images_are_shown_equally_often_and_once_to_each(database: Sqlite) -> None:
    tickets = [judge(database, f"voter {number}") for number in range(6) for _ in range(3)]
    assert Counter(ticket.item for ticket in tickets if ticket) == dict.fromkeys(PAIR.items, 6)
    for number in range(6):
        own = [ticket.item for ticket in tickets if ticket and ticket.voter == f"voter {number}"]
        assert sorted(own) == sorted(PAIR.items)
    assert judge(database, "voter 0") is None  # has seen all there is
    assert database.read(lambda cursor: store.judged(cursor, "voter 0")) == 3


def test_sides_are_by_chance(database: Sqlite) -> None:
    many = Candidate("a", "b", [Item("x", seed) for seed in range(200)])
    left = 0
    for _ in range(200):
        ticket = database.write(lambda cursor: store.issue(cursor, "one", [many], ("aesthetics",))).result()
        assert ticket is not None and {ticket.left, ticket.right} == {"a", "b"}
        left += ticket.left == "a"
        database.write(lambda cursor, ticket=ticket: store.vote(cursor, ticket, "aesthetics", "tie")).result()
    assert 65 < left < 135  # five standard deviations


def test_counts_are_by_who_stood_left_and_open_tickets_wait(database: Sqlite) -> None:
    tickets = [judge(database, f"voter {number}", ("left", "skip", "tie")) for number in range(20)]
    waiting = database.write(lambda cursor: store.issue(cursor, "slow", [PAIR], QUESTIONS)).result()
    gone = database.write(lambda cursor: store.issue(cursor, "gone", [PAIR], QUESTIONS)).result()
    assert waiting is not None and gone is not None
    old = "UPDATE arena_tickets SET touched = touched - ? WHERE ticket = ?"
    database.write(lambda cursor: cursor.change(old, (store.OPEN_SECONDS + 1, gone.ticket))).result()
    counts, flying = database.read(lambda cursor: store.counts(cursor, ["b", "a", "c"]))
    a_left = sum(ticket.left == "a" for ticket in tickets if ticket)
    expected = np.zeros((3, 3, 4))
    expected[1, 0, 0], expected[0, 1, 0] = a_left, 20 - a_left
    for question, where in zip(QUESTIONS, (0, 3, 2), strict=True):  # left won, skipped, tie
        np.testing.assert_array_equal(counts[question], np.roll(expected, where, axis=-1))
    assert flying.sum() == 1 and flying[["b", "a"].index(waiting.left), ["b", "a"].index(waiting.right)] == 1
    # Whoever was away goes on where they were.
    assert database.read(lambda cursor: store.open_ticket(cursor, "gone")) == gone


def test_work_that_fails_takes_no_other_with_it(database: Sqlite) -> None:
    def fail(cursor: Cursor) -> None:
        cursor.change("INSERT INTO arena_settings VALUES ('half', 'done')")
        raise UserError("no")

    futures: list[Future[object]] = []
    fine = "INSERT INTO arena_settings VALUES (?, '')"
    for number in range(50):
        futures.append(database.write(lambda cursor, n=number: cursor.change(fine, (f"fine {n}",))))
        futures.append(database.write(fail))
    assert [future.exception() is None for future in futures] == [True, False] * 50
    names = database.read(lambda cursor: {name for (name,) in cursor.rows("SELECT name FROM arena_settings")})
    assert names == {"version", *(f"fine {number}" for number in range(50))}


def test_several_arenas_may_write_to_one_file(tmp_path: Path) -> None:
    one, two = Sqlite(tmp_path / "votes.sqlite"), Sqlite(tmp_path / "votes.sqlite")
    for each in (one, two):
        store.prepare(each)
    futures = [
        each.write(lambda cursor, n=number: store.issue(cursor, f"voter {n % 40}", [PAIR], QUESTIONS))
        for number in range(200)
        for each in (one, two)
    ]
    tickets = {ticket.ticket for future in futures if (ticket := future.result()) is not None}
    assert len(tickets) == 40  # whoever asks again, anywhere, gets the ticket that is open
    one.close()
    two.close()


def export(folder: Path, name: str = "votes.csv", place: str = "votes.sqlite") -> Path:
    path = folder / name
    assert main(["arena", str(folder), "--votes", str(folder / place), "--export", str(path), "--json"]) == 0
    return path


def test_votes_go_out_and_in_and_count_once(
    tmp_path: Path, database: Sqlite, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        judge(database, f"voter {number}", ("left", "skip", "tie"))
    path = export(tmp_path)
    assert json.loads(capsys.readouterr().out) == {"votes": 10, "path": str(path)}
    table = pd.read_csv(path)
    assert list(table.columns[:7]) == ["prompt", "left", "right", "outcome", "question", "judge", "seed"]
    assert set(table["judge"]) == {"human"} and set(table["question"]) == {"prompt following", "typography"}
    assert {(row.left, row.right) for row in table.itertuples()} <= {("a", "b"), ("b", "a")}
    assert rate(table[table["question"] == "typography"], draws=0).battles == 5
    assert main(["elo", str(path), "--by", "question", "--cluster", "prompt,voter"]) == 0
    capsys.readouterr()

    other = ["arena", str(tmp_path), "--votes", str(tmp_path / "other.sqlite"), "--json", "--import"]
    for new in (10, 0):
        assert main([*other, str(path)]) == 0
        assert json.loads(capsys.readouterr().out) == {"votes": 10, "new": new}
    assert votes_in(tmp_path / "other.sqlite").items() <= votes_in(tmp_path / "votes.sqlite").items()
    assert export(tmp_path, "again.csv", "other.sqlite").read_bytes() == path.read_bytes()
    capsys.readouterr()
    changed = table.assign(outcome="right")
    changed.to_csv(tmp_path / "changed.csv", index=False)
    assert main([*other, str(tmp_path / "changed.csv")]) == 2
    assert "nothing was taken in" in capsys.readouterr().err
    assert export(tmp_path, "again.csv", "other.sqlite").read_bytes() == path.read_bytes()


def test_votes_that_come_back_end_a_ticket_that_was_open(tmp_path: Path, database: Sqlite) -> None:
    """A copy of the votes from before the last answers, and a CSV file from after them: nobody is asked for ever."""
    ticket = database.write(lambda cursor: store.issue(cursor, "one", [PAIR], QUESTIONS)).result()
    assert ticket is not None
    with sqlite3.connect(tmp_path / "votes.sqlite") as now, sqlite3.connect(tmp_path / "older.sqlite") as older:
        now.backup(older)
    for question in QUESTIONS:
        database.write(lambda cursor, q=question: store.vote(cursor, ticket, q, "tie")).result()
    older_votes = Sqlite(tmp_path / "older.sqlite")
    assert older_votes.read(lambda cursor: store.open_ticket(cursor, "one")) == ticket
    votes = database.read(store.votes)
    assert older_votes.write(lambda cursor: store.add(cursor, votes[:2])).result() == 2
    assert older_votes.read(lambda cursor: store.open_ticket(cursor, "one")) == ticket
    assert older_votes.write(lambda cursor: store.add(cursor, votes)).result() == 1
    assert older_votes.read(lambda cursor: store.open_ticket(cursor, "one")) is None
    older_votes.close()


def test_battles_without_tickets_count_once_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "a cat,r1,007,left,aesthetics,human,0\n"
    path = tmp_path / "theirs.csv"
    path.write_text("prompt,left,right,outcome,question,judge,seed\n" + 2 * row + row.replace("left,a", "tie,a"))
    words = ["arena", str(tmp_path), "--votes", str(tmp_path / "v.sqlite"), "--json", "--import", str(path)]
    for new in (3, 0):  # two equal rows are two votes, the same table again is none
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out) == {"votes": 3, "new": new}
    path.write_text(path.read_text() + row)
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == {"votes": 4, "new": 1}
    assert ",r1,007,left," in export(tmp_path, "out.csv", "v.sqlite").read_text()
    capsys.readouterr()
    for wrong, told in (
        (row.replace("human", "contrastive"), "judge='contrastive' (row 1): expected 'human'"),
        (row.replace("r1", "007"), "right='007' (row 1): a run against itself"),
        (row.replace(",0\n", ",-1\n"), "seed=-1 (row 1)"),
        (row.replace(",left", ",both"), "outcome='both' (row 1)"),
        (row.replace("a cat", ""), "prompt=blank (row 1)"),
        (row.replace("0\n", "0,=1+1,v\n"), "ticket='=1+1' (row 1): expected an id of 64 or fewer letters"),
        (row.replace("0\n", "0,t,@SUM(A1)\n"), "voter='@SUM(A1)' (row 1): expected an id of 64 or fewer letters"),
    ):
        named = "prompt,left,right,outcome,question,judge,seed" + ",ticket,voter" * (wrong.count(",") > row.count(","))
        path.write_text(f"{named}\n{wrong}")
        assert main(words) == 2
        assert told in capsys.readouterr().err


def test_png_files_lose_their_texts_and_keep_their_pixels() -> None:
    rng = np.random.default_rng(0)
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", "seed 7, model secret")
    told.add_itxt("Software", "secret")
    for mode, channels in (("RGB", 3), ("RGBA", 4), ("L", 1), ("P", 1)):
        pixels = rng.integers(0, 256, (9, 7, channels), np.uint8).squeeze()
        image = Image.fromarray(pixels) if mode != "P" else Image.fromarray(pixels).convert("P")
        file = io.BytesIO()
        image.save(file, "png", pnginfo=told, dpi=(72, 72))
        data = file.getvalue()
        assert b"secret" in data
        found = stripped(data)
        assert b"secret" not in found and b"pHYs" not in found
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found))), np.asarray(image))
        for damaged in (data[:-20], data[:60] + b"?" + data[61:], b"GIF89a" + data, data[:8]):
            with pytest.raises(ValueError):
                stripped(damaged)


def test_pairs_without_a_prompt_in_common_are_never_shown(tmp_path: Path, database: Sqlite) -> None:
    study = make_study(tmp_path / "study", runs=4, prompts=2)
    for place in (sorted(study.iterdir())[0] / "samples").glob("*/metadata.jsonl"):
        place.write_text(json.dumps({"prompt": f"other {place.parent.name}"}))
    pairs = Pairs(open_gallery(study), database, QUESTIONS)
    assert pairs.count == 3
    for _ in range(20):
        candidates = pairs.ordered()
        assert len(candidates) == 3 and all(f"{WORD} 0" not in (one.left, one.right) for one in candidates)
    # What was handed out meanwhile is known: all pairs get their turn though nobody has voted.
    assert len({(one.left, one.right) for one in (pairs.ordered()[0] for _ in range(9))}) == 3


def test_a_pair_that_is_skipped_makes_room_for_others(
    tmp_path: Path, database: Sqlite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.arena.pairs.FRESH_SECONDS", 0.0)
    pairs = Pairs(open_gallery(make_study(tmp_path / "study", runs=3, prompts=30)), database, QUESTIONS)
    shown: Counter[frozenset[str]] = Counter()
    for _ in range(12):
        candidates = pairs.ordered()
        ticket = database.write(lambda cursor, c=candidates: store.issue(cursor, "one", c, QUESTIONS)).result()
        assert ticket is not None
        shown[frozenset((ticket.left, ticket.right))] += 1
        for question in QUESTIONS:
            database.write(lambda cursor, t=ticket, q=question: store.vote(cursor, t, q, "skip")).result()
    assert set(shown.values()) == {4}
