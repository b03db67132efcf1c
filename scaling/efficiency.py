"""How much of its score a model loses with fewer sampling steps, and how long its path is (SD3's Table 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.cells import Cells, read_cells
from scaling.errors import TableError
from scaling.plain import plain
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
        return {key: plain(number) for key, number in found.items()}


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

    ``table`` has a row a (group, steps[, seed][, draw]), as ``rank`` reads it. Every training loses against its own
    score at K, and a group's loss is the mean over its trainings. Intervals come from resampled prompts and from how
    far the trainings of a group lie apart (``scaling.repeats``). ``path`` is the column of path lengths Σ‖v dt‖,
    reported at K; None leaves it out.

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
    by_steps = {column: scores[:, places] for column, scores in cells.values.items()}
    flat = by_steps[score][:, -1, :, 0] <= 0
    if flat.any():
        row, training = (int(place[0]) for place in np.nonzero(flat))
        raise TableError(
            f"{score}={by_steps[score][row, -1, training, 0]:g} for {group}={cells.rows[row]} at {steps}={found[-1]}: "
            "expected above 0 to take a relative loss"
        )
    resampled = cells.resampled if bootstrap else "none"
    rng = np.random.default_rng(seed)

    def told(statistic: np.ndarray) -> tuple[list[list[Value]], np.ndarray]:
        """Mean over trainings with its interval, and samples of it, of ``[groups, values, seeds, 1 + draws]``."""
        labels = tuple(map(str, range(statistic.shape[1])))
        part = Cells(cells.rows, labels, cells.seeds, cells.draws, {"": statistic})
        centre, ends = part.mean(""), np.full((2, *statistic.shape[:2]), np.nan)
        samples = np.zeros((0, *statistic.shape[:2]))
        if resampled != "none":
            samples = repeats(part, bootstrap, rng)[""]
            ends = interval(samples, level, centre=centre)
        triples = np.stack([centre, *ends], axis=-1)
        return [[Value(*map(float, triple)) for triple in row] for row in triples], samples

    losses, samples = told(_losses(by_steps[score]))
    best, _ = told(by_steps[score][:, -1:])
    paths = None if path is None else told(by_steps[path][:, -1:])[0]
    rows = [
        Efficiency(label, best[i][0], tuple(losses[i]), None if paths is None else paths[i][0])
        for i, label in enumerate(cells.rows)
    ]
    order = sorted(range(len(rows)), key=lambda place: _order(rows[place].group))
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
    """``[groups, steps, seeds, 1 + draws]`` -> relative loss in % of all but the last number of steps against that."""
    last = scores[:, -1:]
    return 100 * (last - scores[:, :-1]) / last


def _order(label: str) -> tuple[int, float, str]:
    """Numbers by value, before words."""
    try:
        return (0, float(label), "")
    except ValueError:
        return (1, 0.0, label)
