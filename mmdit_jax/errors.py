"""The one exception a user sees as a single line, and the exit codes every engine agrees on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NoReturn

EXIT_OK = 0
EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_PREEMPTED = 75
EXIT_INFRASTRUCTURE = 160
"""And all codes from 128 on: what ended by a signal, an abort of JAX's, a machine that went away."""
EXIT_HUNG = 128 + 14
"""SIGALRM, by which the watchdog ends a process: see ``mmdit_jax.watchdog``."""


class UserError(ValueError):
    """Bad input, told in one line: which field, which value, what would work. Exit code 2."""


class Diverged(RuntimeError):
    """The loss or its gradient is not finite. The run is not tried again: it would do the same."""


class Preempted(RuntimeError):
    """SIGTERM came; everything is saved. Run me again."""


class Held(UserError):
    """Another attempt is at the run. An executor's attempt waits for it, and comes again: it may be one that was lost
    sight of."""


class Infrastructure(RuntimeError):
    """Not the run's fault: a process, a host or a link is gone. Run me again, a bounded number of times."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid name closest to ``name`` (case ignored); the first valid one where none is close."""
    names = list(valid)
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.0)
    return by_lower[close[0]] if close else names[0]


def unknown(field: str, value: str, valid: Iterable[str]) -> NoReturn:
    """Raise the error for a name that is not among ``valid``."""
    names = sorted(valid)
    raise UserError(f"{field}={value!r}: unknown; did you mean {nearest(value, names)!r}? (one of: {', '.join(names)})")
