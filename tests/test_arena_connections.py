"""Connections that ask for nothing, or never to the end, keep nobody from voting, however few files may be open."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena_cases import Server, Voter, make_study, session, votes_in
from process_group import Processes

FILES = 256
SHORT = (
    "import launch.arena.connections as c, launch.arena.server as s, sys; c.SILENT_SECONDS = s.SILENT_SECONDS = 1.5; "
)
HEAD = b"POST /api/vote HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


@contextlib.contextmanager
def links(port: int, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            found.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)))
            found[-1].sendall(data)
        yield found


def vote(server: Server, voters: int = 1) -> None:
    """Of each voter, all questions of a pair, over connections of its own."""

    async def one() -> None:
        async with session() as own:
            await Voter(server, own).judge(["left", "tie", "skip"])

    async def run() -> None:
        await asyncio.gather(*[one() for _ in range(voters)])

    asyncio.run(run())


def test_more_silent_connections_than_files_let_a_vote_through(
    tmp_path: Path, study: Path, processes: Processes
) -> None:
    votes = tmp_path / "votes.sqlite"
    limited = ("sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh")
    server = Server(processes, study, "--votes", str(votes), before=limited)
    with links(server.port, 2 * FILES):
        vote(server)
        with links(server.port, FILES, HEAD[:20]):
            vote(server, voters=5)
    assert len(votes_in(votes)) == 6 * 3
    ended = server.stop()
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_host_may_allow_more_files_than_are_allowed_at_first(
    tmp_path: Path, study: Path, processes: Processes
) -> None:
    limited = ("sh", "-c", f'ulimit -Sn {FILES} && exec "$@"', "sh")
    server = Server(processes, study, "--votes", str(tmp_path / "votes.sqlite"), before=limited)
    limits = Path(f"/proc/{server.process.pid}/limits")
    if not limits.exists():
        pytest.skip("no /proc here")
    (line,) = [line for line in limits.read_text().splitlines() if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    assert hard == "unlimited" or int(soft) > FILES or int(hard) < 1024 + 512


@pytest.mark.parametrize(
    ("data", "answer"), [(b"", b""), (HEAD[:20], b""), (HEAD + b"{", b"HTTP/1.1 408 ")], ids=["nothing", "head", "body"]
)
def test_what_sends_no_whole_request_is_closed(
    tmp_path: Path, study: Path, processes: Processes, data: bytes, answer: bytes
) -> None:
    """With a second and a half instead of half a minute."""
    run = (
        sys.executable,
        "-c",
        SHORT + "sys.argv = sys.argv[3:]; import runpy; runpy.run_module('launch.cli', run_name='__main__')",
    )
    server = Server(processes, study, "--votes", str(tmp_path / "votes.sqlite"), before=run)
    with links(server.port, 1, data) as (link,):
        began = time.monotonic()
        assert link.recv(4096).startswith(answer) and time.monotonic() - began > 1
    vote(server)
