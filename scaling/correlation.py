"""Correlations that say how sure they are, of rows that share groups too, and with other columns held fixed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import numpy as np
from scipy import stats

from scaling.coefficients import KINDS, Control, Kind, coefficient
from scaling.dependence import NOTHING, Groups, Spread, Statistic, jackknife
from scaling.errors import TableError
from scaling.permutation import orders, permutation_p
from scaling.plain import plain
from scaling.resample import group_counts

BOOTSTRAP_ROWS = 20
"""From this many rows on, intervals of rows that stand alone are BCa bootstrap; below, Fisher's z, since few rows
repeat too often."""
PERMUTATIONS = 20_000
NONE = "none: fewer than 4 rows"
LEFT_NOTHING = "none: nothing left once the others are held fixed"


@dataclass(frozen=True)
class Coefficient:
    """One coefficient: ``r``, its interval at ``level`` and how it was made, the two-sided p-value and how it was."""

    r: float
    low: float
    high: float
    p: float
    interval: str
    p_method: str

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""
        return plain(asdict(self))


@dataclass(frozen=True)
class Correlation:
    """Pearson's, Spearman's and Kendall's (tau-b) coefficients of the same ``rows`` points; ``groups`` by factor."""

    rows: int
    level: float
    pearson: Coefficient
    spearman: Coefficient
    kendall: Coefficient
    groups: dict[str, int] = field(default_factory=dict)

    def of(self, kind: Kind) -> Coefficient:
        """The coefficient of that name."""
        found: Coefficient = getattr(self, kind)
        return found

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""
        coefficients: dict[str, object] = {kind: self.of(kind).to_json() for kind in KINDS}
        return {"rows": self.rows, "level": self.level, **coefficients, "groups": self.groups}


def correlate(
    x: np.ndarray,
    y: np.ndarray,
    *,
    groups: Groups | None = None,
    control: Control | None = None,
    level: float = 0.95,
    draws: int = 2000,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    order: np.ndarray | None = None,
) -> Correlation:
    """Correlate two columns ``[rows]`` of finite numbers; with ``control`` partially (``Control``, ``coefficient``).

    Rows that stand alone: BCa bootstrap over rows (Efron 1987) from BOOTSTRAP_ROWS on; below, Fisher's z with standard
    error 1/√(n−3), for Spearman √((1 + r²/2)/(n−3)) (Bonett and Wright 2000), for Kendall √(0.437/(n−4)) (Fieller,
    Hartley and Pearson 1957). With fewer than 4 rows (5 for Kendall) there is none: (−1, 1).

    With ``groups``, or a control: Fisher's z with a standard error by jackknife over whole groups, and Student's t.

    p-values count permutations: of rows, or of whole groups where all have one size; else, and with a control, they
    are of the t of the jackknife, and NaN where leaving out no group changes anything. ``order`` are
    ``permutation.orders`` of the same groups, where a caller has them.

    A coefficient to which the control leaves nothing is NaN, as those of ranks are where loss falls with every FLOP.

    Raises TableError for fewer than 3 rows, different lengths, a column that never changes, or where the control
    leaves nothing to any coefficient.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    _check(x, y)
    groups = groups or Groups(len(x), {})
    held = control or Control.nothing(len(x))
    if len(x) < 3 + held.parameters:
        raise TableError(f"rows={len(x)}: too few with that held fixed; expected {3 + held.parameters} or more")
    alone = not groups.index and control is None and len(x) >= BOOTSTRAP_ROWS and draws > 0
    counts = group_counts(draws, len(x), np.random.default_rng(seed)) if alone else None
    found = {}
    for kind in KINDS:
        r = float(coefficient(kind, x, y, np.ones((1, len(x))), held)[0])
        if math.isnan(r):
            found[kind] = Coefficient(r, -1.0, 1.0, math.nan, LEFT_NOTHING, "none")
            continue
        p, p_method = math.nan, ""
        if groups.index or control is not None:
            spread = spread_of(_z(kind, x, y, held), groups, held)
            low, high, interval = by_jackknife(kind, r, spread, 0, groups, held, level)
            p = float(spread.p_values()[0])
            p_method = "t of the jackknife" if math.isfinite(p) else "none"
        elif counts is not None:
            low, high = _bca(kind, x, y, r, level, counts)
            interval = "BCa bootstrap over rows"
        else:
            low, high, interval = fisher(kind, r, len(x), level)
        if control is None and groups.equal():
            order = orders(groups, permutations, seed) if order is None else order
            p, p_method = permutation_p(kind, x, y, groups, order)
        found[kind] = Coefficient(r, low, high, p, interval, p_method)
    if all(math.isnan(c.r) for c in found.values()):
        raise TableError("nothing left of a column once the others are held fixed; expected one that still changes")
    return Correlation(len(x), level, found["pearson"], found["spearman"], found["kendall"], groups.counts)


def _check(x: np.ndarray, y: np.ndarray) -> None:
    if x.shape != y.shape or x.ndim != 1:
        raise TableError(f"rows={len(x)} and {len(y)}: expected two columns of one length")
    if len(x) < 3:
        raise TableError(f"rows={len(x)}: too few to correlate; expected 3 or more")
    for name, values in (("x", x), ("y", y)):
        if np.ptp(values) == 0:
            raise TableError(f"{name}={values[0]:g} in every row: expected a column that changes")


def z_of(kind: Kind, r: np.ndarray, rows: int) -> np.ndarray:
    """Fisher's z. Orders that agree in full would give an infinite one: half a swap of neighbours is taken off."""
    swap = {"pearson": 1e-12, "spearman": 6 / (rows * (rows**2 - 1)), "kendall": 2 / (rows * (rows - 1))}[kind]
    return np.arctanh(np.clip(r, swap - 1, 1 - swap))


