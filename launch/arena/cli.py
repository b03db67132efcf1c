"""``mmdit arena``: a page for blind votes of people on a study's samples, and their votes as CSV, out and in."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.tables import EXIT_OK, command_parser, natural
from mmdit_jax.errors import UserError
from mmdit_jax.files import write_atomic

if TYPE_CHECKING:
    from launch.arena.databases import Database
    from launch.arena.gallery import Gallery
    from launch.arena.server import Arena

QUESTIONS = ("prompt following", "aesthetics", "typography")
"""SD3's three questions to people (section 5.3)."""
PORT = 8765
FILE = "votes.sqlite"
LEAVING_SECONDS = 5.0
"""What is under way gets to end after SIGTERM."""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = command_parser(
        subparsers,
        "arena",
        "a local page for blind votes of people: two images, one prompt, and a board with intervals",
        "mmdit arena studies/quickstart\n"
        "  mmdit arena studies/quickstart --host 0.0.0.0 --votes postgresql://arena@db.example/votes\n"
        "  mmdit arena studies/quickstart --export votes.csv && mmdit elo votes.csv --by question",
    )
    # Not called root: that is what the commands that run models have.
    parser.add_argument(
        "folder", metavar="ROOT", help="folder of a study, of several, or of GenEval-shaped image trees"
    )
    parser.add_argument(
        "--votes",
        metavar="PLACE",
        help=f"SQLite file, or postgresql://USER@HOST/DATABASE that several arenas share (default: ROOT/{FILE})",
    )
    parser.add_argument(
        "--questions", metavar="Q[,Q]", default=",".join(QUESTIONS), help="ask only these (default: %(default)s)"
    )
    parser.add_argument("--export", metavar="CSV", type=Path, help="write the votes there, and serve nothing")
    parser.add_argument(
        "--import", metavar="CSV", type=Path, dest="taken", help="take in votes, each once, and serve nothing"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=natural, default=PORT, help="0: one that is free (default: %(default)s)")
    parser.add_argument("--token", help="what the voters' link ends in (default: made where others reach the host)")
    parser.add_argument("--owner-token", help="of the owner's link, which shows board and votes (default: made)")
    parser.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[], help="answer to this name, too; repeatable"
    )
    parser.add_argument("--hide-board", action="store_true", help="the board is the owner's only")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=run_arena)


