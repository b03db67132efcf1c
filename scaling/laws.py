"""Laws of loss over compute, parameters and data, with intervals and what the data can and cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from scaling.errors import TableError
from scaling.identify import Identification, identify
from scaling.lack import LACKING, averaged, lack_of_fit
from scaling.law_bootstrap import Problem, bootstrap, left_out_residuals
from scaling.law_kinds import POWER, Kind
from scaling.law_parameters import logs_of, percentiles_of, profiled_of, values_of
from scaling.plain import plain
from scaling.powers import Powers
from scaling.profile import band
from scaling.projection import projected_starts
from scaling.resample import group_index, interval, small_sample_factor

MOST_ROWS = 20_000
"""Rows of a fit: more take hours, and say no more than a part of them."""


@dataclass(frozen=True)
class Law:
    """A fitted law: E + Σ scale·x^(−exponent).

    ``intervals`` holds (low, high) at ``level`` for each of ``params``, and ``interval`` says how they were made;
    ``percentiles`` are the bootstrap's. ``identifiable`` is False where the data leave a parameter open, and
    ``reasons`` says which and why.
    """

    kind: Kind
    params: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    interval: str
    percentiles: dict[str, tuple[float, float]]
    objective: float
    rows: int
    groups: int
    ranges: tuple[tuple[float, float], ...]
    ratios: tuple[float, float]
    """Of a law of two abscissae, the least and the largest of the second over the first among the rows; else NaN."""
    scatter: float
    """Robust standard deviation of log residuals."""
    run_noise: float
    """Standard deviation by which the log loss of a run that took no part misses the law (the jackknife's)."""
    identification: Identification
    bootstrap: str
    draws: int
    level: float
    huber: float
    dropped: tuple[int, ...]
    _problem: Problem = field(repr=False)
    _theta: np.ndarray = field(repr=False)
    _valleys: np.ndarray = field(repr=False)
    """Where descents ended ``[starts, 1 + size]``, the objective first."""
    _profiled: bool = field(repr=False)
    _samples: np.ndarray = field(repr=False)
    _widen: float = field(repr=False)

    @property
    def identifiable(self) -> bool:
        """Whether the data pin the law down."""
        return not self.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """What the data leave open, one short sentence each."""
        return self.identification.reasons

    @property
    def compute_range(self) -> tuple[float, float]:
        """From the least to the largest of the first abscissa that was fitted to."""
        return self.ranges[0]

    def predict(self, *abscissae: ArrayLike) -> np.ndarray:
        """The law's loss at each abscissa's values (of one shape), float64."""
        u, shape = self._offsets(abscissae)
        return np.exp(self._problem.form.log_loss(self._theta[None], u)[0]).reshape(shape)

    def band(self, *abscissae: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise (low, high) of the law (not of a single new run) by the bootstrap; NaN without one."""
        u, shape = self._offsets(abscissae)
        low, high = self._resampled_ends(u) if len(self._samples) else np.full((2, len(u)), np.nan)
        return _raised(low, high, shape)

    def profile_band(self, *abscissae: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """As ``band``, by profiles: the losses that the law can be forced to have there at no significant cost.

        Where rows share groups of the caller's it is ``band``, as ``intervals`` are the bootstrap's then, if there is a
        bootstrap.
        """
        u, shape = self._offsets(abscissae)
        low, high = self._ends(u)
        return _raised(low, high, shape)

    def new_run(self, *abscissae: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise (low, high) at ``level`` of the loss of one new run: the law's own uncertainty and a run's noise.

        The arms of both add up in squares on the log scale, a run's by Student's t.
        """
        u, shape = self._offsets(abscissae)
        centre = self._problem.form.log_loss(self._theta[None], u)[0]
        ends = self._ends(u)
        freedom = max(self.groups - self._problem.form.size, 1)
        noise = float(stats.t.ppf((1 + self.level) / 2, freedom)) * self.run_noise
        low, high = (centre + sign * np.hypot(end - centre, noise) for sign, end in zip((-1, 1), ends, strict=True))
        return _raised(low, high, shape)

    def beyond(self, *at: float) -> dict[str, float]:
        """How many times each abscissa of a point, or the ratio of two, lies outside of what was fitted to; if it does.

        Along a fixed ratio laws with exchanged exponents fit alike, and off it they say other things.
        """
        told = dict(zip(self.kind.abscissae, zip(at, self.ranges, strict=True), strict=True))
        if len(at) == 2:
            first, second = self.kind.abscissae
            told[f"{second}/{first}"] = (at[1] / at[0], self.ratios)
        outside = {name: max(value / high, low / value) for name, (value, (low, high)) in told.items()}
        return {name: times for name, times in outside.items() if times > 1 + 1e-9}

    def draws_of(self, *abscissae: ArrayLike) -> np.ndarray:
        """Losses of the resampled laws, ``[draws, points]``, as far about the law's own as intervals are stretched."""
        u, _ = self._offsets(abscissae)
        centre = self._problem.form.log_loss(self._theta[None], u)
        return np.exp(centre + self._widen * (self._problem.form.log_loss(self._samples, u) - centre))

    def sampled(self, name: str) -> np.ndarray:
        """The resampled values ``[draws]`` of one of ``params``."""
        values = logs_of(self.kind, self._problem, self._samples)[name]
        return values if name in self.kind.exponents else np.exp(values)

    def equation(self) -> str:
        """The law as matplotlib text: ``$L = 0.05 + 3.1\\,C^{-0.21}$``."""
        parts = [f"{self.params[self.kind.floor]:.3g}"] if self.params[self.kind.floor] > 0 else []
        for x, scale, exponent in zip(self.kind.abscissae, self.kind.scales, self.kind.exponents, strict=True):
            mantissa, power = f"{self.params[scale]:.2e}".split("e")
            plain = -3 < int(power) < 3
            shown = f"{self.params[scale]:.3g}" if plain else rf"{mantissa}\cdot10^{{{int(power)}}}"
            parts.append(rf"{shown}\,{x}^{{{-self.params[exponent]:.3f}}}")
        return f"$L = {' + '.join(parts)}$"

    def to_json(self) -> dict[str, object]:
        """The object that ``fit --json`` prints: plain numbers, None where undefined or open."""
        return {
            "law": self.kind.name,
            "equation": self.kind.equation,
            "params": plain(self.params),
            "intervals": plain(self.intervals),
            "interval": self.interval,
            "fixed": [] if self._problem.form.floor else [self.kind.floor],
            "bootstrap_intervals": plain(self.percentiles),
            "objective": self.objective,
            "rows": self.rows,
            "identifiable": self.identifiable,
            "reasons": list(self.reasons),
            "condition": plain(self.identification.condition),
            "flat": self.identification.flat,
            "groups": self.groups,
            "bootstrap": self.bootstrap,
            "draws": self.draws,
            "level": self.level,
            "huber": self.huber,
            "scatter": self.scatter,
            "run_noise": plain(self.run_noise),
            "ranges": {name: list(ends) for name, ends in zip(self.kind.abscissae, self.ranges, strict=True)},
            "dropped": list(self.dropped),
        }

    def _ends(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) ``[points]`` of the law's log loss."""
        if self._profiled or not len(self._samples):
            return band(self._problem, self._theta, self._valleys, u, self.level)
        low, high = self._resampled_ends(u)
        return low, high

    def _resampled_ends(self, u: np.ndarray) -> np.ndarray:
        """(low, high) ``[2, points]`` of the law's log loss by the bootstrap."""
        form = self._problem.form
        centre = form.log_loss(self._theta[None], u)[0]
        return interval(form.log_loss(self._samples, u), self.level, centre=centre, widen=self._widen)

    def _offsets(self, abscissae: Sequence[ArrayLike]) -> tuple[np.ndarray, tuple[int, ...]]:
        if len(abscissae) != len(self.kind.abscissae):
            raise ValueError(f"{len(abscissae)} abscissae: expected {', '.join(self.kind.abscissae)}")
        columns = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in abscissae))
        logs = np.stack([np.log(x).reshape(-1) for x in columns], axis=1)
        return logs - self._problem.centre, columns[0].shape


