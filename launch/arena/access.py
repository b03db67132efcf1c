"""Who may ask for what: tokens, the names a server answers to, and pages of other sites that must not vote."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from mmdit_jax.errors import UserError

VOTER_COOKIE = "arena_voter"
YEAR = 365 * 24 * 3600
SHORTEST = 8
"""Characters of a token."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at ``host``."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_token(name: str, token: str) -> None:
    """Raises UserError for a token that is easily guessed, or that a link can't hold."""
    if len(token) < SHORTEST or not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in token):
        raise UserError(
            f"{name}: expected {SHORTEST} or more of letters, digits, - and _; leave it out to get one made"
        )


@dataclass(frozen=True)
class Access:
    """What is asked of requests. Without tokens whoever reaches the server is its owner."""

    voter_token: str | None = None
    owner_token: str | None = None
    hosts: Collection[str] = ()
    """Names of this server besides those of this machine."""
    port: int = 0

    def role(self, request: web.Request) -> str | None:
        """ "owner", "voter", or none: the better of what the link, the header and the cookies say."""
        if self.owner_token is None:
            return "owner"
        scheme, _, header = request.headers.get("Authorization", "").partition(" ")
        given = [request.query.get("token", ""), header if scheme.lower() == "bearer" else ""]
        given += [request.cookies.get(self._cookie(role), "") for role in ("owner", "voter")]
        if any(_same(token, self.owner_token) for token in given):
            return "owner"
        # Where only the owner has a token, as on this machine with a hidden board, anyone may vote.
        if self.voter_token is None or any(_same(token, self.voter_token) for token in given):
            return "voter"
        return None

    def remember(self, response: web.StreamResponse, token: str) -> None:
        """Keep a token that is right in a cookie, so that it need not stay in the address bar."""
        role = "owner" if self.owner_token is not None and _same(token, self.owner_token) else "voter"
        response.set_cookie(self._cookie(role), token, max_age=YEAR, httponly=True, samesite="Lax")

    def check_names(self, request: web.Request) -> None:
        """Refuse a request by a name that is none of ours (DNS rebinding), and one from another site's page (CSRF).

        Raises:
          web.HTTPMisdirectedRequest, web.HTTPForbidden: with what to do.
        """
        host = _name(f"//{request.headers.get('Host', '')}")
        if not self._is_ours(host):
            raise web.HTTPMisdirectedRequest(
                text=f"{host!r} is no name of this server; start it with --allow-host NAME to serve that one\n"
            )
        if request.method in ("GET", "HEAD"):
            return
        origin = request.headers.get("Origin")
        # A browser says truly which page asks. That of an allowed name is ours, also where a proxy asks by another one.
        if origin is not None and _name(origin) != host and _name(origin) not in self._allowed():
            raise web.HTTPForbidden(text="from a page of another site\n")
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise web.HTTPForbidden(text="from a page of another site\n")
        if request.content_type != "application/json":  # a form of another site can't send that
            raise web.HTTPUnsupportedMediaType(text="expected application/json\n")

    def _is_ours(self, host: str) -> bool:
        """An address is always: names are what others can point at us."""
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            return True
        return host in {"localhost", socket.gethostname().lower()} or host in self._allowed()

    def _allowed(self) -> set[str]:
        return {name.lower() for name in self.hosts}

    def _cookie(self, role: str) -> str:
        return f"arena_{role}_{self.port}"  # cookies know no ports, and several arenas may be at one host


def voter_of(request: web.Request) -> tuple[str, str | None]:
    """(who is asking, the cookie to set where there was none). The cookie can't be told from the name."""
    cookie = request.cookies.get(VOTER_COOKIE, "")
    new = None
    if not 16 <= len(cookie) <= 64:
        cookie = new = secrets.token_urlsafe(16)
    return hashlib.sha256(cookie.encode()).hexdigest()[:16], new


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="backslashreplace"), token.encode())


def _name(url: str) -> str:
    """The host of a URL, lower case; "" where there is none."""
    with contextlib.suppress(ValueError):
        return (urlsplit(url).hostname or "").lower()
    return ""
