"""Does one bin's loss go with a score better than the mean of all bins does, and does it predict it better?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from scaling.coefficients import KINDS, Control, Kind, coefficient
from scaling.correlation import by_jackknife, descriptive, spread_of, z_of
from scaling.dependence import NOTHING, Groups, Statistic
from scaling.errors import TableError
from scaling.plain import plain
from scaling.prediction import left_out_r2


@dataclass(frozen=True)
class Bin:
    """A bin's coefficient beside the mean's.

    ``difference`` is of Fisher's z, above 0 where the bin is the stronger: the mean's sign counts as the right one.
    ``low`` to ``high`` is its interval; ``p`` that it is 0 for this bin alone, ``p_best`` for whoever picks the most
    different of all bins; all NaN where leaving out no group changes the difference, or there are two groups; the p
    for Kendall's given columns too (``correlation.descriptive``).
    """

    name: str
    r: float
    r_low: float
    r_high: float
    difference: float
    low: float
    high: float
    p: float
    p_best: float


@dataclass(frozen=True)
class Bins:
    """Bins by coefficient, the mean's own coefficients (r, low, high), and R² on groups that were left out.

    ``r2``: by name, of the mean (``mean``), of each bin, and of what is held fixed alone (``control``).
    """

    mean: dict[Kind, tuple[float, float, float]]
    rows: dict[Kind, list[Bin]]
    r2: dict[str, float]
    level: float

    def best(self, kind: Kind) -> Bin:
        """The bin whose coefficient is furthest on the mean's side."""
        return max(self.rows[kind], key=lambda row: row.difference)

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""
        return {
            "mean": {
                kind: plain(dict(zip(("r", "low", "high"), ends, strict=True))) for kind, ends in self.mean.items()
            },
            **{kind: [plain(asdict(row)) for row in rows] for kind, rows in self.rows.items()},
            "r2_left_out": plain(dict(self.r2)),
        }


def compare_bins(
    mean: np.ndarray,
    bins: np.ndarray,
    score: np.ndarray,
    *,
    names: list[str] | None = None,
    groups: Groups | None = None,
    control: Control | None = None,
    kinds: Sequence[Kind] = KINDS,
    level: float = 0.95,
    seed: int = 0,
) -> Bins:
    """Each of ``bins [rows, k]`` beside their ``mean [rows]``, as predictors of ``score [rows]``.

    The mean and the bins are correlated with each other, so that intervals that overlap say nothing about a
    difference: this is the difference itself, its standard error by the same jackknife over groups (over rows without
    groups), Student's t, and for the best of all bins the largest t of their joint distribution (``Spread``).

    A coefficient that some column hasn't, since the control leaves nothing of it, is left out.

    Raises TableError where that is so of all coefficients.
    """
    names = names or [str(place) for place in range(bins.shape[1])]
    groups = groups or Groups(len(score), {})
    held = control or Control.nothing(len(score))
    columns = [mean, *bins.T]
    rng = np.random.default_rng(seed)
    which = ""
    means: dict[Kind, tuple[float, float, float]] = {}
    rows: dict[Kind, list[Bin]] = {}
    for kind in kinds:
        everything = np.ones((1, len(score)))
        r = np.array([coefficient(kind, column, score, everything, held)[0] for column in columns])
        if np.isnan(r).any():
            which = ["the mean", *names][int(np.argmax(np.isnan(r)))]
            continue
        count = len(columns)
        statistic = _beside(kind, columns, score, held, -1.0 if r[0] < 0 else 1.0)
        both = spread_of(statistic, groups, held)
        spread = both.part(count)
        ends = [by_jackknife(kind, float(r[k]), both, k, groups, held, level)[:2] for k in range(count)]
        means[kind] = (float(r[0]), *ends[0])
        errors = np.where(spread.errors < NOTHING, np.nan, spread.errors)
        reach = stats.t.ppf((1 + level) / 2, spread.freedom) * errors
        p = np.stack([spread.p_values(), spread.p_of_largest(rng)])
        if descriptive(kind, held):
            p[:] = np.nan
        rows[kind] = [
            Bin(name, *map(float, numbers))
            for name, *numbers in zip(
                names,
                r[1:],
                [low for low, _ in ends[1:]],
                [high for _, high in ends[1:]],
                spread.values,
                spread.values - reach,
                spread.values + reach,
                *p,
                strict=True,
            )
        ]
    if not rows:
        raise TableError(f"{which}: never changes, or not once the others are held fixed")
    r2 = {"mean": left_out_r2(mean, score, groups, held)}
    if held.parameters:
        r2["control"] = left_out_r2(None, score, groups, held)
    r2 |= {name: left_out_r2(column, score, groups, held) for name, column in zip(names, bins.T, strict=True)}
    return Bins(means, rows, r2, level)


def _beside(kind: Kind, columns: list[np.ndarray], score: np.ndarray, held: Control, side: float) -> Statistic:
    """Fisher's z of each column, the mean first, and then how far each bin's lies beyond the mean's."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        r = np.stack([coefficient(kind, column, score, weights, held) for column in columns], axis=1)
        z = z_of(kind, r, len(score))
        return np.concatenate([z, side * (z[:, 1:] - z[:, :1])], axis=1)

    return statistic


def answer(bins: Bins, kind: Kind, what: str, label: str) -> str:
    """One sentence: does a bin's loss go with ``what`` better than the mean? ``label`` names the best bin."""
    best, mean = bins.best(kind), bins.mean[kind]
    text = f"Of {len(bins.rows[kind])} bins of t, {label} goes with {what} most ({kind.capitalize()} {best.r:+.2f}"
    text += f" against the mean's {mean[0]:+.2f})"
    ahead = bins.r2[best.name] - bins.r2["mean"]
    gain = ""
    if math.isfinite(ahead):
        gain = f"; R² on groups left out {bins.r2[best.name]:.2f} against {bins.r2['mean']:.2f}"
    if best.difference <= 0:
        text = f"No bin of t goes with {what} more than the mean does ({kind.capitalize()} {mean[0]:+.2f})"
        gain = ""
    elif best.p_best < 1 - bins.level:
        text += f", more than the mean does (p = {best.p_best:.2g} for the best of all)"
    elif math.isfinite(best.p_best):
        text += f", but not shown to do so more than the mean (p = {best.p_best:.2g} for the best of all)"
    return (text + gain + ".").replace("-", "−")