def fit_law(
    kind: Kind,
    abscissae: Sequence[np.ndarray],
    loss: np.ndarray,
    *,
    floor: bool = True,
    groups: np.ndarray | None = None,
    huber: float = 1e-3,
    drop_highest: int = 0,
    draws: int = 1000,
    starts: int = 100,
    resample: str = "auto",
    level: float = 0.95,
    seed: int = 0,
) -> Law:
    """Fit a law by Huber's loss on log residuals, from many starts (Hoffmann et al. 2022, eq. 3).

    Args: each of ``abscissae``, and ``loss``: float ``[rows]``, all positive. ``groups [rows]``: what is resampled
    together, usually the run (its checkpoints share one fate); each row is a group of its own where None. ``huber``:
    delta. ``drop_highest``: leave out the rows with that many highest losses, a declared outlier rule.

    ``starts`` exponents are tried with the best coefficients for each (``scaling.projection``); the best two descend.
    ``resample``: "runs" (whole groups), "residuals" (of the law), "seeds" (of repeated runs about their own mean: the
    noise of training alone), or "auto": groups where there are at least MIN_GROUPS, else residuals.

    Intervals are profile likelihood's where every row is a group of its own, else the bootstrap's percentiles,
    stretched for the few degrees of freedom. Rows at the same abscissae are repetitions (seeds). Where the law misses
    their means by more than they differ (``scaling.lack``, 5 %), what it misses by is shared, and the law is of these
    means, one row each: more seeds of a setting do not make a wrong law surer. (Not where seeds are resampled.)

    Raises TableError for fewer usable rows than parameters plus one, more than MOST_ROWS, a single value of an
    abscissa, a value that is not a finite number above 0, or a bad option.
    """
    columns = [np.asarray(x, dtype=np.float64) for x in abscissae]
    loss = np.asarray(loss, dtype=np.float64)
    form = Powers(len(kind.abscissae), floor)
    if not huber > 0:
        raise TableError(f"huber={huber}: expected a number above 0 (1e-3 is the usual one)")
    if starts < 1:
        raise TableError(f"starts={starts}: expected 1 or more (100 is the usual number)")
    if drop_highest < 0:
        raise TableError(f"drop_highest={drop_highest}: expected 0 or more")
    for name, values in zip((*kind.abscissae, "loss"), (*columns, loss), strict=True):
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise TableError(f"{name}={values[row]:g} (row {row + 1}): expected a finite number above 0")
    dropped = np.sort(np.argsort(-loss, kind="stable")[:drop_highest])
    keep = np.setdiff1d(np.arange(len(loss)), dropped)
    membership = np.arange(len(loss)) if groups is None else np.asarray(groups)
    columns, loss, membership = [x[keep] for x in columns], loss[keep], membership[keep]
    if len(loss) > MOST_ROWS:
        thin = "as of every tenth validation of a curve"
        raise TableError(f"rows={len(loss):,}: expected {MOST_ROWS:,} or fewer; fit to a part of them, {thin}")
    if len(loss) < form.size + 1:
        raise TableError(f"rows={len(loss)}: too few for {form.size} parameters; expected {form.size + 1} or more")
    names = ("compute",) if kind is POWER else kind.abscissae
    for name, values in zip(names, columns, strict=True):
        if len(np.unique(values)) < 2:
            raise TableError(f"{name}={values[0]:g} in every row: expected at least two different values")
    member, group_total = group_index(membership)

    logs = np.stack([np.log(x) for x in columns], axis=1)
    problem = Problem(form, logs - logs.mean(axis=0), np.log(loss), member, huber, logs.mean(axis=0), starts)
    theta, objective, ends = _best(problem)
    residual = problem.target - form.log_loss(theta[None], problem.u)[0]
    profiled, how, luck = group_total == len(loss), "profile likelihood", 0.0
    lack = lack_of_fit(problem.u, residual, form.size) if profiled and resample != "seeds" else None
    if lack is not None and lack.p < LACKING:
        problem, luck = averaged(problem, lack), lack.luck_of_one
        group_total = problem.groups
        theta, objective, ends = _best(problem)
        residual = problem.target - form.log_loss(theta[None], problem.u)[0]
        how = f"{how} of settings' means, as the law misses these by more than seeds differ (F = {lack.f:.3g})"
    samples, method = bootstrap(problem, theta, resample, draws, np.random.default_rng(seed))
    # Jackknifed residuals already pay for the parameters; only the mean of the groups is left to pay for.
    spent = 1 if method == "residuals" and group_total < len(problem.target) else form.size
    widen = small_sample_factor(group_total, spent, level)
    params = values_of(kind, problem, theta)
    percentiles = percentiles_of(kind, problem, theta, samples, level, widen)
    intervals = profiled_of(kind, problem, theta, ends[:, 1:], level) if profiled else percentiles
    out = left_out_residuals(problem, theta)
    return Law(
        kind=kind,
        params=params,
        intervals=intervals,
        interval=how if profiled else f"bootstrap of {method}",
        percentiles=percentiles,
        objective=objective,
        rows=len(loss),
        groups=group_total,
        ranges=tuple((float(x.min()), float(x.max())) for x in columns),
        ratios=_ratios(columns),
        scatter=float(1.4826 * np.median(np.abs(residual - np.median(residual)))),
        run_noise=float(np.sqrt(np.mean(out**2) + luck**2)),
        identification=identify(kind, problem, theta, params, intervals, ends, loss),
        bootstrap=method,
        draws=len(samples),
        level=level,
        huber=huber,
        dropped=tuple(int(row) for row in dropped),
        _problem=problem,
        _theta=theta,
        _valleys=ends,
        _profiled=profiled,
        _samples=samples,
        _widen=widen,
    )


