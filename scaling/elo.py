"""Bradley–Terry ratings with ties from pairwise battles, on the Elo scale, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from scaling.anchors import agreement
from scaling.battle_counts import Battles, cluster_index, count_battles
from scaling.davidson import ELO, chances
from scaling.elo_estimate import Estimate, bootstrap, estimated
from scaling.errors import TableError
from scaling.plain import plain
from scaling.rank_intervals import rank_intervals
from scaling.resample import interval
from scaling.separation import separated, signs

ZERO = 1000.0
"""The players' mean, where nothing else is anchored."""
NORMAL_DRAWS = 4000
"""Draws of the ratings' errors that rank intervals are made of where there is no bootstrap."""


@dataclass(frozen=True)
class Rating:
    """One player: ``elo`` and its interval, battles fought, rank (1 is best) and its interval.

    ``low`` and ``high`` are the bootstrap's, or the sandwich's where there is no bootstrap; all intervals are NaN
    with one cluster, or where battles ended alike in all: there is no spread to judge by. Ranks are then all possible,
    or by a sign test; see ``_ranks``.
    """

    name: str
    elo: float
    low: float
    high: float
    battles: int
    rank: int
    rank_low: int
    rank_high: int
    sandwich_low: float
    sandwich_high: float


@dataclass(frozen=True)
class Effect:
    """What favours the left: ``elo`` is how many Elo points a unit of it is worth (of the left side: being there)."""

    name: str
    elo: float
    low: float
    high: float
    sandwich_low: float
    sandwich_high: float


@dataclass(frozen=True)
class EloTable:
    """Ratings, best first, with everything needed to say what is expected of a pair.

    ``tie_strength`` is Davidson's ν. ``samples [draws, players]`` are Elo values as other battles of the same number
    might have given, in the order of ``ratings``; ``covariance [players, players]`` is the sandwich's, likewise.
    ``clusters`` says how many of what were resampled, ``anchors`` which ratings were given.
    """

    ratings: tuple[Rating, ...]
    tie_strength: float
    prompts: int
    battles: int
    level: float
    samples: np.ndarray
    covariance: np.ndarray
    effects: tuple[Effect, ...]
    clusters: Mapping[str, int]
    anchors: Mapping[str, float]
    intervals: str
    """ "bootstrap", "sandwich" or "none": what ``low`` and ``high`` are."""
    separated: tuple[tuple[str, ...], ...]
    """Groups whose distance, and its interval, only the prior bounds; see ``separation.separated``."""
    anchors_p: float
    """How well several anchors agree with the battles; see ``anchors.agreement``."""

    @property
    def scale(self) -> str:
        """What the numbers are relative to: ``the runs' mean is 1000``."""
        return ", ".join(f"{name} is {elo:g}" for name, elo in self.anchors.items()) or "the runs' mean is 1000"

    def win_rates(self) -> pd.DataFrame:
        """Expected score of row against column, no side favoured, ties as half: NaN on the diagonal."""
        names = [rating.name for rating in self.ratings]
        strength = np.array([rating.elo for rating in self.ratings]) / ELO
        win, _, tie = chances(strength[:, None] - strength[None, :], np.log(max(self.tie_strength, 1e-300)))
        score = win + tie / 2
        np.fill_diagonal(score, np.nan)
        return pd.DataFrame(score, index=names, columns=names)

    def to_json(self) -> dict[str, object]:
        """The object that ``elo --json`` prints."""
        return {
            "ratings": [plain(vars(rating)) for rating in self.ratings],
            "tie_strength": self.tie_strength,
            "effects": [plain(vars(effect)) for effect in self.effects],
            "anchors": dict(self.anchors),
            "anchors_p": plain(self.anchors_p),
            "prompts": self.prompts,
            "battles": self.battles,
            "clusters": dict(self.clusters),
            "intervals": self.intervals,
            "separated": [list(group) for group in self.separated],
            "level": self.level,
            "draws": len(self.samples),
        }


