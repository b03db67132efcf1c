"""Groups of runs that were trained with the same seeds: paired differences, and curves with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from scaling.errors import TableError
from scaling.tables import labels, numbers, require


@dataclass(frozen=True)
class Place:
    """One group in a comparison: its mean, and its difference to the baseline with a t interval over pairs.

    ``p`` is of the paired t test that the difference is 0, by Holm's rule for all groups compared at once.
    """

    name: str
    mean: float
    difference: float
    low: float
    high: float
    p: float
    pairs: int


@dataclass(frozen=True)
class Curve:
    """Mean over seeds of a group at each point of a run, with a t interval; all float64 ``[points]``, x as given."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: list[np.ndarray]


def compare(
    results: pd.DataFrame, by: str, value: str, baseline: str, *, pair: str = "seed", level: float = 0.95
) -> list[Place]:
    """Groups of ``results`` (columns ``by``, ``pair``, ``value``; one row a run) from the lowest mean to the highest.

    A group's difference is the mean over pairs of its run less the baseline's run of the same seed, with Student's t
    interval; of the seeds that both have. The baseline's own difference is 0, and its p is 1.

    Raises TableError for an absent column or baseline, nothing beside the baseline, a seed twice in a group, or a group
    with fewer than 2 pairs.
    """
    require(results, [by, pair, value])
    table = pd.DataFrame({"group": labels(results, by), "pair": labels(results, pair), "y": numbers(results, value)})
    names = sorted(set(table["group"]))
    if baseline not in names:
        raise TableError(f"baseline={baseline!r}: no such {by}; the table has {', '.join(names)}")
    if len(names) == 1:
        raise TableError(f"{by}={baseline!r}: the only one in the table; expected 2 or more to compare")
    twice = table[table.duplicated(["group", "pair"])]
    if len(twice):
        group, which = twice["group"].iloc[0], twice["pair"].iloc[0]
        raise TableError(f"{by}={group!r}: {pair} {which} is there twice; expected once (leave rows out with where)")
    wide = table.pivot(index="pair", columns="group", values="y")
    differences = {name: (wide[name] - wide[baseline]).dropna().to_numpy() for name in names}
    for name, pairs in differences.items():
        if len(pairs) < 2:
            raise TableError(f"{by}={name!r}: {len(pairs)} {pair}s in common with {baseline}; expected 2 or more")
    found = holm({name: _p(pairs) for name, pairs in differences.items() if name != baseline})
    places = []
    for name, pairs in differences.items():
        low, high = interval(pairs, level)
        mean, difference = float(wide[name].mean()), float(pairs.mean())
        places.append(Place(name, mean, difference, low, high, found.get(name, 1.0), len(pairs)))
    return sorted(places, key=lambda place: place.mean)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: to reject all below a level errs in any with at most that probability (Holm 1979)."""
    adjusted, most = {}, 0.0
    for place, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        most = max(most, min(1.0, (len(p) - place) * value))
        adjusted[name] = most
    return adjusted


def _p(pairs: np.ndarray) -> float:
    """Two-sided p of Student's t test that the mean is 0; equal differences leave no doubt."""
    spread = pairs.std(ddof=1) / np.sqrt(len(pairs))
    if spread == 0:
        return float(pairs.mean() == 0)
    return float(2 * stats.t.sf(abs(pairs.mean()) / spread, len(pairs) - 1))


def curves(table: pd.DataFrame, by: str, x: str, value: str, *, level: float = 0.95) -> dict[str, Curve]:
    """Each group's curve over its runs (columns ``by``, run_id, ``x``, ``value``), at the points that all have.

    Raises TableError where runs of a group have different points.
    """
    require(table, [by, "run_id", x, value])
    found = {}
    for name, part in table.groupby(by, sort=False):
        runs = [run.sort_values(x) for _, run in part.groupby("run_id", sort=False)]
        xs = [numbers(run, x) for run in runs]
        if any(len(other) != len(xs[0]) or (other != xs[0]).any() for other in xs):
            raise TableError(f"{by}={str(name)!r}: its runs have different {x}; expected the same points in each")
        ys = np.stack([numbers(run, value) for run in runs])
        band = [interval(column, level) if len(runs) > 1 else (column[0], column[0]) for column in ys.T]
        low, high = np.array(band).T
        found[str(name)] = Curve(xs[0], ys.mean(axis=0), low, high, list(ys))
    return found


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of independent ``values [n]``, n at least 2."""
    reach = stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)
