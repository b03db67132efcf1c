"""Who gets in: tokens, names of the server, pages of other sites; what is wrong with the command is told in a line."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path

import pytest
from arena_cases import Server, Voter, make_study, session, votes_in
from process_group import Processes

from launch.arena.cli import _addresses, _apart
from launch.cli import main

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


def statuses(server: Server, *asked: tuple[str, str, dict[str, str]]) -> list[int]:
    """Of (method, path, headers), each from a browser that was never there; redirects are not followed."""

    async def run() -> list[int]:
        found = []
        for method, path, headers in asked:
            async with (
                session() as own,
                own.request(method, server.url + path, headers=headers, data="{}", allow_redirects=False) as response,
            ):
                assert (
                    response.headers["X-Content-Type-Options"] == "nosniff" and "Last-Modified" not in response.headers
                )
                found.append(response.status)
        return found

    return asyncio.run(run())


def test_only_links_with_the_token_open_it(tmp_path: Path, study: Path, processes: Processes) -> None:
    """Listening for others, both links are made, and are the same after a restart; the owner's shows more."""
    options = ("--host", "0.0.0.0", "--votes", str(tmp_path / "votes.sqlite"), "--hide-board")
    server = Server(processes, study, *options)
    links = server.told["url"], server.told["board"]
    token, owner = (link.split("token=")[1] for link in links)
    assert len(token) >= 16 and len(owner) >= 16 and token != owner
    host = {"Host": f"127.0.0.1:{server.port}"}
    found = statuses(
        server,
        *[("GET", path, host) for path in ("/", "/board", "/static/vote.js", "/votes.csv", "/image/a/left")],
        ("POST", "/api/ticket", host | JSON),
        ("GET", "/?token=wrong-token", host),
        ("GET", f"/votes.csv?token={token}", host),
        ("GET", "/api/board", host | {"Authorization": f"Bearer {token}"}),
        ("GET", "/votes.csv", host | {"Authorization": "Bearer ü"}),
        ("GET", "/votes.csv", host | {"Authorization": f"Bearer {owner}"}),
        ("GET", f"/board?token={owner}", host),
    )
    assert found == [401, 401, 401, 401, 401, 401, 401, 403, 403, 401, 200, 303]

    async def by_link() -> None:
        async with session() as own:
            base = f"http://127.0.0.1:{server.port}"
            async with own.get(f"{base}/?token={token}") as response:
                assert response.status == 200 and response.url.query_string == ""  # not left in the address bar
            server.url = base
            voter = Voter(server, own)
            assert (await voter.judge(["left", "tie", "skip"]))["board"] is False
            for path, status in (("/board", 403), ("/votes.csv", 403), ("/static/vote.js", 200)):
                async with own.get(base + path) as response:
                    assert response.status == status

    asyncio.run(by_link())
    server.stop()
    assert tuple(link.split("token=")[1] for link in links) == tuple(
        Server(processes, study, *options).told[key].split("token=")[1] for key in ("url", "board")
    )
    assert (tmp_path / "votes.sqlite").stat().st_mode & 0o77 == 0  # the tokens are in there


def test_other_sites_can_neither_read_nor_vote(tmp_path: Path, study: Path, processes: Processes) -> None:
    votes = ("--votes", str(tmp_path / "votes.sqlite"))
    server = Server(processes, study, *votes, "--allow-host", "Arena.example", "--token", "long-enough")
    port = server.port
    authorised = {"Authorization": "Bearer long-enough"}
    ours = {"Host": f"127.0.0.1:{port}"} | authorised
    found = statuses(
        server,
        ("GET", "/", {"Host": f"evil.example:{port}"}),
        ("GET", "/", {"Host": f"127.0.0.1.evil.example:{port}"}),
        ("GET", "/", {"Host": "["}),
        ("POST", "/api/ticket", ours | JSON | {"Origin": "http://evil.example"}),
        ("POST", "/api/ticket", ours | JSON | {"Origin": "null"}),
        ("POST", "/api/ticket", ours | JSON | {"Sec-Fetch-Site": "cross-site"}),
        ("POST", "/api/ticket", ours | {"Content-Type": "text/plain"}),
        ("POST", "/api/vote", ours | {"Content-Type": "application/x-www-form-urlencoded"}),
        ("PUT", "/api/vote", ours | JSON),
        ("GET", "/", authorised | {"Host": "localhost:1"}),  # as by a tunnel
        ("GET", "/", authorised | {"Host": f"[::1]:{port}"}),
        ("GET", "/", authorised | {"Host": "arena.example"}),
        ("POST", "/api/ticket", authorised | {"Host": "arena.example"} | JSON | {"Origin": "https://arena.example"}),
        ("POST", "/api/ticket", ours | JSON | {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}),
    )
    assert found == [421, 421, 421, 403, 403, 403, 415, 415, 405, 200, 200, 200, 200, 200]
    assert votes_in(tmp_path / "votes.sqlite") == {}


