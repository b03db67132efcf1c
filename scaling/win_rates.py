"""Win rates against one player, ties as half, with intervals over prompts, judges, trainings: SD3's "win rate [%]"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from scaling.wilson import share_interval

SOME = 100
"""So many resamples at a time: with 100,000 prompts, all at once would not fit."""


@dataclass(frozen=True)
class WinRate:
    """How often ``name`` wins: ``rate`` in [0, 1] with its interval (NaN where there is but one cluster)."""

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
    clusters: Mapping[str, int]
    """How many of what intervals are over."""
    how: str

    def to_json(self) -> dict[str, object]:
        """The object that ``winrate --json`` prints."""
        return {
            "against": self.against,
            "rows": [{**vars(row), "low": plain(row.low), "high": plain(row.high)} for row in self.rows],
            "trainings": self.trainings,
            "prompts": self.prompts,
            "clusters": dict(self.clusters),
        }


def win_rates(
    battles: pd.DataFrame,
    against: str,
    *,
    by: tuple[str, ...] = (),
    trainings: str | None = None,
    cluster: Sequence[str] = ("prompt",),
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> WinRates:
    """How often each player beats ``against``, from a table with columns prompt, left, right, outcome.

    A rate is the mean over trainings of the mean over their prompts of the mean over a prompt's battles. Intervals are
    Wilson's over clusters (``scaling.wilson``). With two trainings or more the prompts are resampled, the same for all,
    and the trainings' luck is drawn anew (``scaling.repeats``), but intervals are never narrower than over the clusters
    alone: resamples of none but wins are wins. Without ``draws`` these have none.

    Args:
        battles: battles of others are left out.
        against: the player to beat.
        by: columns by which rates are told apart, such as question and judge.
        trainings: column that tells trainings of the same recipe apart; every one must have met the same prompts.
        cluster: one column, or two, whose equal values belong together; (prompt, judge) for rates of other judges.

    Raises TableError for absent columns, an outcome other than left, right, tie, a player that is not there, or
    trainings that were not asked the same.
    """
    if not 1 <= len(cluster) <= 2:
        raise TableError(f"cluster={','.join(cluster)!r}: expected one column or two")
    require(battles, ["prompt", "left", "right", "outcome", *by, *([trainings] if trainings else []), *cluster])
    left, right = (labels(battles, column).astype(str) for column in ("left", "right"))
    outcome = np.array(OUTCOMES)[outcomes(battles)]
    if draws < 0 or draws == 1:  # a single resample has no spread
        raise TableError(f"bootstrap={draws}: expected 0, or 2 or more (some hundreds are good)")
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
    for place, column in enumerate(cluster):
        table[f"cluster {place}"] = labels(battles, column)
    table = table[met]
    counts = {column: table[f"cluster {place}"].nunique() for place, column in enumerate(cluster)}
    shares = _shares(table)
    centre, ends = shares.rates(), _intervals(table, shares, len(counts), level)
    several = len(shares.trainings) > 1
    if several:
        ends = _with_luck(ends, shares, draws, level, seed) if draws else np.full_like(ends, np.nan)
    fought = table.groupby(["name", "question"], sort=False).size()
    rows = [
        WinRate(player, question, float(centre[i, j]), float(ends[0, i, j]), float(ends[1, i, j]), int(count))
        for i, player in enumerate(shares.names)
        for j, question in enumerate(shares.questions)
        if (count := fought.get((player, question), 0))
    ]
    how = _how(counts, level, draws, len(shares.trainings))
    if np.isnan([row.low for row in rows]).all() and (draws or not several):
        fewest = min(counts, key=lambda column: counts[column])
        how = f"no intervals, since one {fewest} says nothing of others"
    return WinRates(tuple(rows), against, len(shares.trainings), table["prompt"].nunique(), counts, how)


def _how(counts: Mapping[str, int], level: float, draws: int, trainings: int) -> str:
    """What intervals are made of, in words."""
    over = " and ".join("the prompts" if name == "prompt" else f"{n} {name}s" for name, n in counts.items())
    if trainings == 1:
        return f"{level * 100:g} % intervals over {over} (Wilson's); one training each, whose luck is not in them"
    how = how_resampled("prompts and seeds" if draws else "none", level, draws, trainings)
    return f"{how}, and never narrower than over {over}" if draws and list(counts) != ["prompt"] else how


def _intervals(table: pd.DataFrame, shares: _Shares, kinds: int, level: float) -> np.ndarray:
    """Over ``kinds`` kinds of clusters, the trainings taken as given: ``[2, names, questions]``; NaN of one cluster."""
    ends = np.full((2, len(shares.names), len(shares.questions)), np.nan)
    for (name, question), part in table.groupby(["name", "question"], sort=False):
        weights = 1 / part.groupby(["training", "prompt"])["score"].transform("size").to_numpy(np.float64)
        clusters = [group_index(pd.factorize(part[f"cluster {place}"])[0])[0] for place in range(kinds)]
        place = shares.names.index(name), shares.questions.index(question)
        scores = part["score"].to_numpy(np.float64)
        ends[:, *place] = share_interval(scores, level, weights=weights, clusters=clusters)
    centre = shares.rates()
    return np.stack([np.minimum(ends[0], centre), np.maximum(ends[1], centre)])


@dataclass(frozen=True)
class _Shares:
    """Of each prompt's battles the share that was won, ``won [names, questions, trainings, prompts]``; 0 where the
    question was not asked of it, ``asked [names, questions, prompts]``."""

    names: tuple[str, ...]
    questions: tuple[str, ...]
    trainings: tuple[str, ...]
    won: np.ndarray
    asked: np.ndarray

    def rates(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Means over prompts and trainings ``[names, questions]``; of a training and by ``weights [draws, prompts]``
        ``[names, questions, trainings, draws]``. A half where nothing was asked."""
        if weights is None:
            return self.rates(np.ones((1, self.asked.shape[-1])))[..., 0].mean(axis=-1)
        # A question may be asked on some prompts only (those of one task): each resample is taken over these.
        total = (self.asked.astype(np.float64) @ weights.T)[:, :, None]
        won = self.won @ weights.T
        return np.divide(won, total, out=np.full(won.shape, 0.5), where=total > 0)


