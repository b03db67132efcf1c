"""Connections that an arena holds open: as many as the host allows, and none that keeps others from voting."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from mmdit_jax.host import allow_open_files

log = logging.getLogger(__name__)

SILENT_SECONDS = 30.0
"""A connection that sends no whole request within so long is closed."""
WAITING = 1024
"""Connections that the kernel holds until they are taken."""
OTHERS = 128
"""Files that images and votes may need beside connections."""
WANTED = (8192, 4096, 2048, 1024)
_IDLE_SECONDS = 1.0
"""After that a connection that asks for nothing may be closed for another one."""
_PAUSE_SECONDS = 0.02


def most_connections() -> int:
    """How many may be open, once this process may hold as many files open as the host lets it."""
    _ = any(allow_open_files(count) for count in WANTED)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED[0] if files == resource.RLIM_INFINITY else max(files - OTHERS, files // 2)


class Room:
    """Takes connections, ``most`` at a time. For one more the one is closed that has asked for nothing for longest.

    Browsers open up to six, keep them, and open them anew when they need them. Where all are in use the kernel holds
    who comes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._asking: set[object] = set()
        self._used: dict[web.RequestHandler, float] = {}
        """When each was last opened or answered; some have ended since."""

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Knows which connections are asking."""
        self._asking.add(request.protocol)
        try:
            return await handler(request)
        finally:
            self._asking.discard(request.protocol)
            self._used[request.protocol] = time.monotonic()

    async def take(self, server: web.Server, listener: socket.socket) -> None:
        """Take connections until cancelled."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        opening: set[asyncio.Task[None]] = set()
        while True:
            if not await self._has_room(server, len(opening)):
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            try:
                taken, _ = await loop.sock_accept(listener)
            except OSError as error:  # the host has no file left, say
                log.warning("a connection can't be taken (%s)", error.strerror)
                await asyncio.sleep(_IDLE_SECONDS)
                continue
            task = loop.create_task(self._open(server, taken))
            opening.add(task)
            task.add_done_callback(opening.discard)

    async def _open(self, server: web.Server, taken: socket.socket) -> None:
        try:
            _, connection = await asyncio.get_running_loop().connect_accepted_socket(server, taken)
            self._used[connection] = time.monotonic()
        except OSError:  # it has gone already
            taken.close()

    async def _has_room(self, server: web.Server, opening: int) -> bool:
        """Whether one more may come, now that another one may have been closed for it."""
        if len(self._used) + opening < self._most:
            return True
        now = time.monotonic()
        held = [one for one in server.connections if one.transport is not None]
        self._used = {one: self._used.get(one, now) for one in held}
        if len(held) + opening < self._most:
            return True
        idle = [one for one in held if one not in self._asking and self._used[one] < now - _IDLE_SECONDS]
        if not idle:
            return False
        oldest = min(idle, key=self._used.__getitem__)
        oldest.force_close()
        del self._used[oldest]
        await asyncio.sleep(0)  # its file is closed by the loop
        return True