def _z(kind: Kind, x: np.ndarray, y: np.ndarray, control: Control) -> Statistic:
    return lambda weights: z_of(kind, coefficient(kind, x, y, weights, control)[:, None], len(x))


def fisher(kind: Kind, r: float, rows: int, level: float) -> tuple[float, float, str]:
    """Interval of a coefficient of ``rows`` independent rows, and what it is called."""
    spare = rows - (4 if kind == "kendall" else 3)
    if spare < 1:
        return -1.0, 1.0, NONE if kind != "kendall" else NONE.replace("4", "5")
    variance = {"pearson": 1.0, "spearman": 1 + r * r / 2, "kendall": 0.437}[kind] / spare
    reach = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    z = float(z_of(kind, np.array(r), rows))
    return min(math.tanh(z - reach), r), max(math.tanh(z + reach), r), "Fisher z"


def spread_of(statistic: Statistic, groups: Groups, control: Control) -> Spread:
    """Jackknife over groups, or over rows that stand alone; these have fewer degrees of freedom for what is fitted."""
    return jackknife(statistic, groups, 0 if groups.index else control.parameters)


def by_jackknife(
    kind: Kind, r: float, spread: Spread, place: int, groups: Groups, control: Control, level: float
) -> tuple[float, float, str]:
    """Interval of ``r``, whose Fisher's z is the value at ``place`` of ``spread``, and what it is called.

    Where leaving out a group leaves nothing to correlate there is none; where none of them changes anything, as when
    all orders agree, the interval is that of as many independent rows as there are groups.
    """
    error, freedom = float(spread.errors[place]), float(spread.freedom[place])
    if not math.isfinite(error):
        return -1.0, 1.0, "none: not defined without some group"
    if error < NOTHING:
        fewest = min(int(factor.max()) + 1 for factor in groups.factors)
        low, high, how = fisher(kind, r, fewest - control.parameters, level)
        return low, high, how.replace("rows", "groups") if how.startswith("none") else "Fisher z of the groups"
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    z = float(spread.values[place])
    what = " × ".join(f"{name} ({count})" for name, count in groups.counts.items()) or f"{groups.rows} rows"
    how = f"jackknife over {what}, t with {freedom:.3g} df"
    return min(math.tanh(z - reach), r), max(math.tanh(z + reach), r), how


def _bca(kind: Kind, x: np.ndarray, y: np.ndarray, r: float, level: float, counts: np.ndarray) -> tuple[float, float]:
    rows, draws = len(x), len(counts)
    nothing = Control.nothing(rows)
    samples = coefficient(kind, x, y, counts, nothing)
    samples = samples[np.isfinite(samples)]
    left = coefficient(kind, x, y, 1 - np.eye(rows), nothing)
    spread = left.mean() - left
    scale = (spread**2).sum() ** 1.5
    acceleration = (spread**3).sum() / (6 * scale) if scale > 0 else 0.0
    below = np.clip(((samples < r).mean() + (samples <= r).mean()) / 2, 1 / (draws + 1), draws / (draws + 1))
    bias = stats.norm.ppf(below)
    shifted = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(samples, stats.norm.cdf(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)
