"""Who may write below a URL, where no kernel keeps a lock: an object with a name in it, and until when it holds.

It is renewed by a thread as long as its holder lives. One that was killed leaves it behind, and others wait until it is
over. A holder that could not renew it in time ends itself: by then somebody else may have taken it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence

from mmdit_jax.errors import EXIT_INFRASTRUCTURE, Held
from mmdit_jax.remote import Remote, get_all

SECONDS = 180.0
"""How long a lease holds after it was renewed; clocks of hosts may differ by a part of it."""
_SETTLE = 1.0
"""After taking what was over: of two that did so, the later one's name stands by then."""


@contextlib.contextmanager
def lease(remote: Remote, what: str, wait_seconds: float = 0.0, seconds: float = SECONDS) -> Iterator[None]:
    """Hold the object until the block ends.

    Raises:
      Held: somebody else holds it, for ``wait_seconds`` and longer.
    """
    owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
    until = time.monotonic() + wait_seconds
    while not _take(remote, owner, seconds):
        if time.monotonic() >= until:
            raise Held(f"{what}: another process is at it ({_owner(remote) or 'just ended'}); wait for it, or stop it")
        time.sleep(min(2.0, seconds / 10))
    ended = threading.Event()
    renewer = threading.Thread(target=_renew, args=(remote, owner, seconds, ended), name="lease", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()
        if _owner(remote) == owner:
            remote.delete()


def are_leased(remotes: Sequence[Remote]) -> list[bool]:
    """Whether somebody holds each of them now; the store is asked for all at once."""
    told = [_told(content) for content in get_all(remotes)]
    now = time.time()
    return [item is not None and item[1] > now for item in told]


def is_leased(remote: Remote) -> bool:
    """Whether somebody holds it now."""
    return are_leased([remote])[0]


def _take(remote: Remote, owner: str, seconds: float) -> bool:
    if remote.create(_text(owner, seconds)):
        return True
    told = _read(remote)
    if told is not None and told[1] > time.time():
        return False
    if _read(remote) == told:  # and nobody else has taken it since
        remote.delete()
    if not remote.create(_text(owner, seconds)):
        return False
    time.sleep(min(_SETTLE, seconds / 4))
    return _owner(remote) == owner


def _renew(remote: Remote, owner: str, seconds: float, ended: threading.Event) -> None:
    renewed = time.monotonic()

    def watch() -> None:  # a store that doesn't answer at all would have the renewal wait beyond the lease's end
        while not ended.wait(seconds / 20):
            if time.monotonic() - renewed > 0.9 * seconds:
                print(f"mmdit: lease of {remote.url}: the store doesn't answer; this process ends", file=sys.stderr)
                os._exit(EXIT_INFRASTRUCTURE)

    threading.Thread(target=watch, name="lease's end", daemon=True).start()
    while not ended.wait(seconds / 4):
        line = "it could not be renewed"
        try:
            if _owner(remote) == owner:
                remote.put(_text(owner, seconds))
                renewed = time.monotonic()
                continue
            line = "somebody else has taken it"
        except Exception as error:  # of the file system, which has its own
            line = f"it could not be renewed ({error})"
            if time.monotonic() - renewed < 0.75 * seconds:
                continue
        print(f"mmdit: lease of {remote.url}: {line}; this process ends", file=sys.stderr, flush=True)
        os._exit(EXIT_INFRASTRUCTURE)


def _text(owner: str, seconds: float) -> bytes:
    return json.dumps({"owner": owner, "until": time.time() + seconds}).encode()


def _read(remote: Remote) -> tuple[str, float] | None:
    return _told(remote.get())


def _told(content: bytes | None) -> tuple[str, float] | None:
    if content is None:
        return None
    try:
        told = json.loads(content)
        return str(told["owner"]), float(told["until"])
    except (ValueError, KeyError, TypeError):
        return None


def _owner(remote: Remote) -> str | None:
    told = _read(remote)
    return None if told is None else told[0]
