"""Who is ahead, by how much and how surely: recipes compared by loss, by ratings or by average rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from scaling.elo import EloTable
from scaling.ranking import RankTable
from scaling.reference import bare
from scaling.resample import interval, small_sample_factor
from scaling.study import ARCHITECTURE, values

SETTLED = 0.975
"""Probability of being ahead from which on it counts as shown: the end of a two-sided 95 % interval."""
DRAWS = 20_000
"""Of the noise, for the probability of being the best of many."""
ONE_COMPUTE = 1.02
"""Trainings whose FLOPs differ by no more than this factor have one compute."""
TOLD_APART = ("parametrization", "learning_rate", "width", "batch")
"""Columns that tell recipes apart where formulation, size and seed are the same."""


@dataclass(frozen=True)
class Contest:
    """One comparison, best first.

    ``margin`` is by how much the second is behind the first, with its 95 % interval (NaN where nothing tells noise):
    of losses the share by which the first is lower, else a difference in the measure's own unit. ``ahead [names]`` is
    the probability that the first is better than each (NaN for itself), ``best`` that it is the best of all.
    """

    measure: str
    names: tuple[str, ...]
    scores: tuple[float, ...]
    margin: float
    low: float
    high: float
    ahead: tuple[float, ...]
    best: float
    how: str
    """What was repeated, in words."""
    seeds: int = 0
    sizes: int = 0
    noise: float = float("nan")
    """Of losses: standard deviation of one run's log loss within its block."""

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite(self.ahead[1]))

    @property
    def settled(self) -> bool:
        """Whether the first is shown to be better than the second."""
        return self.known and self.ahead[1] >= SETTLED

    @property
    def tied(self) -> tuple[str, ...]:
        """The first, and all that it is not shown to be better than."""
        rest = [name for name, p in zip(self.names[1:], self.ahead[1:], strict=True) if not p >= SETTLED]
        return (self.names[0], *rest)


def recipes(results: pd.DataFrame) -> pd.Series:
    """What a run's recipe is called: its formulation, and what else tells runs of one size and seed apart."""
    label = results["formulation"].astype(str)
    for column in TOLD_APART:
        cell = _cells(results).assign(recipe=label)
        if column not in results or not cell.duplicated(keep=False).any():
            continue
        apart = results[column].groupby([*(cell[name] for name in cell)], dropna=False).transform("nunique")
        if (apart > 1).any():
            label = label + f", {column.replace('_', ' ')} " + results[column].map(lambda value: f"{value}")
    return label


def by_loss(results: pd.DataFrame) -> Contest | None:
    """Recipes by final validation loss, over the sizes and seeds that all of them have; None where there is no choice.

    Log losses are additive in blocks (a size and a seed, which share data and noise) and recipes. Noise is what is left
    within a size with two seeds or more; with one seed, what is left over sizes, which also holds that one recipe may
    be better at one size and worse at another.
    """
    if results.empty:
        return None
    frame = _cells(results).assign(recipe=recipes(results), loss=values(results, "val_loss"))
    table = _blocks(frame[frame["loss"] > 0], "recipe")
    if table is None:
        return None
    seeds, sizes = _counts(table)
    how = f"{_many(seeds, 'seed')} at {_many(sizes, 'size')}"
    return _additive("validation loss", table, how if seeds > 1 else f"one seed at {_many(sizes, 'size')}")


def by_size(results: pd.DataFrame) -> Contest | None:
    """Depths of one recipe by final validation loss, at the longest training that most depths have; None for one."""
    if results.empty:
        return None
    cells = _cells(results)
    frame = cells.assign(recipe=cells["depth"].map("depth {:g}".format), loss=values(results, "val_loss"))
    frame = frame[frame["loss"] > 0]
    most = frame.groupby("steps")["depth"].nunique()
    if most.empty or most.max() < 2:
        return None
    steps = max(most.index[most == most.max()])
    table = _blocks(frame[frame["steps"] == steps].assign(depth=0.0), "recipe")
    if table is None:
        return None
    seeds, _ = _counts(table)
    at = f" after {steps:,.0f} steps" if steps > 0 else ""
    return _additive("validation loss", table, f"{'one seed' if seeds == 1 else f'{seeds} seeds'} a depth{at}")


def by_elo(elo: EloTable, results: pd.DataFrame) -> Contest | None:
    """Recipes by the mean rating of their runs, over the sizes and seeds that all of them have; None for one."""
    if results.empty:
        return None
    place = {rating.name: index for index, rating in enumerate(elo.ratings)}
    here = results[results["name"].isin(place)]
    frame = _cells(here).assign(recipe=recipes(results).loc[here.index], loss=here["name"].map(place))
    table = _blocks(frame, "recipe")
    if table is None:
        return None
    points = np.array([rating.elo for rating in elo.ratings])
    members = {name: table[name].to_numpy(dtype=int) for name in table.columns}
    mean = np.array([points[own].mean() for own in members.values()])
    order = np.lexsort((np.array(list(members)), -mean))
    clusters = min(elo.clusters.values(), default=1)
    samples = np.stack([elo.samples[:, own].mean(axis=1) for own in members.values()], axis=1)
    widen = small_sample_factor(clusters, 1, elo.level) * np.sqrt(clusters / max(clusters - 1, 1))
    over = " and ".join(_many(count, name) for name, count in elo.clusters.items())
    return _sampled("Elo", list(members), mean, samples, order, sign=-1, widen=widen, how=f"{over} resampled")


