"""Where the wall time of a training loop goes, for the events from which goodput is counted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

NAMES = ("compile", "data", "checkpoint", "validation")
"""What the loop waits for beside its steps; all other time is ``step``."""


class Ledger:
    """Every second since it was made belongs to one of ``NAMES``, or to ``step``."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._begun = clock, clock()
        self._spent = dict.fromkeys(NAMES, 0.0)
        self._now: tuple[str, float] | None = None

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """What happens in here is time of ``name``. Blocks don't lie in one another."""
        self._now = name, self._clock()
        try:
            yield
        finally:
            self._spent[name] += self._clock() - self._now[1]
            self._now = None

    def totals(self) -> dict[str, float]:
        """Seconds by name, from the beginning."""
        now, spent = self._clock(), dict(self._spent)
        if self._now is not None:
            spent[self._now[0]] += now - self._now[1]
        return {**spent, "step": now - self._begun - sum(spent.values())}


class Account:
    """One run's share of a ledger: of runs that train side by side each has an equal one."""

    def __init__(self, ledger: Ledger, share: float = 1.0) -> None:
        self._ledger, self._share, self._told = ledger, share, dict.fromkeys((*NAMES, "step"), 0.0)

    def take(self) -> dict[str, float]:
        """Seconds by name since this was last called; names without any are left out."""
        totals = self._ledger.totals()
        spent = {name: round(self._share * (totals[name] - self._told[name]), 4) for name in totals}
        self._told = totals
        return {name: seconds for name, seconds in spent.items() if seconds > 0}
