"""How much of its score a model loses with fewer sampling steps, and how long its path is (SD3's Table 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.cells import read_cells
from scaling.errors import TableError
from scaling.repeats import repeats
from scaling.resample import how_resampled, interval
from scaling.tables import numbers, require


@dataclass(frozen=True)
class Value:
    """A number and its interval, NaN where nothing could be resampled."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers, None where there is no interval."""
        found = {"value": self.value, "low": self.low, "high": self.high}
        return {key: float(number) if np.isfinite(number) else None for key, number in found.items()}


@dataclass(frozen=True)
class Efficiency:
    """One group: its score at most steps, the relative loss in % at each smaller number, the path at most steps."""

    group: str
    score: Value
    losses: tuple[Value, ...]
    path: Value | None


@dataclass(frozen=True)
class EfficiencyTable:
    """Groups in order, with ``steps`` ascending (the last is what the others are measured against).

    ``samples [draws, groups, steps − 1]`` are the losses in % behind the intervals, joint for all groups.
    """

    rows: tuple[Efficiency, ...]
    steps: tuple[int, ...]
    score: str
    resampled: str
    level: float
    seeds: int
    samples: np.ndarray

    @property
    def draws(self) -> int:
        """Resamples behind the intervals."""
        return len(self.samples)

    @property
    def how(self) -> str:
        """What the intervals are made of, in words."""
        return how_resampled(self.resampled, self.level, self.draws, self.seeds)

    def difference(self, first: int, second: int, steps: int = 0) -> Value:
        """Loss of group ``first`` less that of ``second`` at the number of steps with this index, in points of %."""
        value = self.rows[first].losses[steps].value - self.rows[second].losses[steps].value
        if not self.draws:
            return Value(value, float("nan"), float("nan"))
        apart = self.samples[:, first, steps] - self.samples[:, second, steps]
        low, high = interval(apart, self.level, centre=value)
        return Value(value, float(low), float(high))

    def to_json(self) -> dict[str, object]:
        """The object that ``efficiency --json`` prints; ``loss`` has a key a number of steps, in %."""
        rows = [
            {
                "group": row.group,
                "score": row.score.to_json(),
                "loss": {str(steps): value.to_json() for steps, value in zip(self.steps[:-1], row.losses, strict=True)},
                "path": None if row.path is None else row.path.to_json(),
            }
            for row in self.rows
        ]
        return {
            "rows": rows,
            "steps": list(self.steps),
            "resampled": self.resampled,
            "level": self.level,
            "draws": self.draws,
        }


def efficiency(
    table: pd.DataFrame,
    *,
    group: str = "depth",
    steps: str = "steps",
    score: str = "clip",
    path: str | None = "path_length",
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> EfficiencyTable:
    """Relative loss of ``score`` at each number of steps k against the largest K, 100·(s_K − s_k)/s_K, in %.

    ``table`` has a row a (group, steps[, seed][, draw]), as ``rank`` reads it: scores are averaged over seeds, and
    intervals come from resamples of prompts and seeds, the same for all numbers of steps, whose scores rise and fall
    together. ``path`` is the column of path lengths Σ‖v dt‖, reported at K; None leaves it out.

    Raises TableError for absent columns, several rows for one cell, fewer than 2 numbers of steps, or a score at K
    that is not above 0, since there is nothing to be relative to.
    """
    require(table, [group, steps, score, *([path] if path is not None else [])])
    counts = numbers(table, steps, positive=True)
    if (counts != np.round(counts)).any():
        row = int(np.argmax(counts != np.round(counts)))
        raise TableError(f"{steps}={counts[row]:g} (row {row + 1}): expected a whole number")
    if bootstrap < 0:
        raise TableError(f"bootstrap={bootstrap}: expected 0 or more")
    wanted = [score] if path is None else [score, path]
    cells = read_cells(
        table,
        (group, steps),
        wanted,
        repeated="expected one; choose one setting with --where, or tell trainings apart by seed",
    )
    places = np.argsort([float(label) for label in cells.columns], kind="stable")
    found = tuple(int(float(cells.columns[place])) for place in places)
    if len(found) < 2:
        raise TableError(f"{steps}={found[0]} in every row: expected 2 or more numbers of steps to compare")
    means = {column: cells.mean(column)[:, places] for column in wanted}
    flat = means[score][:, -1] <= 0
    if flat.any():
        row = int(np.argmax(flat))
        raise TableError(
            f"{score}={means[score][row, -1]:g} for {group}={cells.rows[row]} at {steps}={found[-1]}: "
            "expected above 0 to take a relative loss"
        )
    resampled = cells.resampled if bootstrap else "none"
    drawn = None
    if resampled != "none":
        found_again = repeats(cells, bootstrap, np.random.default_rng(seed))
        drawn = {column: scores[:, :, places] for column, scores in found_again.items()}

    def told(column: str, relative: bool) -> list[list[Value]]:
        statistic = _losses if relative else _last
        centre = statistic(means[column])
        ends = np.full((2, *centre.shape), np.nan)
        if drawn is not None:
            ends = interval(statistic(drawn[column]), level, centre=centre)
        return [
            [Value(float(centre[i, j]), float(ends[0, i, j]), float(ends[1, i, j])) for j in range(centre.shape[1])]
            for i in range(len(centre))
        ]

    best, losses = told(score, False), told(score, True)
    paths = None if path is None else told(path, False)
    rows = [
        Efficiency(label, best[i][0], tuple(losses[i]), None if paths is None else paths[i][0])
        for i, label in enumerate(cells.rows)
    ]
    order = sorted(range(len(rows)), key=lambda place: _order(rows[place].group))
    samples = np.zeros((0, len(rows), len(found) - 1)) if drawn is None else _losses(drawn[score])
    return EfficiencyTable(
        rows=tuple(rows[place] for place in order),
        steps=found,
        score=score,
        resampled=resampled,
        level=level,
        seeds=len(cells.seeds),
        samples=samples[:, order],
    )


def _losses(scores: np.ndarray) -> np.ndarray:
    """``[..., steps]`` -> relative loss in % of all but the last against the last, ``[..., steps − 1]``."""
    last = scores[..., -1:]
    return 100 * (last - scores[..., :-1]) / last


def _last(scores: np.ndarray) -> np.ndarray:
    return scores[..., -1:]


def _order(label: str) -> tuple[int, float, str]:
    """Numbers by value, before words."""
    try:
        return (0, float(label), "")
    except ValueError:
        return (1, 0.0, label)