def _with_luck(ends: np.ndarray, shares: _Shares, draws: int, level: float, seed: int) -> np.ndarray:
    """``ends [2, names, questions]`` over clusters, widened to those over prompts and trainings."""
    rng, count = np.random.default_rng(seed), shares.asked.shape[-1]
    rates = [shares.rates(np.ones((1, count)))]
    for start in range(0, draws, SOME):
        rates.append(shares.rates(group_counts(min(SOME, draws - start), count, rng)))
    scores = {"rate": np.concatenate(rates, axis=-1)}
    cells = Cells(shares.names, shares.questions, shares.trainings, draws, scores)
    samples = repeats(cells, draws, np.random.default_rng(seed))["rate"]
    low, high = np.clip(interval(samples, level, centre=shares.rates()), 0.0, 1.0)
    return np.stack([np.minimum(ends[0], low), np.maximum(ends[1], high)])


def _shares(table: pd.DataFrame) -> _Shares:
    """Raises TableError where a training lacks a prompt that another one of the same name and question has."""
    axes = ["name", "question", "training"]
    found = {axis: tuple(dict.fromkeys(table[axis])) for axis in axes}
    prompt, count = group_index(table["prompt"].to_numpy())
    shape = (*(len(found[axis]) for axis in axes), count)
    place = np.ravel_multi_index(
        [pd.Index(found[axis]).get_indexer(table[axis]) for axis in axes] + [prompt],
        shape,
    )
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
    shares = won / np.where(there, fought, 1.0)
    return _Shares(found["name"], found["question"], found["training"], shares, there[:, :, 0])