def fit_power_law(compute: np.ndarray, loss: np.ndarray, *, floor: bool = False, **options: Any) -> Law:
    """L = floor + a·C^(−b); the options of ``fit_law``."""
    return fit_law(POWER, [compute], loss, floor=floor, **options)


def _raised(low: np.ndarray, high: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Losses of log losses; what is open at the top is infinite."""
    with np.errstate(over="ignore"):
        return np.exp(low).reshape(shape), np.exp(high).reshape(shape)


def _ratios(columns: Sequence[np.ndarray]) -> tuple[float, float]:
    if len(columns) != 2:
        return float("nan"), float("nan")
    ratio = columns[1] / columns[0]
    return float(ratio.min()), float(ratio.max())


def _best(problem: Problem) -> tuple[np.ndarray, float, np.ndarray]:
    """(theta, its objective, every end ``[starts, 1 + size]`` with its objective first)."""
    ones = np.ones((1, len(problem.target)))
    seeds = projected_starts(
        problem.form, problem.u, problem.target[None], ones, delta=problem.delta, lower=problem.lower,
        upper=problem.upper, starts=problem.starts, keep=12,
    )[0]  # fmt: skip
    thetas, objectives = problem.descend(seeds, problem.target[None], ones)
    best = int(np.argmin(objectives))
    return thetas[best], float(objectives[best]), np.column_stack([objectives, thetas])
