"""Moments in a long computation without steps (drawing, gathering) at which its caller is asked whether it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_ACT: ContextVar[Callable[[], None] | None] = ContextVar("act", default=None)


def pause() -> None:
    """A piece is done, and another follows. All processes of a run come here equally often, in the same order."""
    act = _ACT.get()
    if act is not None:
        act()


@contextlib.contextmanager
def at_pauses(act: Callable[[], None]) -> Iterator[None]:
    """Until the block ends ``act`` is called at every pause; what it raises ends the computation."""
    token = _ACT.set(act)
    try:
        yield
    finally:
        _ACT.reset(token)
