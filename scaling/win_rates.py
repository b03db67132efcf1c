"""Win rates against one player, ties as half, with intervals over prompts and trainings: SD3's "win rate [%]"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.battle_counts import OUTCOMES, outcomes
from scaling.cells import Cells
from scaling.errors import TableError
from scaling.plain import plain
from scaling.repeats import repeats
from scaling.resample import group_counts, group_index, how_resampled, interval
from scaling.tables import labels, require

SOME = 100
"""So many resamples at a time: with 100,000 prompts, all at once would not fit."""


@dataclass(frozen=True)
class WinRate:
    """How often ``name`` wins: ``rate`` in [0, 1] with its interval (NaN where nothing could be resampled)."""

    name: str
    question: str
    rate: float
    low: float
    high: float
    battles: int


@dataclass(frozen=True)
class WinRates:
    """Rows in order of the table, and what their intervals are made of."""

    rows: tuple[WinRate, ...]
    against: str
    trainings: int
    prompts: int
    how: str

    def to_json(self) -> dict[str, object]:
        """The object that ``winrate --json`` prints."""
        return {
            "against": self.against,
            "rows": [{**vars(row), "low": plain(row.low), "high": plain(row.high)} for row in self.rows],
            "trainings": self.trainings,
            "prompts": self.prompts,
        }


def win_rates(
    battles: pd.DataFrame,
    against: str,
    *,
    by: tuple[str, ...] = (),
    trainings: str | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> WinRates:
    """How often each player beats ``against``, from a table with columns prompt, left, right, outcome.

    A rate is the mean over trainings of the mean over their prompts of the mean over a prompt's battles. Prompts are
    resampled, the same for all; with two trainings or more their luck is drawn anew (``scaling.repeats``).

    Args:
        battles: battles of others are left out.
        against: the player to beat.
        by: columns by which rates are told apart, such as question and judge.
        trainings: column that tells trainings of the same recipe apart; every one must have met the same prompts.

    Raises TableError for absent columns, an outcome other than left, right, tie, a player that is not there, or
    trainings that were not asked the same.
    """
    require(battles, ["prompt", "left", "right", "outcome", *by, *([trainings] if trainings else [])])
    left, right = (labels(battles, column).astype(str) for column in ("left", "right"))
    outcome = np.array(OUTCOMES)[outcomes(battles)]
    if draws < 0:
        raise TableError(f"bootstrap={draws}: expected 0 or more")
    met = (left == against) != (right == against)
    if not met.any():
        raise TableError(
            f"against={against!r}: no battle with it; expected one of {', '.join(sorted({*left, *right}))}"
        )
    name = np.where(left == against, right, left)
    score = np.where(outcome == "tie", 0.5, (outcome == "left") == (right == against))
    table = pd.DataFrame({"name": name, "score": score, "prompt": labels(battles, "prompt").astype(str)})
    table["question"] = [", ".join(map(str, row)) for row in battles[list(by)].itertuples(index=False)] if by else ""
    table["training"] = labels(battles, trainings).astype(str) if trainings else ""
    table = table[met]
    cells = _cells(table, draws, np.random.default_rng(seed))
    centre = cells.mean("rate")
    ends = np.full((2, *centre.shape), np.nan)
    resampled = cells.resampled if draws else "none"
    if resampled != "none":
        samples = repeats(cells, draws, np.random.default_rng(seed))["rate"]
        ends = np.clip(interval(samples, level, centre=centre), 0.0, 1.0)
    fought = table.groupby(["name", "question"], sort=False).size()
    rows = [
        WinRate(player, question, float(centre[i, j]), float(ends[0, i, j]), float(ends[1, i, j]), int(count))
        for i, player in enumerate(cells.rows)
        for j, question in enumerate(cells.columns)
        if (count := fought.get((player, question), 0))
    ]
    how = how_resampled(resampled, level, draws, len(cells.seeds))
    return WinRates(tuple(rows), against, len(cells.seeds), table["prompt"].nunique(), how)


def _cells(table: pd.DataFrame, draws: int, rng: np.random.Generator) -> Cells:
    """Rates ``[names, questions, trainings, 1 + draws]``, over all prompts and over resamples of them.

    Raises TableError where a training lacks a prompt that another one of the same name and question has.
    """
    axes = ["name", "question", "training"]
    found = {axis: list(dict.fromkeys(table[axis])) for axis in axes}
    prompt, count = group_index(table["prompt"].to_numpy())
    place = np.ravel_multi_index(
        [pd.Index(found[axis]).get_indexer(table[axis]) for axis in axes] + [prompt],
        (*(len(found[axis]) for axis in axes), count),
    )
    shape = (*(len(found[axis]) for axis in axes), count)
    size = int(np.prod(shape))
    fought = np.bincount(place, minlength=size).reshape(shape).astype(np.float64)
    won = np.bincount(place, weights=table["score"], minlength=size).reshape(shape)
    there = fought > 0
    uneven = (there != there[:, :, :1]).any(axis=-1)
    if uneven.any():
        i, j, k = (int(index) for index in np.argwhere(uneven)[0])
        raise TableError(
            f"{found['training'][k]!r}: other prompts than {found['training'][0]!r} for {found['name'][i]!r}"
            f" {found['question'][j]!r}; expected every training to have met the same ones"
        )
    means = won / np.where(there, fought, 1.0)
    asked = there.astype(np.float64)
    rates: list[np.ndarray] = []
    for size in (1, *(min(SOME, draws - start) for start in range(0, draws, SOME))):
        weights = group_counts(size, count, rng) if rates else np.ones((1, count))
        # A question may be asked on some prompts only (those of one task): each resample is taken over these.
        total = asked @ weights.T
        rates.append(np.divide(means @ weights.T, total, out=np.full(total.shape, 0.5), where=total > 0))
    scores = {"rate": np.concatenate(rates, axis=-1)}
    return Cells(tuple(found["name"]), tuple(found["question"]), tuple(found["training"]), draws, scores)