def by_rank(table: RankTable) -> Contest | None:
    """Recipes by average rank over the sampler settings, of several depths by the mean over these; None for one."""
    members: dict[str, list[int]] = {}
    for place, name in enumerate(table.names):
        members.setdefault(bare(name), []).append(place)
    if len(members) < 2:
        return None
    ranks = np.array([place.all.rank for place in table.places])
    mean = np.array([ranks[own].mean() for own in members.values()])
    samples = np.stack([table.samples[:, own].mean(axis=1) for own in members.values()], axis=1)
    order = np.argsort(mean, kind="stable")
    how = {
        "none": "nothing was resampled",
        "settings": "settings resampled, no measurement repeated",
        "prompts": "prompts resampled, one training each",
        "seeds": f"{_many(table.seeds, 'seed')} resampled",
    }.get(table.resampled, f"prompts and {_many(table.seeds, 'seed')} resampled")
    found = _sampled("average rank", list(members), mean, samples, order, sign=1, widen=1.0, how=how)
    return replace(found, seeds=table.seeds)


def _cells(results: pd.DataFrame) -> pd.DataFrame:
    """Depth, steps and seed of each run; −1 where it isn't told. Architectures of one compute have one size."""
    cells = pd.DataFrame({name: values(results, name).fillna(-1.0) for name in ("depth", "steps", "seed")})
    if ARCHITECTURE in results and results[ARCHITECTURE].nunique() > 1:
        flops = values(results, "train_flops")
        if flops.notna().all() and flops.max() <= ONE_COMPUTE * flops.min():
            cells[["depth", "steps"]] = -1.0
    return cells


def _blocks(frame: pd.DataFrame, column: str) -> pd.DataFrame | None:
    """``loss`` by (depth, steps, seed) and ``column``, without gaps: what few blocks have goes, then what has gaps."""
    table = frame.pivot_table(index=["depth", "steps", "seed"], columns=column, values="loss", aggfunc="mean")
    counts = table.notna().sum()
    table = table[counts.index[2 * counts > counts.max()]].dropna() if len(counts) else table
    return table if len(table) and table.shape[1] > 1 else None


def _counts(table: pd.DataFrame) -> tuple[int, int]:
    """Seeds of the size with fewest, and sizes."""
    per_size = table.groupby(level=["depth", "steps"]).size()
    return int(per_size.min()), len(per_size)


def _additive(measure: str, table: pd.DataFrame, how: str) -> Contest:
    """``table [blocks, names]`` of losses."""
    logs = np.log(table.to_numpy(dtype=float))
    blocks, count = logs.shape
    order = np.lexsort((np.array(table.columns, dtype=str), logs.mean(axis=0)))
    logs, names = logs[:, order], [str(table.columns[place]) for place in order]
    size = table.groupby(level=["depth", "steps"]).ngroup().to_numpy()
    squares, freedom = 0.0, 0
    for key in np.unique(size):
        extra, own = _left(logs[size == key])
        squares, freedom = squares + extra, freedom + own
    if freedom == 0:
        squares, freedom = _left(logs)
    noise = float(np.sqrt(squares / freedom)) if freedom else float("nan")
    mean = logs.mean(axis=0)
    behind = mean - mean[0]
    error = noise * np.sqrt(2 / blocks)
    nan = float("nan")
    low = high = best = nan
    ahead = np.full(count, nan)
    if np.isfinite(noise):
        arm = stats.t.ppf(SETTLED, freedom) * error
        low, high = (1 - np.exp(-(behind[1] + sign * arm)) for sign in (-1, 1))
        if error > 0:
            ahead[1:] = stats.t.cdf(behind[1:] / error, freedom)
        else:
            ahead[1:] = np.where(behind[1:] > 0, 1.0, 0.5)
        rng = np.random.default_rng(0)
        spread = noise * np.sqrt(freedom / rng.chisquare(freedom, (DRAWS, 1)) / blocks)
        drawn = mean + spread * rng.standard_normal((DRAWS, count))
        best = float((drawn[:, 0] <= drawn.min(axis=1)).mean())
    seeds, sizes = _counts(table)
    return Contest(
        measure=measure,
        names=tuple(names),
        scores=tuple(np.exp(mean).tolist()),
        margin=float(1 - np.exp(-behind[1])),
        low=float(low),
        high=float(high),
        ahead=tuple(ahead.tolist()),
        best=best,
        how=how,
        seeds=seeds,
        sizes=sizes,
        noise=noise,
    )


def _left(logs: np.ndarray) -> tuple[float, int]:
    """Sum of squares and degrees of freedom that rows and columns leave."""
    rest = logs - logs.mean(axis=0) - logs.mean(axis=1, keepdims=True) + logs.mean()
    return float((rest**2).sum()), (logs.shape[0] - 1) * (logs.shape[1] - 1)


def _sampled(
    measure: str,
    names: list[str],
    scores: np.ndarray,
    samples: np.ndarray,
    order: np.ndarray,
    *,
    sign: int,
    widen: float,
    how: str,
) -> Contest:
    """Of ``scores [names]`` and ``samples [draws, names]``; ``sign`` is 1 where less is better, −1 where more is."""
    scores, samples = scores[order], samples[:, order]
    margin = float(sign * (scores[1] - scores[0]))
    nan = float("nan")
    low = high = best = nan
    ahead = np.full(len(scores), nan)
    if len(samples):
        centred = sign * (scores + widen * (samples - scores))
        low, high = interval(sign * (samples[:, 1] - samples[:, 0]), 0.95, centre=margin, widen=widen)
        apart = centred - centred[:, :1]
        ahead[1:] = ((apart > 0) + 0.5 * (apart == 0))[:, 1:].mean(axis=0)
        best = float((centred[:, 0] <= centred.min(axis=1)).mean())
    return Contest(
        measure=measure,
        names=tuple(names[place] for place in order),
        scores=tuple(scores.tolist()),
        margin=margin,
        low=float(low),
        high=float(high),
        ahead=tuple(ahead.tolist()),
        best=best,
        how=how,
    )


def _many(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"
