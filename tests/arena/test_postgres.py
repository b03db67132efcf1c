"""Votes on a real PostgreSQL: several arenas on one board, a database that crashes, an arena that is killed."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena_cases import QUESTIONS, Server, Voter, session
from process_group import Processes
from programs import Postgres

from launch.arena import store
from launch.arena.databases import open_database
from launch.cli import main

OUTCOMES = ("left", "right", "tie", "skip")
Answers = dict[tuple[str, str], str]


def votes_in(postgres: Postgres) -> Answers:
    """(ticket, question) -> outcome, by a connection of our own."""
    import psycopg

    with psycopg.connect(postgres.url) as connection:
        rows = connection.execute("SELECT ticket, question, outcome FROM arena_votes").fetchall()
    found = {(ticket, question): outcome for ticket, question, outcome in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture
def pair_of(postgres: Postgres, processes: Processes, study: Path) -> Iterator[list[Server]]:
    """Two arenas on one empty database, started at once: both make the tables."""
    found: list[Server] = []

    def start() -> None:
        found.append(Server(processes, study, "--votes", postgres.url))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    yield found


def test_two_arenas_share_a_board(postgres: Postgres, pair_of: list[Server], tmp_path: Path) -> None:
    """Sixty people, each at both arenas at once with the same cookie: one ticket, each answer once."""
    acknowledged: Answers = {}

    async def vote(number: int) -> None:
        rng = random.Random(number)
        async with session(name=f"a-voter-of-number-{number}") as own:
            voters = [Voter(server, own) for server in pair_of]
            for _ in range(2):
                first, second = await asyncio.gather(*[voter.ticket() for voter in voters])
                assert first["ticket"] == second["ticket"]
                assert {question: None for question in first["questions"]} == dict.fromkeys(QUESTIONS)
                # All three questions at once, at both arenas: the last one closes the ticket.
                answers = await asyncio.gather(
                    *[
                        voter.send(first["ticket"], question, rng.choice(OUTCOMES))
                        for question in QUESTIONS
                        for voter in voters
                    ]
                )
                assert answers[0::2] == answers[1::2]  # both say the same, whoever came first
                acknowledged.update(voters[0].acknowledged)

    async def crowd() -> None:
        await asyncio.gather(*[vote(number) for number in range(60)])

    asyncio.run(crowd())
    assert len(acknowledged) == 60 * 2 * 3
    assert votes_in(postgres) == acknowledged
    # Out of PostgreSQL, into SQLite, out of it again.
    words = ["arena", str(tmp_path), "--json"]
    out, back = tmp_path / "out.csv", tmp_path / "back.csv"
    assert main([*words, "--votes", postgres.url, "--export", str(out)]) == 0
    assert main([*words, "--import", str(out)]) == 0
    assert main([*words, "--export", str(back)]) == 0
    assert back.read_bytes() == out.read_bytes()
    assert out.read_text().count("\n") == 1 + sum(outcome != "skip" for outcome in acknowledged.values())
    database = open_database(postgres.url)
    try:
        assert database.read(lambda cursor: store.add(cursor, store.votes(cursor))) == 0
        assert database.read(store.total) == sum(outcome != "skip" for outcome in acknowledged.values())
    finally:
        database.close()


def test_a_crash_of_the_database_loses_no_acknowledged_vote(postgres: Postgres, pair_of: list[Server]) -> None:
    """Voters send again what got an error, by the same ticket, until it is counted."""
    acknowledged: Answers = {}
    errors = 0

    async def vote(number: int, end: asyncio.Event) -> None:
        nonlocal errors
        rng = random.Random(number)
        async with session(name=f"a-voter-of-number-{number}") as own:

            async def post(path: str, body: dict[str, str]) -> dict[str, object]:
                nonlocal errors
                while True:
                    async with own.post(pair_of[number % 2].url + path, json=body) as response:
                        if response.status == 200:
                            found: dict[str, object] = await response.json()
                            return found
                        assert response.status == 503 and "Retry-After" in response.headers
                        errors += 1
                    await asyncio.sleep(0.1)

            while not end.is_set():
                pair = await post("/api/ticket", {})
                for question in QUESTIONS:
                    if pair["ticket"] is None:
                        return
                    body = {"ticket": str(pair["ticket"]), "question": question, "outcome": rng.choice(OUTCOMES)}
                    told = await post("/api/vote", body)
                    acknowledged[body["ticket"], question] = str(told["counted"])

    async def run() -> None:
        end = asyncio.Event()
        voters = [asyncio.ensure_future(vote(number, end)) for number in range(12)]
        for count in (60, 120):
            while len(acknowledged) < count:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(postgres.stop, "immediate")
            kept = len(acknowledged)
            await asyncio.to_thread(postgres.start)
            while len(acknowledged) < kept + 12:
                await asyncio.sleep(0.01)
        end.set()
        await asyncio.gather(*voters)

    asyncio.run(run())
    assert errors > 0
    assert votes_in(postgres) == acknowledged
    for server in pair_of:
        assert server.stop().returncode == 0


def test_a_killed_arena_leaves_its_votes(
    postgres: Postgres, processes: Processes, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(processes, study, "--votes", postgres.url)
    acknowledged: Answers = {}

    async def vote() -> None:
        async with session() as own:
            voter = Voter(server, own)
            voter.acknowledged = acknowledged
            while True:
                await voter.judge(("left", "tie", "right"))
                if len(acknowledged) >= 15:
                    server.process.kill()

    with pytest.raises(Exception, match=r"disconnected|reset|Cannot connect"):
        asyncio.run(vote())
    found = votes_in(postgres)
    assert acknowledged.items() <= found.items() and len(found) <= len(acknowledged) + 1
    again = Server(processes, study, "--votes", postgres.url)
    assert again.told["votes"] == len(found)
    assert json.dumps(again.told).count("arena@") == 0  # where the votes are, without who asks for them


def test_a_user_without_the_right_to_make_tables_is_told_in_a_line(
    postgres: Postgres, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import psycopg

    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN")
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    assert main(["arena", str(study), "--votes", postgres.url.replace("arena@", "guest@")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "permission denied for schema public" in err
