"""Power laws of loss over compute: L = floor + a·C^(−b), with intervals and what the data can and cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from scaling.errors import TableError
from scaling.huber import Model, minimise
from scaling.resample import group_counts, group_index, interval, small_sample_factor

MIN_GROUPS = 10
"""Below this many groups (runs), resampling whole groups is too coarse and residuals are resampled instead."""
_CHUNK = 300_000  # numbers in one [problems, rows] array: small enough to stay near the cache


@dataclass(frozen=True)
class PowerLaw:
    """A fitted L = floor + a·C^(−b) and its bootstrap.

    ``intervals`` holds (low, high) at ``level`` for each of ``params``; ``identifiable`` is False where the data
    leave a parameter open, and ``reasons`` says which and why. ``bootstrap`` tells which resampling was used.
    """

    params: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    objective: float
    rows: int
    groups: int
    compute_range: tuple[float, float]
    scatter: float
    identifiable: bool
    reasons: tuple[str, ...]
    bootstrap: str
    draws: int
    level: float
    huber: float
    dropped: tuple[int, ...]
    _theta: np.ndarray = field(repr=False)
    _samples: np.ndarray = field(repr=False)
    _centre: float = field(repr=False)
    _widen: float = field(repr=False)

    def predict(self, compute: np.ndarray) -> np.ndarray:
        """The law's loss at ``compute [...]``, float64."""
        return np.exp(self._log_loss(self._theta[None], compute)[0])

    def band(self, compute: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise (low, high) of the law (not of a single new run) at ``compute [m]``; NaN without a bootstrap."""
        centre = self._log_loss(self._theta[None], compute)[0]
        if not len(self._samples):
            return np.full_like(centre, np.nan), np.full_like(centre, np.nan)
        samples = self._log_loss(self._samples, compute)
        low, high = interval(samples, self.level, centre=centre, widen=self._widen)
        return np.exp(low), np.exp(high)

    def _log_loss(self, theta: np.ndarray, compute: np.ndarray) -> np.ndarray:
        offset = np.log(np.asarray(compute, dtype=np.float64)) - self._centre
        return _model(offset, theta.shape[1] == 3)(theta)[0]

    def equation(self) -> str:
        """The law as matplotlib text: ``$L = 0.05 + 3.1\\,C^{-0.21}$``."""
        mantissa, exponent = f"{self.params['a']:.2e}".split("e")
        scale = f"{self.params['a']:.3g}" if -3 < int(exponent) < 4 else rf"{mantissa}\cdot10^{{{int(exponent)}}}"
        floor = f"{self.params['floor']:.3g} + " if self.params["floor"] > 0 else ""
        return rf"$L = {floor}{scale}\,C^{{{-self.params['b']:.3f}}}$"

    def to_json(self) -> dict[str, object]:
        """The object that ``fit --law power --json`` prints: plain numbers, None where undefined."""
        finite = lambda value: float(value) if np.isfinite(value) else None  # noqa: E731
        return {
            "law": "power",
            "params": {name: finite(value) for name, value in self.params.items()},
            "intervals": {name: [finite(low), finite(high)] for name, (low, high) in self.intervals.items()},
            "objective": self.objective,
            "rows": self.rows,
            "identifiable": self.identifiable,
            "reasons": list(self.reasons),
            "groups": self.groups,
            "bootstrap": self.bootstrap,
            "draws": self.draws,
            "level": self.level,
            "huber": self.huber,
            "scatter": self.scatter,
            "dropped": list(self.dropped),
        }


def fit_power_law(
    compute: np.ndarray,
    loss: np.ndarray,
    *,
    floor: bool = False,
    groups: np.ndarray | None = None,
    huber: float = 1e-3,
    drop_highest: int = 0,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> PowerLaw:
    """Fit L = floor + a·C^(−b) by Huber's loss on log residuals, from many starts (Hoffmann et al. 2022, eq. 3).

    Args: ``compute``, ``loss`` float ``[rows]``, all positive. ``groups [rows]``: what is resampled together,
    usually the run (its checkpoints share one fate); each row is a group of its own where None. ``huber``: delta.
    ``drop_highest``: leave out the rows with that many highest losses, a declared outlier rule.

    The bootstrap draws whole groups where there are at least MIN_GROUPS; with fewer it keeps the compute values
    and resamples residuals on the log scale (one random sign and size a group, Webb 2014; single-row groups swap
    residuals). Intervals are percentiles, stretched for the few degrees of freedom.

    Raises TableError for fewer usable rows than parameters plus one, or a single value of compute.
    """
    compute, loss = np.asarray(compute, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    size = 3 if floor else 2
    if huber <= 0:
        raise TableError(f"huber={huber}: expected a number above 0 (1e-3 is the usual one)")
    if drop_highest < 0:
        raise TableError(f"drop_highest={drop_highest}: expected 0 or more")
    order = np.argsort(-loss, kind="stable")
    dropped = np.sort(order[:drop_highest])
    keep = np.setdiff1d(np.arange(len(loss)), dropped)
    membership = np.arange(len(loss)) if groups is None else np.asarray(groups)
    compute, loss, membership = compute[keep], loss[keep], membership[keep]
    if len(loss) < size + 1:
        raise TableError(f"rows={len(loss)}: too few for {size} parameters; expected {size + 1} or more")
    if len(np.unique(compute)) < 2:
        raise TableError(f"compute={compute[0]:g} in every row: expected at least two different values")
    member, group_total = group_index(membership)

    centre = float(np.log(compute).mean())
    offset, target = np.log(compute) - centre, np.log(loss)
    model = _model(offset, floor)
    lower, upper = _box(offset, target, floor)
    starts = _starts(offset, target, floor)
    ones = np.ones((1, len(target)))
    thetas, objectives = minimise(model, starts, target[None], ones, delta=huber, lower=lower, upper=upper)
    best = int(np.argmin(objectives))
    theta, objective = thetas[best], float(objectives[best])

    residual = target - model(theta[None])[0][0]
    samples, method = np.zeros((0, size)), "none"
    if draws > 0:
        rng = np.random.default_rng(seed)
        few = starts[:: max(1, len(starts) // 3)] if floor else starts[:1]
        seeds = np.concatenate([theta[None], few])
        samples, method = _bootstrap(
            offset, target, theta, residual, member, group_total, floor, huber, draws, seeds, lower, upper, rng
        )
    # Jackknifed residuals already pay for the parameters; only the mean of the groups is left to pay for.
    spent = 1 if method == "residuals" and group_total < len(target) else size
    widen = small_sample_factor(group_total, spent, level)
    params, intervals = _report(theta, samples, centre, floor, level, widen)
    reasons = _doubts(params, intervals, compute, loss, group_total, floor, thetas, objectives, huber)
    return PowerLaw(
        params=params,
        intervals=intervals,
        objective=objective,
        rows=len(target),
        groups=group_total,
        compute_range=(float(compute.min()), float(compute.max())),
        scatter=float(1.4826 * np.median(np.abs(residual - np.median(residual)))),
        identifiable=not reasons,
        reasons=reasons,
        bootstrap=method,
        draws=len(samples),
        level=level,
        huber=huber,
        dropped=tuple(int(row) for row in dropped),
        _theta=theta,
        _samples=samples,
        _centre=centre,
        _widen=widen,
    )


def _model(offset: np.ndarray, floor: bool) -> Model:
    """log L over theta = (log a at the centre, b[, log floor]), with its Jacobian."""

    def evaluate(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        power = theta[:, :1] - theta[:, 1:2] * offset
        if not floor:
            jacobian = np.empty((*power.shape, 2))
            jacobian[..., 0], jacobian[..., 1] = 1.0, -offset
            return power, jacobian
        total = np.logaddexp(power, theta[:, 2:])
        share = np.exp(power - total)
        return total, np.stack([share, -offset * share, 1 - share], axis=-1)

    return evaluate


def _box(offset: np.ndarray, target: np.ndarray, floor: bool) -> tuple[np.ndarray, np.ndarray]:
    reach = max(float(np.ptp(offset)), 1e-9)
    steepest = 20.0 / reach + 1.0
    lower, upper = [target.min() - 30, -steepest], [target.max() + 30, steepest]
    if floor:
        lower, upper = [*lower, target.min() - 12], [*upper, target.max()]
    return np.array(lower), np.array(upper)


def _starts(offset: np.ndarray, target: np.ndarray, floor: bool) -> np.ndarray:
    """Least squares of log(L − floor) on log C for a ladder of floors, each with its slope halved and doubled too."""
    design = np.stack([np.ones_like(offset), -offset], axis=1)
    smallest = np.exp(target.min())
    rows = []
    for share in (1e-4, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.97, 0.99) if floor else (0.0,):
        rest = np.log(np.exp(target) - share * smallest)
        scale, slope = np.linalg.lstsq(design, rest, rcond=None)[0]
        for factor in (1.0, 0.5, 2.0):
            start = [rest.mean(), slope * factor] if factor != 1.0 else [scale, slope]
            rows.append([*start, np.log(share * smallest)] if floor else start)
    return np.array(rows)


def _bootstrap(
    offset: np.ndarray,
    target: np.ndarray,
    theta: np.ndarray,
    residual: np.ndarray,
    member: np.ndarray,
    groups: int,
    floor: bool,
    huber: float,
    draws: int,
    starts: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, str]:
    rows, size = len(target), len(theta)
    model = _model(offset, floor)
    if groups >= MIN_GROUPS:
        method = "groups"
        weights = group_counts(draws, groups, rng)[:, member]
        # A draw that holds fewer values of compute than parameters fits anything: it is drawn again.
        for _ in range(100):
            thin = np.array([len(np.unique(offset[row > 0])) < size for row in weights])
            if not thin.any():
                break
            weights[thin] = group_counts(int(thin.sum()), groups, rng)[:, member]
        targets = np.broadcast_to(target, (draws, rows))
    else:
        method = "residuals"
        weights = np.ones((draws, rows))
        if groups == rows:
            shock = np.sqrt(rows / (rows - size)) * rng.choice(residual - residual.mean(), size=(draws, rows))
        else:
            out = _left_out_residuals(model, theta, target, member, groups, offset, huber, lower, upper)
            sizes = np.sqrt([0.5, 1.0, 1.5])
            signs = rng.choice(np.concatenate([-sizes, sizes]), size=(draws, groups))
            shock = signs[:, member] * out
        targets = target - residual + shock
    samples = np.empty((draws, size))
    step = max(1, _CHUNK // (rows * len(starts)))
    for first in range(0, draws, step):
        part = slice(first, min(first + step, draws))
        count = part.stop - part.start
        thetas, objectives = minimise(
            model,
            np.tile(starts, (count, 1)),
            np.repeat(targets[part], len(starts), axis=0),
            np.repeat(weights[part], len(starts), axis=0),
            delta=huber,
            lower=lower,
            upper=upper,
            iterations=60,
        )
        best = objectives.reshape(count, -1).argmin(1)
        samples[part] = thetas.reshape(count, len(starts), size)[np.arange(count), best]
    return samples, method


def _left_out_residuals(
    model: Model,
    theta: np.ndarray,
    target: np.ndarray,
    member: np.ndarray,
    groups: int,
    offset: np.ndarray,
    huber: float,
    lower: np.ndarray,
    upper: np.ndarray,
) -> np.ndarray:
    """Residuals ``[rows]`` of each group from the law fitted without it (the cluster jackknife's).

    A fit bends towards its own groups, the outer ones most, so its own residuals understate what a new run would
    do. A group that the law cannot be fitted without keeps its own residuals.
    """
    weights = (member[None, :] != np.arange(groups)[:, None]).astype(np.float64)
    thetas, _ = minimise(
        model, np.tile(theta, (groups, 1)), target[None], weights, delta=huber, lower=lower, upper=upper
    )
    for group in range(groups):
        if len(np.unique(offset[member != group])) < len(theta):
            thetas[group] = theta
    return target - model(thetas)[0][member, np.arange(len(target))]


def _report(
    theta: np.ndarray, samples: np.ndarray, centre: float, floor: bool, level: float, widen: float
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Named parameters and intervals; the arms are stretched where theta lives: on logs of a and floor, on b itself."""

    def named(at: np.ndarray) -> np.ndarray:
        columns = [at[:, 0] + at[:, 1] * centre, at[:, 1]]
        return np.stack([*columns, at[:, 2]] if floor else columns, axis=1)

    value = named(theta[None])[0]
    names = ("a", "b", "floor")[: len(value)]
    transform: dict[str, Callable[[float], float]] = {"a": np.exp, "b": float, "floor": np.exp}
    with np.errstate(over="ignore"):
        params = {name: float(transform[name](value[i])) for i, name in enumerate(names)}
        intervals = {name: (float("nan"), float("nan")) for name in names}
        if len(samples):
            ends = interval(named(samples), level, centre=value, widen=widen)
            intervals = {
                name: (float(transform[name](ends[0, i])), float(transform[name](ends[1, i])))
                for i, name in enumerate(names)
            }
    if not floor:
        params["floor"], intervals["floor"] = 0.0, (0.0, 0.0)
    return params, intervals


def _doubts(
    params: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    compute: np.ndarray,
    loss: np.ndarray,
    groups: int,
    floor: bool,
    thetas: np.ndarray,
    objectives: np.ndarray,
    huber: float,
) -> tuple[str, ...]:
    """What the data leave open, one short sentence each; empty where the law is pinned down."""
    doubts = []
    size, distinct = (3 if floor else 2), len(np.unique(compute))
    if distinct < size + 1:
        doubts.append(f"{distinct} different values of compute cannot check a law of {size} parameters")
    elif groups < size + 1:
        doubts.append(f"{groups} groups of rows cannot check a law of {size} parameters")
    low, high = intervals["b"]
    if not low <= high:  # NaN: no bootstrap was asked for
        return tuple(doubts)
    if low <= 0 <= high:
        doubts.append(f"the exponent's interval [{low:.3g}, {high:.3g}] holds zero: no trend is shown")
    if floor:
        low, high = intervals["floor"]
        smallest = float(loss.min())
        if low < 0.01 * smallest:
            doubts.append(f"the floor's interval [{low:.3g}, {high:.3g}] reaches zero: the data do not show a floor")
        elif high - low > 0.5 * smallest:
            doubts.append(f"the floor's interval [{low:.3g}, {high:.3g}] is wider than half the smallest loss")
        near = thetas[objectives <= objectives.min() * (1 + 1e-3) + huber * 1e-6]
        if np.ptp(near[:, 1]) > 0.1 * abs(params["b"]):
            doubts.append("fits that differ by more than a tenth in the exponent are equally good")
    return tuple(doubts)