def rate(
    battles: pd.DataFrame,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    anchors: Mapping[str, float] | None = None,
    side_bias: str | None = None,
    covariates: Sequence[str] = (),
    cluster: Sequence[str] = ("prompt",),
) -> EloTable:
    """Rate the players of a battles table (columns prompt, left, right, outcome) by penalised maximum likelihood.

    The model is Davidson's (``scaling.davidson``), the penalty PRIOR_SD's. Battles of one prompt are resampled
    together, since one prompt's images are shared by all its battles.

    Intervals: percentiles of the bootstrap over clusters, and Student's t about the estimate with the jackknife's
    sandwich. Both arms of the former are stretched for few clusters as the latter's are. With two columns to cluster
    by there is no bootstrap that is right; ``samples`` are then normal draws by the two-way sandwich.

    Args:
        draws: bootstraps; 0: sandwich only.
        anchors: ratings that are given, in Elo points. One shifts the scale; with several, the others are fitted
            given these. Intervals are of differences from them. None: the players' mean is 1000.
        side_bias: "all": the left side has an advantage, the same everywhere; a column (judge): one a value of it.
        covariates: columns with a number a battle that may favour the left, such as a difference of lengths.
        cluster: one column, or two, whose equal values belong together.

    Raises TableError for a missing column, an outcome other than left, right, tie, a player that fights itself,
    sets of players that never met (their ratings would have no common zero), an anchor that is not there, or a
    covariate that the battles can't tell from the ratings.
    """
    if not 1 <= len(cluster) <= 2:
        raise TableError(f"cluster={','.join(cluster)!r}: expected one column or two")
    given = dict(anchors or {})
    zero = float(np.mean(list(given.values()))) if given else ZERO
    pinned = {name: (elo - zero) / ELO for name, elo in given.items()} if len(given) > 1 else None
    counted = count_battles(battles, side_bias=side_bias, covariates=covariates, pinned=pinned)
    absent = [name for name in given if name not in counted.names]
    if absent:
        raise TableError(f"anchor={absent[0]!r}: no battle of it; expected one of {', '.join(counted.names)}")
    estimate = estimated(counted, [cluster_index(battles, column) for column in cluster])
    matrix = _to_values(counted, next(iter(given)) if len(given) == 1 else None, fixed=len(given) > 1)
    shift = np.zeros(len(matrix))
    shift[: len(counted.names)] = zero
    value, spread = shift + matrix @ estimate.theta, matrix @ estimate.covariance @ matrix.T

    kind = "none"
    alike = len(estimate.clusters.times) == 1
    rng = np.random.default_rng(seed)
    samples = np.zeros((0, len(value)))
    if not alike:
        kind = "bootstrap" if draws > 0 and len(cluster) == 1 else "sandwich"
        if kind == "bootstrap":
            samples = shift + bootstrap(counted.design, estimate, draws, rng) @ matrix.T
        else:
            samples = rng.multivariate_normal(value, spread, size=draws or NORMAL_DRAWS, method="eigh")
    ends = _ends(value, spread, samples, 0.0 if alike else estimate.freedom, level)
    shown = ends[kind] if kind != "none" else ends["sandwich"]
    rows = np.concatenate([value[None], shown, ends["sandwich"]])
    count = len(counted.names)
    ranks = _ranks(counted, estimate, value[:count], samples[:, :count], level)
    ratings, order = _ratings(counted, rows[:, :count], ranks)
    return EloTable(
        ratings=ratings,
        tie_strength=float(np.exp(estimate.theta[-1])),
        prompts=battles["prompt"].nunique(),
        battles=len(battles),
        level=level,
        samples=samples[:draws, order],
        covariance=spread[np.ix_(order, order)],
        effects=tuple(
            Effect(name, *map(float, column)) for name, column in zip(counted.effects, rows[:, count:].T, strict=True)
        ),
        clusters=dict(zip(cluster, estimate.sizes, strict=True)),
        anchors=given,
        intervals=kind,
        separated=separated(counted),
        anchors_p=agreement(counted, estimate.clusters, given),
    )


def _ratings(
    counted: Battles, rows: np.ndarray, ranks: tuple[np.ndarray, np.ndarray]
) -> tuple[tuple[Rating, ...], np.ndarray]:
    """Ratings best first, and their order; from ``rows [5, players]`` (elo, low, high, sandwich's low and high)."""
    elo, low, high, sandwich_low, sandwich_high = rows
    fought = np.bincount(np.concatenate([counted.left, counted.right]), minlength=len(elo))
    order = np.lexsort((np.array(counted.names), -elo))
    ratings = tuple(
        Rating(
            name=counted.names[i],
            elo=float(elo[i]),
            low=float(low[i]),
            high=float(high[i]),
            battles=int(fought[i]),
            rank=1 + int((elo > elo[i]).sum()),
            rank_low=int(ranks[0][i]),
            rank_high=int(ranks[1][i]),
            sandwich_low=float(sandwich_low[i]),
            sandwich_high=float(sandwich_high[i]),
        )
        for i in order
    )
    return ratings, order


def _ranks(
    counted: Battles, estimate: Estimate, elo: np.ndarray, samples: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rank intervals, by ``samples`` among players that hang together, by a sign test where wins go one way only.

    Without ``samples`` all clusters are alike: a sign test decides of all. Of two that are equal at most every second
    cluster favours the first, so that n are alike in this by a chance of 2^(1 − n), whoever it is; of all pairs
    together (Bonferroni) by no more than as many times that.
    """
    apart, sure = signs(counted, estimate.clusters, elo, level)
    if not len(samples):
        pairs = len(elo) * (len(elo) - 1) / 2
        if pairs * 2.0 ** (1 - estimate.clusters.count) <= 1 - level:
            sure |= ~apart & (np.abs(elo[:, None] - elo) > 1e-6)
        samples, apart = elo[None], np.ones_like(apart)
    return rank_intervals(elo, samples - elo, level, widen=_widening(estimate.freedom, level), apart=apart, sure=sure)


def _to_values(counted: Battles, anchor: str | None, *, fixed: bool) -> np.ndarray:
    """What parameters are multiplied with for Elo points: ``[players + effects, parameters]``."""
    design, players = counted.design, len(counted.names)
    matrix = np.zeros((design.size - 1, design.size))
    matrix[np.arange(len(matrix)), np.arange(len(matrix))] = 1.0
    if anchor is not None:
        matrix[:players, counted.names.index(anchor)] -= 1.0
    elif not fixed:
        matrix[:players, :players] -= 1 / players
    matrix[players:] /= counted.scale[:, None]
    return ELO * matrix


def _ends(
    value: np.ndarray, spread: np.ndarray, samples: np.ndarray, freedom: float, level: float
) -> dict[str, np.ndarray]:
    """Both kinds of intervals, ``[2, values]`` each; NaN without degrees of freedom."""
    if not freedom:
        return {"sandwich": np.full((2, len(value)), np.nan)}
    arm = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(np.maximum(np.diag(spread), 0.0))
    # A resampled variance is (n − 1) / n of that of n clusters.
    widen = _widening(freedom, level) * np.sqrt(1 + 1 / freedom)
    return {
        "sandwich": np.stack([value - arm, value + arm]),
        "bootstrap": interval(samples, level, centre=value, widen=widen),
    }


def _widening(freedom: float, level: float) -> float:
    """Student's t over the normal quantile; 1 where there are no degrees of freedom to speak of."""
    tail = (1 + level) / 2
    return float(stats.t.ppf(tail, freedom) / stats.norm.ppf(tail)) if freedom else 1.0
