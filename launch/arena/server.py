"""The arena over HTTP: what each address answers. What waits for a disk or computes is off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from launch.arena import store
from launch.arena.access import VOTER_COOKIE, YEAR, Access, voter_of
from launch.arena.board import Board
from launch.arena.connections import SILENT_SECONDS
from launch.arena.databases import Cursor, Database, Unavailable
from launch.arena.gallery import Gallery
from launch.arena.pairs import Pairs
from launch.arena.store import OUTCOMES, Ticket
from launch.arena.votes_csv import ID, to_csv

log = logging.getLogger(__name__)
T = TypeVar("T")
STATIC = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
LARGEST = 4096
"""Bytes of a request."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Nothing is kept: neither a validator nor a date tells two images of one run.
    "Cache-Control": "no-store",
    "Server": "mmdit",
}


def static_files() -> dict[str, bytes]:
    """Pages, styles and scripts by name."""
    return {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in TYPES}


@dataclass(frozen=True)
class Arena:
    """What a server serves. Addresses hold nothing but ids of tickets, which are random."""

    gallery: Gallery
    database: Database
    pairs: Pairs
    board: Board
    access: Access
    questions: tuple[str, ...]
    hide_board: bool = False
    files: Mapping[str, bytes] = field(default_factory=static_files)

    def app(self) -> web.Application:
        """The application; closing the database is left to the caller."""
        app = web.Application(client_max_size=LARGEST, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/", self._page("vote.html")),
                web.get("/board", self._page("board.html")),
                web.get("/static/{name}", self._static),
                web.post("/api/ticket", self._ticket),
                web.post("/api/vote", self._vote),
                web.get("/api/board", self._board),
                web.get("/image/{ticket}/{side}", self._image),
                web.get("/votes.csv", self._csv),
            ]
        )
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            self.access.check_names(request)
            role = self.access.role(request)
            if role is None:
                raise web.HTTPUnauthorized(text="this arena is open by its link only, which ends in ?token=…\n")
            if role != "owner" and self._is_owners(request.path):
                raise web.HTTPForbidden(text="for the owner of this arena, by the owner's link\n")
            response = await handler(request)
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=error.text)
        except Unavailable as error:
            log.warning("%s", error)
            response = web.Response(status=503, text="the votes can't be reached just now\n")
            response.headers["Retry-After"] = "1"
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s %s", request.method, request.path)
            response = web.Response(status=500, text="an error in the arena; its log tells more\n")
        response.headers.update(HEADERS)
        return response

    def _is_owners(self, path: str) -> bool:
        return path == "/votes.csv" or (self.hide_board and path in ("/board", "/api/board"))

    def _page(self, name: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def page(request: web.Request) -> web.StreamResponse:
            token = request.query.get("token")
            response: web.StreamResponse
            if token is None:
                response = web.Response(body=self.files[name], content_type="text/html", charset="utf-8")
            else:
                response = web.Response(status=303, headers={"Location": request.path})
                if self.access.owner_token is not None:
                    self.access.remember(response, token)
            return _known(response, voter_of(request)[1])

        return page

    async def _static(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in self.files:
            raise web.HTTPNotFound(text="no such file\n")
        return web.Response(body=self.files[name], content_type=TYPES[Path(name).suffix], charset="utf-8")

    async def _ticket(self, request: web.Request) -> web.StreamResponse:
        """The open ticket of who asks, or a new one; ``ticket`` is null where there is nothing left to see."""
        await _json(request)
        voter, new = voter_of(request)
        ticket = await self._write(lambda cursor: self._open(cursor, voter))
        if ticket is None:
            candidates = await asyncio.to_thread(self.pairs.ordered)
            ticket = await self._write(lambda cursor: store.issue(cursor, voter, candidates, self.questions))
        told: dict[str, Any] = {"ticket": None}
        if ticket is not None:
            answers = await self._read(lambda cursor: store.answers(cursor, ticket.ticket))
            told = {
                "ticket": ticket.ticket,
                "prompt": ticket.item.prompt,
                "left": f"/image/{ticket.ticket}/left",
                "right": f"/image/{ticket.ticket}/right",
                "questions": ticket.questions,
                "answers": answers,
            }
        told["judged"] = await self._read(lambda cursor: store.judged(cursor, voter))
        told["board"] = not self._is_owners("/board") or self.access.role(request) == "owner"
        return _known(web.json_response(told), new)

    def _open(self, cursor: Cursor, voter: str) -> Ticket | None:
        """The open ticket, unless its images are not here any more."""
        ticket = store.open_ticket(cursor, voter)
        if ticket is not None and not self.gallery.both(ticket.left, ticket.right, ticket.item):
            store.drop(cursor, ticket)
            return None
        return ticket

    async def _vote(self, request: web.Request) -> web.StreamResponse:
        """Count an answer once; asked again it says what was counted, whatever is given then."""
        given = await _json(request)
        question, outcome = given.get("question"), given.get("outcome")
        ticket = await self._own(request, given.get("ticket"))
        if question not in ticket.questions:
            raise web.HTTPBadRequest(text=f"question: expected one of {', '.join(ticket.questions)}\n")
        if outcome not in OUTCOMES:
            raise web.HTTPBadRequest(text=f"outcome: expected one of {', '.join(OUTCOMES)}\n")
        answers = await self._write(lambda cursor: store.vote(cursor, ticket, str(question), str(outcome)))
        return web.json_response({"counted": answers[str(question)], "answers": answers})

    async def _image(self, request: web.Request) -> web.StreamResponse:
        ticket = await self._own(request, request.match_info["ticket"])
        run = {"left": ticket.left, "right": ticket.right}.get(request.match_info["side"])
        if run is None or ticket.item not in self.gallery.images.get(run, ()):
            raise web.HTTPNotFound(text="no such image\n")
        try:
            png = await asyncio.to_thread(self.gallery.png, run, ticket.item)
        except (OSError, ValueError) as error:
            log.warning("%s: can't be shown (%s)", self.gallery.images[run][ticket.item], error)
            raise web.HTTPNotFound(text="the image can't be read\n") from None
        return web.Response(body=png, content_type="image/png")

    async def _board(self, request: web.Request) -> web.StreamResponse:
        told = await asyncio.to_thread(self.board.current)
        return web.json_response({**told, "csv": self.access.role(request) == "owner"})

    async def _csv(self, request: web.Request) -> web.StreamResponse:
        text = await self._read(lambda cursor: to_csv(store.votes(cursor)))
        disposition = {"Content-Disposition": 'attachment; filename="votes.csv"'}
        return web.Response(text=text, content_type="text/csv", charset="utf-8", headers=disposition)

    async def _own(self, request: web.Request, ticket_id: object) -> Ticket:
        """The ticket of that id, if it is of who asks; raises web.HTTPNotFound."""
        if isinstance(ticket_id, str) and ID.fullmatch(ticket_id):
            ticket = await self._read(lambda cursor: store.find_ticket(cursor, ticket_id))
            if ticket is not None and ticket.voter == voter_of(request)[0]:
                return ticket
        raise web.HTTPNotFound(text="no such ticket of yours\n")

    async def _write(self, work: Callable[[Cursor], T]) -> T:
        return await asyncio.wrap_future(self.database.write(work))

    async def _read(self, work: Callable[[Cursor], T]) -> T:
        return await asyncio.to_thread(self.database.read, work)


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        async with asyncio.timeout(SILENT_SECONDS):
            given = await request.json()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the request did not end\n") from None
    except (ValueError, LookupError, RecursionError):  # the latter of a charset that there is not, brackets in brackets
        given = None
    if not isinstance(given, dict):
        raise web.HTTPBadRequest(text="expected a JSON object\n")
    return given


def _known(response: web.StreamResponse, cookie: str | None) -> web.StreamResponse:
    """Give whoever is new a name of their own."""
    if cookie is not None:
        response.set_cookie(VOTER_COOKIE, cookie, max_age=YEAR, httponly=True, samesite="Lax")
    return response
