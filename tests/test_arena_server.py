"""The arena as processes: every click counted once, through crowds, lost connections, kills; nothing else served."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
from pathlib import Path

import aiohttp
import pytest
from arena_cases import QUESTIONS, WORD, Server, Voter, make_study, session, votes_in
from process_group import Processes

OUTCOMES = ("left", "right", "tie", "skip")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


def where(folder: Path) -> tuple[str, str]:
    return "--votes", str(folder / "votes.sqlite")


@pytest.mark.slow
def test_two_hundred_voters_at_once_lose_no_vote(tmp_path: Path, processes: Processes) -> None:
    study = make_study(tmp_path / "study", runs=6, prompts=20)
    server = Server(processes, study, *where(tmp_path))
    rng = random.Random(0)

    async def click(voter: Voter, ticket: str, question: str) -> None:
        """A click as bad networks deliver it: twice at once, or cut off once and sent again with another outcome."""
        outcome = rng.choice(OUTCOMES)
        fate = rng.random()
        if fate < 0.3:
            first, second = await asyncio.gather(*[voter.send(ticket, question, outcome) for _ in range(2)])
            assert first == second == outcome
        elif fate < 0.6:
            with_deadline = asyncio.wait_for(voter.send(ticket, question, outcome), rng.uniform(0, 0.05))
            try:
                await with_deadline
            except TimeoutError:
                counted = await voter.send(ticket, question, other := rng.choice(OUTCOMES))
                assert counted in (outcome, other)
        else:
            assert await voter.send(ticket, question, outcome) == outcome

    async def vote() -> tuple[dict[tuple[str, str], str], float]:
        async with session(limit=2) as own:
            voter, slowest = Voter(server, own), 0.0
            for _ in range(2):
                pair = await voter.ticket()
                assert (await voter.ticket())["ticket"] == pair["ticket"]
                for question in pair["questions"]:
                    began = asyncio.get_running_loop().time()
                    await click(voter, pair["ticket"], question)
                    slowest = max(slowest, asyncio.get_running_loop().time() - began)
            return voter.acknowledged, slowest

    async def crowd() -> list[tuple[dict[tuple[str, str], str], float]]:
        return await asyncio.gather(*[vote() for _ in range(200)])

    found = asyncio.run(crowd())
    acknowledged = {key: outcome for own, _ in found for key, outcome in own.items()}
    assert len(acknowledged) == 200 * 2 * 3  # distinct clicks
    assert votes_in(tmp_path / "votes.sqlite") == acknowledged
    ended = server.stop()
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert votes_in(tmp_path / "votes.sqlite") == acknowledged


def test_a_kill_loses_no_acknowledged_vote(tmp_path: Path, study: Path, processes: Processes) -> None:
    server = Server(processes, study, *where(tmp_path))
    flying: dict[int, tuple[str, str, str]] = {}
    acknowledged: dict[tuple[str, str], str] = {}

    async def vote(number: int) -> None:
        async with session(name=f"a-voter-of-number-{number}") as own:
            voter = Voter(server, own)
            voter.acknowledged = acknowledged
            while (pair := await voter.ticket())["ticket"]:
                for question in pair["questions"]:
                    if question not in pair["answers"]:
                        flying[number] = (pair["ticket"], question, random.choice(OUTCOMES))
                        await voter.send(*flying[number])
                        flying.pop(number)

    async def until_killed() -> None:
        voters = [asyncio.ensure_future(vote(number)) for number in range(8)]
        while len(acknowledged) < 40:
            await asyncio.sleep(0.001)
        server.process.kill()
        ends = await asyncio.gather(*voters, return_exceptions=True)
        assert all(isinstance(end, aiohttp.ClientError) for end in ends), ends

    asyncio.run(until_killed())
    kept = votes_in(tmp_path / "votes.sqlite")
    assert acknowledged.items() <= kept.items()
    more = kept.keys() - acknowledged.keys()
    assert more <= {(ticket, question) for ticket, question, _ in flying.values()}  # at most the one in flight, of each

    server = Server(processes, study, *where(tmp_path), port=server.port)

    async def again() -> None:
        """Each sends again what was in flight, and is still at the ticket that was open."""
        for number, (ticket, question, outcome) in flying.items():
            async with session(name=f"a-voter-of-number-{number}") as own:
                voter = Voter(server, own)
                voter.acknowledged = acknowledged
                assert await voter.send(ticket, question, outcome) == outcome
                now = await voter.ticket()
                assert now["ticket"] == ticket or len(now["answers"]) == 0

    asyncio.run(again())
    assert votes_in(tmp_path / "votes.sqlite") == acknowledged


def test_the_first_answer_counts_and_only_ones_own_ticket(tmp_path: Path, study: Path, processes: Processes) -> None:
    server = Server(processes, study, *where(tmp_path))

    async def run() -> None:
        async with session() as first, session() as second:
            one, two = Voter(server, first), Voter(server, second)
            pair = await one.ticket()
            assert pair["questions"] == list(QUESTIONS)
            assert await one.send(pair["ticket"], "aesthetics", "left") == "left"
            assert await one.send(pair["ticket"], "aesthetics", "right") == "left"
            assert (await one.ticket())["answers"] == {"aesthetics": "left"}
            assert (await two.ticket())["ticket"] != pair["ticket"]
            for voter, body, status in (
                (two, {"ticket": pair["ticket"], "question": "typography", "outcome": "left"}, 404),
                (one, {"ticket": "none", "question": "typography", "outcome": "left"}, 404),
                (one, {"ticket": ["\0"], "question": "typography", "outcome": "left"}, 404),
                (one, {"ticket": pair["ticket"], "question": "beauty", "outcome": "left"}, 400),
                (one, {"ticket": pair["ticket"], "question": "typography", "outcome": "both"}, 400),
                (one, [], 400),
            ):
                async with voter.session.post(server.url + "/api/vote", json=body) as response:
                    assert response.status == status
            deep = {"data": "[" * 2000, "headers": {"Content-Type": "application/json"}}
            async with first.post(server.url + "/api/vote", **deep) as response:
                assert response.status == 400 and await response.text() == "expected a JSON object\n"
            async with second.get(server.url + pair["left"]) as response:
                assert response.status == 404

    asyncio.run(run())
    assert list(votes_in(tmp_path / "votes.sqlite").values()) == ["left"]


def test_nothing_tells_the_run(tmp_path: Path, processes: Processes) -> None:
    """Of two runs both images are known: the same headers but for the length, the same pixels, and no texts."""
    study = make_study(tmp_path / "study", runs=2, prompts=1)
    server = Server(processes, study, *where(tmp_path))

    async def run() -> None:
        async with session() as own:
            texts, heads = [], []
            for path in ("/", "/static/vote.js", "/static/arena.css"):
                async with own.get(server.url + path) as response:
                    assert response.status == 200
                    assert "script-src 'self'" in response.headers["Content-Security-Policy"]
                    texts.append(str(response.headers) + await response.text())
            pair = await Voter(server, own).ticket()
            texts.append(json.dumps(pair))
            images = []
            for side in ("left", "right"):
                async with own.get(server.url + pair[side]) as response:
                    images.append(await response.read())
                    heads.append({k: v for k, v in response.headers.items() if k not in ("Date", "Content-Length")})
                    texts.append(str(response.headers))
            assert heads[0] == heads[1]
            assert not {"Last-Modified", "ETag"} & heads[0].keys() and heads[0]["Cache-Control"] == "no-store"
            files = [path.read_bytes() for path in study.glob("*/samples/*/samples/*.png")]
            assert all(WORD.encode() in data for data in files)  # it is there to be found
            assert not any(WORD in text for text in texts) and not any(WORD.encode() in data for data in images)
            pixels = lambda data: data[data.index(b"IDAT") :]  # noqa: E731
            assert sorted(map(pixels, images)) == sorted(map(pixels, files))

    asyncio.run(run())


def raw(port: int, request: str) -> str:
    """What the server answers to bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        link.sendall(request.encode("latin-1"))
        answer = b""
        while data := link.recv(65536):
            answer += data
    return answer.decode("latin-1")


