"""Do a table's ranks agree with others' ranks of the same names, such as the SD3 paper's?"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy import stats

from scaling.correlation import Coefficient, correlate
from scaling.errors import TableError
from scaling.plain import plain
from scaling.ranking import Estimate, RankTable
from scaling.tables import labels, numbers

_DEPTH = re.compile(r"^d\d+ ")


@dataclass(frozen=True)
class Agreement:
    """Spearman's coefficient between two rankings of ``names``, with two intervals.

    ``spearman`` holds the interval over the names: what other names would have given. ``low``, ``high`` are over
    repetitions of the table's own measurement, the names fixed; NaN without one. ``column`` is what was compared with,
    ``groups`` the same for each group of settings (a value of ``by``) that the other table ranks too, as ``rank_5``.
    """

    source: str
    names: tuple[str, ...]
    spearman: Coefficient
    low: float
    high: float
    resampled: str
    column: str = "rank"
    by: str | None = None
    groups: Mapping[str, Agreement] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where there is no interval."""
        over_names = {"low": plain(self.spearman.low), "high": plain(self.spearman.high)}
        return {
            "source": self.source,
            "column": self.column,
            "names": list(self.names),
            "spearman": plain(self.spearman.r),
            "over_names": {**over_names, "interval": self.spearman.interval, "p": plain(self.spearman.p)},
            "over_measurement": {"low": plain(self.low), "high": plain(self.high), "resampled": self.resampled},
            "groups": {label: found.to_json() for label, found in self.groups.items()},
        }


def bare(name: str) -> str:
    """A name without the depth that a table of several depths puts before it: ``d2 rf`` is ``rf``."""
    return _DEPTH.sub("", name)


def matched(name: str, known: Container[str]) -> str:
    """What ``name`` is called among the ``known``: itself, or else without the depth before it."""
    return name if name in known else bare(name)


def among(table: pd.DataFrame, reference: pd.DataFrame, source: str, name: str = "name") -> pd.DataFrame:
    """The rows of a table of scores whose ``name`` (a depth before it aside) is a ``name`` of ``reference``.

    Fronts depend on who takes part, so names that the reference lacks go before any front is peeled.

    Raises TableError where fewer than 2 names are left.
    """
    known = set(labels(reference, "name"))
    ours = labels(table, name)
    kept = np.array([matched(label, known) in known for label in ours])
    count = len(set(ours[kept]))
    if count < 2:
        shown = ", ".join(map(repr, sorted(known)[:3])) + (", …" if len(known) > 3 else "")
        raise TableError(f"among={source!r}: {count} of the table's names in it; expected 2 or more (it has {shown})")
    return table[kept].reset_index(drop=True)


def agree(found: RankTable, reference: pd.DataFrame, source: str, *, level: float = 0.95, seed: int = 0) -> Agreement:
    """Compare average ranks with ``reference`` (columns name, rank, maybe rank_5 …) over the names that both have.

    Where all settings have the same number of steps, and ``reference`` has a column for these, it is taken. Spearman
    is NaN where all ranks are equal.

    Raises TableError where fewer than 3 are in common, or where a name is there twice (as with several depths).
    """
    ours_all = {place.name: place.all for place in found.places}
    column = "rank"
    if "steps" in found.settings.columns and found.settings["steps"].nunique() == 1:
        only = f"rank_{found.settings['steps'].iloc[0]}"
        column = only if only in reference.columns else column
    groups = {}
    for label in found.groups:
        if f"rank_{label}" in reference.columns:
            part = {place.name: place.groups[label] for place in found.places}
            groups[label] = _agree(part, reference, f"rank_{label}", source, level, seed)
    whole = _agree(ours_all, reference, column, source, level, seed, found.samples)
    return replace(whole, resampled=found.resampled, by=found.by, groups=groups)


def _agree(
    ranks: Mapping[str, Estimate],
    reference: pd.DataFrame,
    column: str,
    source: str,
    level: float,
    seed: int,
    samples: np.ndarray | None = None,
) -> Agreement:
    """Compare names' ranks with one column; ``samples [repetitions, names]`` give the interval over measurement."""
    known = dict(zip(labels(reference, "name"), numbers(reference, column), strict=True))
    if len(known) < len(reference):
        raise TableError(f"reference={source!r}: a name comes twice; expected one rank a name")
    ours = [matched(name, known) for name in ranks]
    repeated = sorted({name for name in ours if ours.count(name) > 1 and name in known})
    if repeated:
        raise TableError(
            f"name={repeated[0]!r}: at several depths; expected one to compare with {source!r} (--where depth=…)"
        )
    common = [index for index, name in enumerate(ours) if name in known]
    if len(common) < 3:
        raise TableError(
            f"reference={source!r}: {len(common)} names in common with the table; expected 3 or more "
            f"(it has {', '.join(map(repr, list(known)[:3]))}, …)"
        )
    theirs = np.array([known[ours[index]] for index in common])
    average = np.round([estimate.rank for estimate in ranks.values()], 9)[common]
    names = tuple(ours[index] for index in common)
    if np.ptp(average) == 0 or np.ptp(theirs) == 0:
        nan = float("nan")
        none = Coefficient(nan, nan, nan, nan, "none: all ranks are equal", "none")
        return Agreement(source, names, none, nan, nan, "none", column)
    coefficient = correlate(average, theirs, level=level, seed=seed).spearman
    low = high = float("nan")
    if samples is not None and len(samples) and np.isfinite(samples).all():
        low, high = _measured(samples[:, common], theirs, coefficient.r, level)
    return Agreement(source, names, coefficient, low, high, "none", column)


def _measured(samples: np.ndarray, theirs: np.ndarray, r: float, level: float) -> tuple[float, float]:
    """Interval of ``r`` from Spearman's over ``samples [bootstraps, names]``, as far on either side as ``level`` lie.

    Ranks that all agree in a resample count as 0.
    """
    x = stats.rankdata(np.round(samples, 9), axis=1)
    x -= x.mean(axis=1, keepdims=True)
    y = stats.rankdata(theirs)
    y -= y.mean()
    norm = np.sqrt((x**2).sum(axis=1) * (y**2).sum())
    drawn = np.divide(x @ y, norm, out=np.zeros(len(x)), where=norm > 0)
    reach = float(np.quantile(np.abs(drawn - r), level))
    return max(r - reach, -1.0), min(r + reach, 1.0)
