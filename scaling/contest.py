"""Who is ahead, by how much and how surely: recipes compared by loss, by ratings or by average rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from scaling.blocks import SIZE, Blocks, fit_blocks
from scaling.elo import EloTable
from scaling.ranking import RankTable
from scaling.recipes import cells, recipes
from scaling.reference import bare
from scaling.resample import interval, small_sample_factor
from scaling.study import values

Kind = Literal["loss", "elo", "rank"]
SETTLED = 0.975
"""Probability of being ahead from which on it counts as shown: the end of a two-sided 95 % interval."""
ONE_TRAINING = ("none", "settings", "prompts")
"""What ranks are resampled over where no training was repeated."""
DRAWS = 20_000
"""Of the noise, for the probability of being the best of many."""


@dataclass(frozen=True)
class Crossed:
    """Who is ahead at the largest size, where it is not who is ahead on average; by how much, as in ``Contest``."""

    size: str
    name: str
    margin: float
    low: float
    high: float


@dataclass(frozen=True)
class Contest:
    """One comparison, best first.

    ``margin`` is by how much the second is behind the first, with its 95 % interval (NaN where nothing tells noise):
    of losses the share by which the first is lower, else a difference in the measure's own unit. ``ahead [names]`` is
    the probability that the first is better than each (NaN for itself), ``best`` that it is the best of all.
    """

    kind: Kind
    measure: str
    """In words: validation loss; Elo, aesthetics; average rank."""
    names: tuple[str, ...]
    scores: tuple[float, ...]
    margin: float
    low: float
    high: float
    ahead: tuple[float, ...]
    best: float
    how: str
    """What was repeated, in words."""
    trained: bool = True
    """Whether trainings were repeated. Where not, intervals and probabilities are of these trainings alone."""
    seeds: int = 0
    """That the first two share at a size (the median); 0 where it is not known."""
    sizes: int = 0
    blocks: Blocks | None = None
    """What losses and ratings of runs are compared by."""
    crossed: Crossed | None = None
    question: str = ""
    """Of ratings, what judges were asked."""
    apart: tuple[str, ...] = ()
    """Recipes that share no size and seed with these."""

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite(self.ahead[1]))

    @property
    def settled(self) -> bool:
        """Whether the first is shown to be better than the second, in other trainings as well."""
        return self.known and self.trained and self.ahead[1] >= SETTLED

    @property
    def tied(self) -> tuple[str, ...]:
        """The first, and all that it is not shown to be better than."""
        shown = [self.trained and p >= SETTLED for p in self.ahead[1:]]
        rest = [name for name, known in zip(self.names[1:], shown, strict=True) if not known]
        return (self.names[0], *rest)


def by_loss(results: pd.DataFrame) -> Contest | None:
    """Recipes by final validation loss, where they were trained alike; None where no two were.

    Log losses are additive in blocks (a size and a seed, which share data and noise) and recipes: ``scaling.blocks``.
    """
    if results.empty:
        return None
    frame = _losses(results)
    found = fit_blocks(frame)
    if found is None:
        return None
    contest = _additive("validation loss", found, sorted(set(frame["recipe"]) - set(found.names)))
    return replace(contest, crossed=_crossed(contest, frame))


def by_size(results: pd.DataFrame) -> Contest | None:
    """Depths of one recipe by final validation loss, at the longest training that most depths have; None for one."""
    if results.empty:
        return None
    frame = _losses(results)
    frame["recipe"] = frame["depth"].map("depth {:g}".format)
    most = frame.groupby("steps")["depth"].nunique()
    if most.empty or most.max() < 2:
        return None
    steps = max(most.index[most == most.max()])
    found = fit_blocks(frame[frame["steps"] == steps].assign(depth=0.0))
    if found is None:
        return None
    contest = _additive("validation loss", found, [])
    seeds = "one seed" if contest.seeds == 1 else f"{contest.seeds} seeds"
    return replace(contest, how=f"{seeds} a depth" + (f" after {steps:,.0f} steps" if steps > 0 else ""))


def by_elo(elo: EloTable, results: pd.DataFrame, question: str = "") -> Contest | None:
    """Recipes by the ratings of their runs, where they were trained alike; None where no two were.

    The interval holds what other prompts would say (resampled) and what other trainings would (as of losses, where
    anything was repeated).
    """
    place = {rating.name: index for index, rating in enumerate(elo.ratings)}
    if results.empty:
        return None
    frame = _runs(results[results["name"].isin(place)])
    frame["run"] = frame["name"].map(place)
    points = np.array([rating.elo for rating in elo.ratings])
    found = fit_blocks(frame.assign(value=points[frame["run"].to_numpy(int)]))
    if found is None:
        return None
    mean = found.level + found.effect
    order = np.lexsort((np.array(found.names), -mean))
    clusters = min(elo.clusters.values(), default=1)
    widen = small_sample_factor(clusters, 1, elo.level) * np.sqrt(clusters / max(clusters - 1, 1))
    samples = np.zeros((0, len(mean)))
    if len(elo.samples):
        rng = np.random.default_rng(0)
        drawn = elo.samples[rng.integers(len(elo.samples), size=DRAWS)][:, list(found.runs)]
        samples = mean + widen * (drawn - points[list(found.runs)]) @ found.operator.T + _trainings(found, rng)
    seeds, sizes, lengths = found.shared(order[0], order[1])
    over = " and ".join(_many(count, name) for name, count in elo.clusters.items())
    contest = _sampled(
        "elo", f"Elo, {question}" if question else "Elo", list(found.names), mean, samples, order, sign=-1,
        how=f"{over} resampled; {_repeated(seeds, sizes, lengths)}",
    )  # fmt: skip
    apart = tuple(sorted(set(frame["recipe"]) - set(found.names)))
    trained = bool(np.isfinite(found.noise))
    return replace(contest, trained=trained, seeds=seeds, sizes=sizes, blocks=found, question=question, apart=apart)


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
    found = _sampled("rank", "average rank", list(members), mean, samples, order, sign=1, how=how)
    return replace(found, seeds=table.seeds, trained=table.resampled not in ONE_TRAINING)


def _runs(results: pd.DataFrame) -> pd.DataFrame:
    """depth, steps, seed, recipe and name of each run."""
    return cells(results).assign(recipe=recipes(results), name=results["name"], run=results.index)


def _losses(results: pd.DataFrame) -> pd.DataFrame:
    """The same of the runs that have a loss, with its log as ``value``, and FLOPs."""
    known = values(results, "val_loss") > 0
    logs = np.log(values(results, "val_loss")[known])
    return _runs(results)[known].assign(value=logs, flops=values(results, "train_flops").fillna(0.0))


def _additive(measure: str, found: Blocks, apart: list[str]) -> Contest:
    """Of log losses."""
    mean = found.level + found.effect
    order = np.lexsort((np.array(found.names), mean))
    first, second = order[:2]
    behind = (mean - mean[first])[order]
    margin, low, high = _lower(found, first, second)
    best, ahead = float("nan"), np.full(len(order), np.nan)
    if np.isfinite(found.noise):
        error = np.array([found.error(first, other, found.noise) for other in order])
        safe = np.where(error > 0, error, 1.0)
        told = np.where(error > 0, stats.t.cdf(behind / safe, found.freedom), np.where(behind > 0, 1.0, 0.5))
        ahead[1:] = told[1:]
        best = _best(mean, _trainings(found, np.random.default_rng(0)), first)
    seeds, sizes, lengths = found.shared(first, second)
    return Contest(
        kind="loss",
        measure=measure,
        names=tuple(found.names[place] for place in order),
        scores=tuple(np.exp(mean[order]).tolist()),
        margin=margin,
        low=low,
        high=high,
        ahead=tuple(ahead.tolist()),
        best=best,
        how=_repeated(seeds, sizes, lengths),
        seeds=seeds,
        sizes=sizes,
        blocks=found,
        apart=tuple(apart),
    )


def _best(scores: np.ndarray, errors: np.ndarray, first: int) -> float:
    """Probability that ``first`` has the least of the true scores, of ``scores [names]`` and ``errors [draws, names]``.

    Of many recipes the first is also the luckiest. So scores of three or more are drawn together by how much of their
    spread the errors explain (empirical Bayes with one normal prior): of equal recipes each is the best as likely as
    another. Two have a flat prior. What is least together shares the draw.
    """
    shrunk = 1.0
    if len(scores) > 2:
        spread, own = float(scores.var(ddof=1)), float(errors.var(axis=1, ddof=1).mean())
        shrunk = max(0.0, 1 - own / spread) if spread > 0 else 0.0
    drawn = scores.mean() + shrunk * (scores - scores.mean()) + np.sqrt(shrunk) * errors
    least = drawn == drawn.min(axis=1, keepdims=True)
    return float((least[:, first] / least.sum(axis=1)).mean())


def _trainings(found: Blocks, rng: np.random.Generator) -> np.ndarray:
    """Errors ``[draws, names]`` of the estimates, of what repeated trainings differ by; zero where nothing tells."""
    if not np.isfinite(found.noise):
        return np.zeros((DRAWS, len(found.names)))
    spread = found.noise * np.sqrt(found.freedom / rng.chisquare(found.freedom, (DRAWS, 1)))
    scale, turn = np.linalg.eigh(found.inverse)
    root = turn * np.sqrt(np.maximum(scale, 0.0))
    drawn: np.ndarray = spread * (rng.standard_normal((DRAWS, len(found.names))) @ root.T)
    return drawn


def _crossed(contest: Contest, frame: pd.DataFrame) -> Crossed | None:
    """Who leads at the largest size of those at which the first of all meets others, where it is another."""
    met = frame.groupby(SIZE)["recipe"].transform(lambda own: own.nunique() > 1 and contest.names[0] in set(own))
    here = frame[met.astype(bool)]
    if here.groupby(SIZE).ngroups < 2:
        return None
    largest = here.sort_values(["flops", *SIZE]).iloc[-1]
    found = fit_blocks(here[(here["depth"] == largest["depth"]) & (here["steps"] == largest["steps"])])
    if found is None or contest.names[0] not in found.names:
        return None
    first, other = int(np.argmin(found.effect)), found.names.index(contest.names[0])
    if first == other:
        return None
    steps = f" and {largest['steps']:,.0f} steps" if here["steps"].nunique() > 1 else ""
    return Crossed(f"depth {largest['depth']:g}{steps}", found.names[first], *_lower(found, first, other))


def _lower(found: Blocks, first: int, other: int) -> tuple[float, float, float]:
    """(share, low, high) by which the loss of ``first`` is below another's; NaN ends where nothing tells noise."""
    gap = found.effect[other] - found.effect[first]
    arm = stats.t.ppf(SETTLED, found.freedom) * found.error(first, other, found.noise) if found.freedom else np.nan
    share, low, high = (float(1 - np.exp(-log)) for log in (gap, gap - arm, gap + arm))
    return share, low, high


def _repeated(seeds: int, sizes: int, lengths: int) -> str:
    """What was trained more than once, in words."""
    one = f", its {lengths} lengths of training taken as one" if lengths > 1 else ""
    return f"{'one seed' if seeds == 1 else f'{seeds} seeds'} at {_many(sizes, 'size')}{one}"


def _sampled(
    kind: Kind,
    measure: str,
    names: list[str],
    scores: np.ndarray,
    samples: np.ndarray,
    order: np.ndarray,
    *,
    sign: int,
    how: str,
) -> Contest:
    """Of ``scores [names]`` and ``samples [draws, names]``; ``sign`` is 1 where less is better, −1 where more is."""
    scores, samples = scores[order], samples[:, order]
    margin = float(sign * (scores[1] - scores[0]))
    nan = float("nan")
    low = high = best = nan
    ahead = np.full(len(scores), nan)
    if len(samples):
        centred = sign * samples
        low, high = interval(centred[:, 1] - centred[:, 0], 0.95, centre=margin)
        apart = centred - centred[:, :1]
        ahead[1:] = ((apart > 0) + 0.5 * (apart == 0))[:, 1:].mean(axis=0)
        best = _best(sign * scores, centred - sign * scores, 0)
    return Contest(
        kind=kind,
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