@pytest.mark.parametrize(
    "path",
    [
        "/static/../cli.py",
        "/static/..%2fcli.py",
        "/static/%2e%2e%2fcli.py",
        "/static/..%5ccli.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/image/../../etc/passwd",
        "/image/..%2f..%2fetc%2fpasswd/left",
        "/image/%2fetc%2fpasswd/left",
        "/image/{ticket}/..%2fleft",
        "/image/{ticket}/left%00",
        "/image/%00/left",
        "/{study}/config.json",
        "/image/{ticket}/leak",
        "//etc/passwd",
        "http://127.0.0.1/etc/passwd",
    ],
)
def test_no_path_leads_out(served: tuple[Server, str, str], path: str) -> None:
    server, ticket, cookie = served
    path = path.replace("{ticket}", ticket).replace("{study}", "secret-run-0-0123abcd")
    answer = raw(
        server.port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
    )
    assert answer.split()[1] in ("400", "404"), answer
    assert "root:" not in answer and WORD not in answer and "IDAT" not in answer
    fine = raw(
        server.port,
        f"GET /image/{ticket}/left HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n",
    )
    assert fine.split()[1] == "200" and "IDAT" in fine  # the same request for what may be had


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, study: Path) -> object:
    """A server, a ticket there, and the cookie of who holds it."""
    processes = Processes()
    server = Server(processes, study, *where(tmp_path_factory.mktemp("votes")))

    async def run() -> tuple[str, str]:
        async with session() as own:
            pair = await Voter(server, own).ticket()
            (cookie,) = own.cookie_jar
            return pair["ticket"], f"{cookie.key}={cookie.value}"

    yield (server, *asyncio.run(run()))
    processes.kill()


def test_sigint_ends_it_cleanly(tmp_path: Path, study: Path, processes: Processes) -> None:
    server = Server(processes, study, *where(tmp_path))
    assert server.told["runs"] == 3 and server.told["pairs"] == 3 and server.told["votes"] == 0
    server.process.send_signal(signal.SIGINT)
    end = processes.ends([server.process])[0]
    assert (end.code, end.out, end.err) == (0, "", "")
    assert not (tmp_path / "votes.sqlite-wal").exists()  # all is in the one file