def test_behind_a_proxy_that_asks_by_another_name_its_own_page_votes(
    tmp_path: Path, study: Path, processes: Processes
) -> None:
    """As nginx unless told otherwise: Host is what it asks. What a page of another site says of itself stays wrong."""
    votes = ("--votes", str(tmp_path / "votes.sqlite"), "--allow-host", "Votes.example", "--token", "long-enough")
    server = Server(processes, study, *votes)
    assert server.told["url"] == "https://Votes.example/?token=long-enough"
    assert server.told["board"].startswith("https://Votes.example/board?token=")
    ours = {"Host": f"127.0.0.1:{server.port}", "Authorization": "Bearer long-enough"} | JSON
    found = statuses(
        server,
        *[
            ("POST", "/api/ticket", ours | {"Origin": origin, "Sec-Fetch-Site": site})
            for origin, site in (
                ("https://votes.example", "same-origin"),
                ("https://votes.example.evil.example", "same-origin"),
                ("https://evil.example", "same-origin"),
                ("null", "same-origin"),
                ("https://votes.example", "cross-site"),
                ("https://votes.example", "same-site"),
            )
        ],
        ("POST", "/api/ticket", ours | {"Origin": "https://votes.example", "Content-Type": "text/plain"}),
    )
    assert found == [200, 403, 403, 403, 403, 403, 415]


def test_a_charset_that_there_is_not_is_bad_input(tmp_path: Path, study: Path, processes: Processes) -> None:
    server = Server(processes, study, "--votes", str(tmp_path / "votes.sqlite"))
    strange = {"Content-Type": "application/json; charset=utf-77"}
    assert statuses(server, ("POST", "/api/ticket", strange), ("POST", "/api/ticket", JSON)) == [400, 200]
    assert server.stop().stderr == ""


@pytest.mark.parametrize(
    ("host", "names", "links"),
    [
        ("127.0.0.1", [], "http://127.0.0.1:80/"),
        ("127.0.0.1", ["votes.example", "other.example"], "https://votes.example/"),
        ("127.0.0.1", ["localhost"], "http://localhost:80/"),
        ("::1", ["votes.example"], "https://votes.example/"),
        ("0.0.0.0", ["desk.example"], "http://desk.example:80/"),
        ("10.0.0.7", [], "http://10.0.0.7:80/"),
    ],
)
def test_links_have_the_name_that_others_know(host: str, names: list[str], links: str) -> None:
    own, base = _addresses(host, 80, names)
    assert base == links and own.startswith("http://") and own.endswith(":80/")


def test_runs_that_can_not_be_compared_are_told_at_the_start(tmp_path: Path, processes: Processes) -> None:
    for number, kind in enumerate(("scenes", "emoji", "alone")):
        study = make_study(tmp_path / "root" / kind, runs=1 if kind == "alone" else 2, prompts=2)
        for path in study.glob("*/samples/*/metadata.jsonl"):
            path.write_text(json.dumps({"prompt": f"{number} {path.parent.name}"}))
    server = Server(processes, tmp_path / "root")
    groups = server.told["groups"]
    assert [[name.split("/")[0] for name in group] for group in groups] == [["alone"], ["emoji"] * 2, ["scenes"] * 2]
    assert _apart(groups) == [
        f"2 groups that share no prompt, each rated apart: {', '.join(groups[1])}; {', '.join(groups[2])}",
        f"not shown, for want of a prompt in common with another run: {groups[0][0]}",
    ]
    assert _apart(groups[1:2]) == []


