"""Do a table's ranks agree with others' ranks of the same names, such as the SD3 paper's?"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from scaling.correlation import Coefficient, correlate
from scaling.errors import TableError
from scaling.ranking import RankTable
from scaling.tables import labels, numbers

_DEPTH = re.compile(r"^d\d+ ")


@dataclass(frozen=True)
class Agreement:
    """Spearman's coefficient between two rankings of ``names``, with two intervals.

    ``spearman`` holds the interval over the names: what other names would have given. ``low``, ``high`` are over the
    bootstrap of the table's own measurement, the names fixed; NaN without one.
    """

    source: str
    names: tuple[str, ...]
    spearman: Coefficient
    low: float
    high: float
    resampled: str

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where there is no interval."""
        return {
            "source": self.source,
            "names": list(self.names),
            "spearman": self.spearman.r,
            "over_names": {
                "low": self.spearman.low,
                "high": self.spearman.high,
                "interval": self.spearman.interval,
                "p": self.spearman.p,
            },
            "over_measurement": {
                "low": self.low if np.isfinite(self.low) else None,
                "high": self.high if np.isfinite(self.high) else None,
                "resampled": self.resampled,
            },
        }


def bare(name: str) -> str:
    """A name without the depth that a table of several depths puts before it: ``d2 rf`` is ``rf``."""
    return _DEPTH.sub("", name)


def among(table: pd.DataFrame, reference: pd.DataFrame, source: str, name: str = "name") -> pd.DataFrame:
    """The rows of a table of scores whose ``name`` (a depth before it aside) is a ``name`` of ``reference``.

    Fronts depend on who takes part, so names that the reference lacks go before any front is peeled.

    Raises TableError where fewer than 2 names are left.
    """
    known = set(labels(reference, "name"))
    ours = labels(table, name)
    kept = np.array([bare(label) in known for label in ours])
    count = len(set(ours[kept]))
    if count < 2:
        shown = ", ".join(map(repr, sorted(known)[:3])) + (", …" if len(known) > 3 else "")
        raise TableError(f"among={source!r}: {count} of the table's names in it; expected 2 or more (it has {shown})")
    return table[kept].reset_index(drop=True)


def agree(found: RankTable, reference: pd.DataFrame, source: str, *, level: float = 0.95, seed: int = 0) -> Agreement:
    """Compare average ranks with ``reference`` (columns name, rank) over the names that both have.

    Raises TableError where fewer than 3 are in common, or where a name is there twice (as with several depths).
    """
    known = dict(zip(labels(reference, "name"), numbers(reference, "rank"), strict=True))
    if len(known) < len(reference):
        raise TableError(f"reference={source!r}: a name comes twice; expected one rank a name")
    ours = [bare(name) for name in found.names]
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
    average = np.array([found.places[index].all.rank for index in common])
    coefficient = correlate(average, theirs, level=level, seed=seed).spearman
    low = high = float("nan")
    drawn = found.samples[:, common]
    if len(drawn) and np.isfinite(drawn).all():
        low, high = _measured(drawn, theirs, coefficient.r, level)
    return Agreement(source, tuple(ours[i] for i in common), coefficient, low, high, found.resampled)


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