def run_arena(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, or export or import votes."""
    from launch.arena.databases import Unavailable, open_database
    from launch.arena.store import prepare

    questions = _questions(args.questions)
    if args.port >= 2**16:
        raise UserError(f"port={args.port}: expected 0 to 65535")
    if args.export is not None and args.taken is not None:
        raise UserError("export, import: expected one of them")
    folder = _folder(args.folder)
    place = args.votes or str(folder / FILE)
    if args.export is not None and "://" not in place and not Path(place).exists():
        raise UserError(f"votes={place!r}: no votes there; expected what `mmdit arena` made")
    gallery = _gallery(folder) if args.export is None and args.taken is None else None
    with contextlib.closing(open_database(place)) as database:
        try:
            prepare(database)
            if gallery is not None:
                return _serve(gallery, database, questions, args)
            return _export(database, args) if args.export is not None else _import(database, args)
        except Unavailable as error:
            raise UserError(f"votes={error}; try again") from error


def _folder(root: str) -> Path:
    if "://" in root:
        raise UserError(f"root={root!r}: expected a folder of this machine; copy the study's samples here")
    folder = Path(root)
    if not folder.is_dir():
        near = Path("studies") / folder  # the commands that run models take a study's name
        told = f"did you mean {near}?" if near.is_dir() else "expected a study's folder, as studies/quickstart"
        raise UserError(f"root={root!r}: no such folder; {told}")
    return folder


def _questions(text: str) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(question.strip() for question in text.split(",") if question.strip()))
    if not asked or not set(asked) <= set(QUESTIONS):
        raise UserError(f"questions={text!r}: expected some of {', '.join(QUESTIONS)}")
    return asked


def _gallery(folder: Path) -> Gallery:
    from launch.arena.gallery import open_gallery

    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise UserError("arena: needs aiohttp; pip install 'mmdit-jax[arena]'") from None
    return open_gallery(folder)


def _export(database: Database, args: argparse.Namespace) -> int:
    from launch.arena import store
    from launch.arena.votes_csv import to_csv

    votes = database.read(store.votes)
    if not args.export.parent.is_dir():
        raise UserError(f"export={str(args.export)!r}: no such folder")
    write_atomic(args.export, to_csv(votes))
    return _say(args, {"votes": len(votes), "path": str(args.export)}, f"{len(votes)} votes to {args.export}")


def _import(database: Database, args: argparse.Namespace) -> int:
    from launch.arena import store
    from launch.arena.votes_csv import from_table, read_csv

    votes = from_table(read_csv(args.taken), QUESTIONS)
    new = database.write(lambda cursor: store.add(cursor, votes)).result()
    return _say(args, {"votes": len(votes), "new": new}, f"{new} new of {len(votes)} votes in {args.taken}")


def _serve(gallery: Gallery, database: Database, questions: tuple[str, ...], args: argparse.Namespace) -> int:
    from launch.arena.access import Access, check_token, is_loopback
    from launch.arena.board import Board
    from launch.arena.pairs import Pairs
    from launch.arena.server import Arena
    from launch.arena.store import kept_token, total

    token, owner = args.token, args.owner_token
    for name, given in (("token", token), ("owner-token", owner)):
        if given is not None:
            check_token(name, given)
    # By another name it is a proxy that asks, for whoever reaches that.
    if not all(map(is_loopback, (args.host, *args.allow_host))) and token is None:
        token = kept_token(database, "voter")
    if owner is None and (token is not None or args.hide_board):
        owner = kept_token(database, "owner")
    if token is not None and token == owner:
        raise UserError("owner-token: the same as the token; expected another one")
    with _listening(args.host, args.port) as listener:
        port = listener.getsockname()[1]
        arena = Arena(
            gallery,
            database,
            Pairs(gallery, database, questions),
            Board(database, questions),
            Access(token, owner, tuple(args.allow_host), port),
            questions,
            args.hide_board,
        )
        own, base = _addresses(args.host, port, args.allow_host)
        told: dict[str, Any] = {
            "url": base + (f"?token={token}" if token else ""),
            "board": base + "board" + (f"?token={owner}" if owner else ""),
            "address": own,
            "runs": len(gallery.runs),
            "pairs": arena.pairs.count,
            "groups": arena.pairs.groups,
            "votes": database.read(total),
            "place": database.where,
        }
        lines = [
            told["url"],
            f"board: {told['board']}",
            *([] if own == base else [f"listening at {own} for the proxy"]),
        ]
        lines.append(f"{told['runs']} runs, {told['pairs']} pairs; {told['votes']} votes in {told['place']}")
        lines += _apart(told["groups"])
        asyncio.run(_until_told(arena, listener, lambda: _say(args, told, "\n".join(lines))))
    return EXIT_OK


def _addresses(host: str, port: int, names: Sequence[str]) -> tuple[str, str]:
    """Where is listened, and what links begin with. A name that leads to this machine alone is that of a proxy, which
    speaks TLS at its usual port."""
    from launch.arena.access import is_loopback

    def address(name: str) -> str:
        return f"http://{f'[{name}]' if ':' in name else name}:{port}/"

    own = address(socket.gethostname() if host in ("0.0.0.0", "::", "") else host)
    if not names:
        return own, own
    return own, f"https://{names[0]}/" if is_loopback(host) and not is_loopback(names[0]) else address(names[0])


def _apart(groups: Sequence[Sequence[str]]) -> list[str]:
    """Which runs can't be compared, in lines."""
    from launch.arena.notes import listed

    together = [group for group in groups if len(group) > 1]
    lines = []
    if len(together) > 1:
        told = "; ".join(listed(group) for group in together)
        lines.append(f"{len(together)} groups that share no prompt, each rated apart: {told}")
    if alone := [group[0] for group in groups if len(group) == 1]:
        lines.append(f"not shown, for want of a prompt in common with another run: {listed(alone)}")
    return lines


def _listening(host: str, port: int) -> socket.socket:
    """A socket that connections queue at from now on."""
    from launch.arena.connections import WAITING

    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=WAITING)
    except socket.gaierror as error:
        raise UserError(f"host={host!r}: {error.strerror}; expected an address of this machine") from error
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(f"host={host!r}, port={port}: {reason}; try --port 0 for one that is free") from error


async def _until_told(arena: Arena, listener: socket.socket, ready: Callable[[], object]) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are answered first."""
    from aiohttp import web

    from launch.arena.connections import SILENT_SECONDS, Room, most_connections

    end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    room, app = Room(most_connections()), arena.app()
    app.middlewares.append(room.middleware)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=LEAVING_SECONDS, keepalive_timeout=SILENT_SECONDS)
    await runner.setup()
    assert runner.server is not None
    taking = asyncio.create_task(room.take(runner.server, listener))
    ready()
    told = asyncio.create_task(end.wait())
    await asyncio.wait({taking, told}, return_when=asyncio.FIRST_COMPLETED)
    taking.cancel()
    await runner.cleanup()
    with contextlib.suppress(asyncio.CancelledError):
        await taking


def _say(args: argparse.Namespace, told: dict[str, Any], text: str) -> int:
    print(json.dumps(told) if args.json else text, flush=True)
    return EXIT_OK