def test_behind_a_proxy_only_links_open_it(tmp_path: Path, study: Path, processes: Processes) -> None:
    """The proxy reaches 127.0.0.1 for whoever reaches the proxy: by that name nobody is the owner unasked."""
    server = Server(processes, study, "--votes", str(tmp_path / "votes.sqlite"), "--allow-host", "arena.example")
    assert "token=" in server.told["url"] and "token=" in server.told["board"]
    host = {"Host": "arena.example"}
    owner = host | {"Authorization": f"Bearer {server.told['board'].split('token=')[1]}"}
    asked = [("GET", "/", host), ("GET", "/votes.csv", host), ("POST", "/api/ticket", host | JSON)]
    assert statuses(server, *asked, ("GET", "/votes.csv", owner)) == [401, 401, 401, 200]


def test_too_much_is_refused(tmp_path: Path, study: Path, processes: Processes) -> None:
    server = Server(processes, study, "--votes", str(tmp_path / "votes.sqlite"))

    async def run() -> int:
        async with session() as own, own.post(server.url + "/api/vote", json={"ticket": "x" * 100_000}) as response:
            return response.status

    assert asyncio.run(run()) == 413
    assert statuses(server, ("GET", "/", {})) == [200]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["missing"], "root='missing': no such folder; expected a study's folder, as studies/quickstart"),
        (["quickstart"], "root='quickstart': no such folder; did you mean studies/quickstart?"),
        (["s3://bucket/studies"], "root='s3://bucket/studies': expected a folder of this machine; copy the study's"),
        (["empty"], "root='empty': expected two or more runs with samples, found none"),
        (["study", "--questions", "beauty"], "questions='beauty': expected some of prompt following, aesthetics"),
        (["study", "--token", "short"], "token: expected 8 or more of letters, digits, - and _"),
        (["study", "--token", "long-enough", "--owner-token", "long-enough"], "owner-token: the same as the token"),
        (["study", "--port", "70000"], "port=70000: expected 0 to 65535"),
        (["study", "--port", "{taken}"], "port={taken}: Address already in use; try --port 0"),
        (["study", "--host", "no.such.host.invalid"], "host='no.such.host.invalid'"),
        (["study", "--votes", "study"], "votes='study': Is a directory"),
        (["study", "--votes", "noise"], "votes='noise': not an SQLite file that can be used"),
        (
            ["study", "--votes", "mysql://u:word@h/d"],
            "votes='mysql://…': expected a path, or postgresql://USER@HOST/DATABASE",
        ),
        (["study", "--votes", "postgresql://u:word@127.0.0.1:1/d"], "votes='postgresql://127.0.0.1:1/d': can't"),
        (["study", "--export", "votes.csv", "--votes", "none"], "votes='none': no votes there"),
        (["study", "--import", "none.csv"], "import='none.csv': not a CSV file that can be read"),
    ],
)
def test_bad_input_is_told_in_a_line(
    tmp_path: Path,
    study: Path,
    words: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "studies" / "quickstart").mkdir(parents=True)
    (tmp_path / "study").symlink_to(study)
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        assert main(["arena", *(word.replace("{taken}", taken) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("mmdit: ")
    assert line.replace("{taken}", taken) in err and "word@" not in err


@pytest.mark.parametrize(
    ("package", "words", "line"),
    [
        ("aiohttp", [], "arena: needs aiohttp; pip install 'mmdit-jax[arena]'"),
        ("psycopg", ["--votes", "postgresql://h/d"], "needs psycopg; pip install 'mmdit-jax[arena]'"),
    ],
)
def test_what_is_not_installed_is_named(
    study: Path,
    package: str,
    words: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["arena", str(study), *words]) == 2
    assert line in capsys.readouterr().err
