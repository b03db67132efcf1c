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

JACKKNIFE_ROWS = 10
"""Of fewer rows that stand alone the jackknife makes intervals of Pearson's and Spearman's up to twice as long as they
need to be."""
PERMUTATIONS = 20_000
DESCRIPTIVE = "none: descriptive"
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
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    order: np.ndarray | None = None,
) -> Correlation:
    """Correlate two columns ``[rows]`` of finite numbers; with ``control`` partially (``Control``, ``coefficient``).

    Intervals are of Fisher's z, as far on either side as the larger of two says: a jackknife over the rows, or with
    ``groups`` over whole groups, with Student's t; and what as many rows of normal columns have that stand alone, with
    standard error 1/√(n−3), for Spearman √((1 + r²/2)/(n−3)) (Bonett and Wright 2000), for Kendall √(0.437/(n−4))
    (Fieller, Hartley and Pearson 1957), n less for what a control fits. The first by itself is short for groups that
    happen to be alike, the second for heavy tails, for spread that changes, and for Kendall's near ±1, whose variance
    is no constant there. Below JACKKNIFE_ROWS rows that stand alone the second is all, but for Kendall. With fewer
    than 4 rows (5 for Kendall) beyond what is fitted, or two groups, there is none: (−1, 1).

    p-values count permutations: of rows, or of whole groups where all have one size; else, and with a control, they
    are of the same z: below 1 − ``level`` where the interval leaves out 0. NaN where leaving out no group changes
    anything, and for Kendall's given columns (``descriptive``). ``order`` are ``permutation.orders`` of the same
    groups, where a caller has them.

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
    found = {}
    for kind in KINDS:
        r = float(coefficient(kind, x, y, np.ones((1, len(x))), held)[0])
        if math.isnan(r):
            found[kind] = Coefficient(r, -1.0, 1.0, math.nan, LEFT_NOTHING, "none")
            continue
        spread = spread_of(z_statistic(kind, x, y, held), groups, held)
        low, high, interval = by_jackknife(kind, r, spread, 0, groups, held, level)
        if control is None and groups.equal():
            order = orders(groups, permutations, seed) if order is None else order
            p, p_method = permutation_p(kind, x, y, groups, order)
        else:
            p, p_method = _p_of_z(kind, r, spread, groups, held)
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


def z_statistic(kind: Kind, x: np.ndarray, y: np.ndarray, control: Control) -> Statistic:
    """Fisher's z of one coefficient, of weighted rows."""
    return lambda weights: z_of(kind, coefficient(kind, x, y, weights, control)[:, None], len(x))


def fisher_error(kind: Kind, r: float, rows: int) -> float:
    """Standard error of Fisher's z of ``rows`` independent ones; NaN of too few."""
    spare = rows - (4 if kind == "kendall" else 3)
    variance = {"pearson": 1.0, "spearman": 1 + r * r / 2, "kendall": 0.437}[kind]
    return math.sqrt(variance / spare) if spare > 0 else math.nan


def spread_of(statistic: Statistic, groups: Groups, control: Control) -> Spread:
    """Jackknife over groups, or over rows that stand alone; these have fewer degrees of freedom for what is fitted."""
    return jackknife(statistic, groups, 0 if groups.index else control.parameters)


def by_jackknife(
    kind: Kind, r: float, spread: Spread, place: int, groups: Groups, control: Control, level: float
) -> tuple[float, float, str]:
    """Interval of ``r``, whose Fisher's z is the value at ``place`` of ``spread``, and what it is called.

    It reaches no less far than that of independent rows, which is all that few have (``by_fisher``). Where leaving out
    a group leaves nothing to correlate there is none, nor of two groups; where no group changes anything, as when all
    orders agree, it is that of as many independent rows as there are groups.
    """
    if groups.few:
        return -1.0, 1.0, "none: two groups are one difference"
    error, freedom = float(spread.errors[place]), float(spread.freedom[place])
    error = 0.0 if by_fisher(kind, groups, control) else error
    still = error < NOTHING
    rows, unit = (min(groups.counts.values()), "group") if still and groups.index else (groups.rows, "row")
    alone = fisher_error(kind, r, rows - control.parameters) * float(stats.norm.ppf((1 + level) / 2))
    if math.isnan(alone):
        return -1.0, 1.0, f"none: fewer than {(5 if kind == 'kendall' else 4) + control.parameters} {unit}s"
    if not math.isfinite(error):
        return -1.0, 1.0, f"none: not defined without some {'group' if groups.index else 'row'}"
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    what = " × ".join(f"{name} ({count})" for name, count in groups.counts.items()) or f"{groups.rows} rows"
    how = f"jackknife over {what}, t with {freedom:.3g} df"
    if alone >= reach:
        reach = alone
        how = f"Fisher z of the rows, wider than the {how}" if groups.index and not still else "Fisher z"
        how += " of the groups" if unit == "group" else ""
    z = float(z_of(kind, np.array(r), rows))
    return min(math.tanh(z - reach), r), max(math.tanh(z + reach), r), how


def by_fisher(kind: Kind, groups: Groups, control: Control) -> bool:
    """Whether rows are too few for a jackknife (JACKKNIFE_ROWS); Kendall's has nothing better."""
    return kind != "kendall" and not groups.index and groups.rows - control.parameters < JACKKNIFE_ROWS


def descriptive(kind: Kind, control: Control) -> bool:
    """Whether a coefficient isn't 0 where the two columns are unrelated given the others, so that it has no p.

    That is so of Kendall's given columns (Kendall 1942; Korn 1984): order alone can't take out what they do.
    """
    return kind == "kendall" and control.columns.size > 0


def _p_of_z(kind: Kind, r: float, spread: Spread, groups: Groups, control: Control) -> tuple[float, str]:
    """Two-sided p that z is 0 by the first of ``spread``, or as of independent rows if that is larger; and by which."""
    if descriptive(kind, control):
        return math.nan, DESCRIPTIVE
    p = 0.0 if by_fisher(kind, groups, control) else float(spread.p_values()[0])
    alone = 2 * float(stats.norm.sf(abs(spread.values[0]) / fisher_error(kind, r, groups.rows - control.parameters)))
    if not math.isfinite(p + alone):
        return math.nan, "none"
    return (p, "t of the jackknife") if p >= alone else (alone, "Fisher z of the rows")
