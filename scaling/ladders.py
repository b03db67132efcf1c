"""Ladders of runs with a fixed amount of data a parameter: a law of compute for each, and which is lowest where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.clusters import clusters
from scaling.errors import TableError
from scaling.law_kinds import POWER
from scaling.laws import Law, fit_law
from scaling.plain import plain
from scaling.tables import labels, numbers, require

FLOOR_FROM = 5
"""Different compute values from which on a ladder's law has a floor: two more than it then has parameters."""
LEAST = 3
"""Different compute values below which a ladder has no law."""
SAME_COMPUTE = 1e-3
"""Difference of log C up to which two runs have the same compute."""


@dataclass(frozen=True)
class Ladder:
    """Rows of one D/N, and their law L = E + a·C^(−b), or a·C^(−b) where they are too few to show a floor."""

    ratio: float
    """D/N, the geometric mean of its rows."""
    ratios: tuple[float, float]
    """From the least to the greatest."""
    rows: int
    steps: int
    """Different values of compute."""
    law: Law | None
    doubts: tuple[str, ...]
    """What its law leaves open, or why there is none."""

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""
        return {
            "ratio": self.ratio,
            "ratios": list(self.ratios),
            "rows": self.rows,
            "steps": self.steps,
            "law": None if self.law is None else self.law.to_json(),
            "doubts": list(self.doubts),
        }


@dataclass(frozen=True)
class Predicted:
    """A ladder's loss at some compute."""

    ratio: float
    loss: float
    low: float
    high: float
    certainty: float
    """Share of the resamples in which it is the lowest ladder; NaN without resamples."""
    beyond: float
    """Compute over the largest of the ladder (or the least over it); 1 within its range."""
    doubts: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""
        numbers_of = ("ratio", "loss", "low", "high", "certainty", "beyond")
        return {**{name: plain(getattr(self, name)) for name in numbers_of}, "doubts": list(self.doubts)}


def ladders(
    table: pd.DataFrame,
    *,
    n: str,
    d: str,
    compute: str,
    loss: str,
    group: str | None = None,
    tolerance: float = 0.15,
    huber: float = 1e-3,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Ladder, ...]:
    """The ladders of a table, from the least D/N on: rows whose log D/N follow each other within ``tolerance``.

    A ladder with FLOOR_FROM different compute values has a law with a floor, with LEAST one without, with fewer none.
    ``group`` names rows that share a fate (a run); ``huber`` and ``draws`` are ``fit_law``'s.

    Raises TableError for absent columns, values that are no positive numbers, a bad tolerance, or ratios that spread so
    evenly that a ladder's differ by more than twice the tolerance and a factor of two.
    """
    require(table, [n, d, compute, loss, *([group] if group is not None else [])])
    if not 0 < tolerance < 1:
        raise TableError(f"tolerance={tolerance:g}: expected a number between 0 and 1, such as 0.15 for 15 %")
    size, data, cost, value = (numbers(table, column, positive=True) for column in (n, d, compute, loss))
    member = np.arange(len(table)) if group is None else labels(table, group).astype(str)
    log_ratio = np.log(data / size)
    index = clusters(log_ratio, tolerance)
    found = []
    for key in range(int(index.max(initial=-1)) + 1):
        own = index == key
        ratios = np.exp(log_ratio[own])
        if np.ptp(log_ratio[own]) > max(2 * tolerance, np.log(2)):
            raise TableError(
                f"{d}/{n}: from {ratios.min():.4g} to {ratios.max():.4g} without a gap of {tolerance:g} in the log; "
                "expected ladders of one ratio each, or a smaller tolerance"
            )
        law, doubts = _law(cost[own], value[own], member[own], huber, draws, level, seed + key)
        found.append(
            Ladder(
                ratio=float(np.exp(log_ratio[own].mean())),
                ratios=(float(ratios.min()), float(ratios.max())),
                rows=int(own.sum()),
                steps=_steps(cost[own]),
                law=law,
                doubts=doubts,
            )
        )
    return tuple(found)


def _steps(cost: np.ndarray) -> int:
    return int(clusters(np.log(cost), SAME_COMPUTE).max()) + 1


def _law(
    cost: np.ndarray, loss: np.ndarray, member: np.ndarray, huber: float, draws: int, level: float, seed: int
) -> tuple[Law | None, tuple[str, ...]]:
    steps = _steps(cost)
    if steps < LEAST:
        return None, (f"{steps} different values of compute: no law; expected {LEAST} or more",)
    floor = steps >= FLOOR_FROM
    try:
        law = fit_law(POWER, [cost], loss, floor=floor, groups=member, huber=huber, draws=draws, level=level, seed=seed)
    except TableError as error:
        return None, (str(error),)
    thin = () if floor else (f"{steps} different values of compute cannot show a floor: the law has none",)
    return law, (*thin, *law.reasons)


def compare(found: Sequence[Ladder], compute: float) -> tuple[Predicted, ...]:
    """What each ladder with a law comes to at ``compute``, the lowest loss first.

    Intervals are of the law's mean by its profile. Ladders are resampled apart from each other; each one's resamples
    are stretched about its law by Student's t for its few runs, and count once for whichever ladder is lowest in them.

    Raises TableError for a compute that is no positive number, or where no ladder has a law.
    """
    if not (np.isfinite(compute) and compute > 0):
        raise TableError(f"compute={compute:g}: expected a number above 0")
    known = [ladder for ladder in found if ladder.law is not None]
    if not known:
        raise TableError(f"ladders: none of {len(found)} has a law; expected {LEAST} or more different compute values")
    at = np.array([compute])
    drawn, rows = [], []
    for ladder in known:
        law = ladder.law
        assert law is not None
        loss = float(law.predict(at)[0])
        low, high = (float(end[0]) for end in law.profile_band(at))
        least, most = law.compute_range
        beyond = max(compute / most, least / compute, 1.0)
        drawn.append(law.draws_of(at)[:, 0])
        rows.append((ladder, loss, low, high, beyond))
    draws = min(len(column) for column in drawn)
    lowest = np.argmin(np.stack([column[:draws] for column in drawn]), axis=0) if draws else np.zeros(0)
    predicted = [
        Predicted(
            ratio=ladder.ratio,
            loss=loss,
            low=low,
            high=high,
            certainty=float((lowest == place).mean()) if draws else float("nan"),
            beyond=beyond,
            doubts=ladder.doubts,
        )
        for place, (ladder, loss, low, high, beyond) in enumerate(rows)
    ]
    return tuple(sorted(predicted, key=lambda row: row.loss))
