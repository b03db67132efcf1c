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
    """One group in a comparison: the mean of its runs, and its difference to the baseline over pairs.

    ``low`` and ``high`` are Student's t interval of the difference, alone. ``p`` is of the paired t test that it is 0,
    by Holm's rule for all groups compared at once. All three are NaN where every pair has the same difference: there
    is no spread to judge it by.
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
    """Groups of ``results`` (columns ``by``, ``pair``, ``value``; one row a run) from the lowest difference on.

    A group's difference is the mean over pairs of its run less the baseline's run with the same ``pair`` (a seed), of
    those that both have. The baseline's own is 0, with an interval of 0 to 0 and a p of 1.

    Raises TableError for an absent column or baseline, nothing beside the baseline, a pair's run twice in a group, or
    a group with fewer than 2 pairs.
    """
    if value in (by, pair):
        raise TableError(f"score={value!r}: is what runs are grouped or paired by; expected another column")
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
        raise TableError(f"{by}={group!r}: {pair} {which} is there twice; expected runs that differ in {by} and {pair}")
    wide = table.pivot(index="pair", columns="group", values="y")
    differences = {name: (wide[name] - wide[baseline]).dropna().to_numpy() for name in names if name != baseline}
    for name, pairs in differences.items():
        if len(pairs) < 2:
            raise TableError(f"{by}={name!r}: {len(pairs)} {pair}s in common with {baseline}; expected 2 or more")
    judged = {name: _judged(pairs, level) for name, pairs in differences.items()}
    adjusted = holm({name: p for name, (_, _, p) in judged.items()})
    places = [Place(baseline, float(wide[baseline].mean()), 0.0, 0.0, 0.0, 1.0, int(wide[baseline].count()))]
    for name, pairs in differences.items():
        low, high, _ = judged[name]
        places.append(Place(name, float(wide[name].mean()), float(pairs.mean()), low, high, adjusted[name], len(pairs)))
    return sorted(places, key=lambda place: place.difference)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: to reject all below a level errs in any with at most that probability (Holm 1979).

    NaN stays, and counts among those tested.
    """
    adjusted, most = dict(p), 0.0
    known = sorted((value, name) for name, value in p.items() if np.isfinite(value))
    for place, (value, name) in enumerate(known):
        most = max(most, min(1.0, (len(p) - place) * value))
        adjusted[name] = most
    return adjusted


def _judged(pairs: np.ndarray, level: float) -> tuple[float, float, float]:
    """Student's t interval of the mean of paired differences, and p that it is 0.

    All NaN without spread, as in scores that are counts: nothing to judge by.
    """
    if not np.ptp(pairs):
        return np.nan, np.nan, np.nan
    test = stats.ttest_1samp(pairs, 0.0)
    low, high = test.confidence_interval(level)
    return float(low), float(high), float(test.pvalue)


def curves(table: pd.DataFrame, by: str, x: str, value: str, *, level: float = 0.95) -> dict[str, Curve]:
    """Each group's curve over its runs (columns ``by``, run_id, ``x``, ``value``).

    Raises TableError for an absent column or a blank cell, or where runs of a group have different points.
    """
    clean = pd.DataFrame(
        {
            "group": labels(table, by),
            "run": labels(table, "run_id"),
            "x": numbers(table, x),
            "y": numbers(table, value),
        }
    )
    found = {}
    for name, part in clean.groupby("group", sort=False):
        runs = [run.sort_values("x") for _, run in part.groupby("run", sort=False)]
        xs = [run["x"].to_numpy() for run in runs]
        if any(len(other) != len(xs[0]) or (other != xs[0]).any() for other in xs):
            raise TableError(f"{by}={str(name)!r}: its runs have different {x}; expected the same points in each")
        ys = np.stack([run["y"].to_numpy() for run in runs])
        band = [interval(column, level) if len(runs) > 1 else (column[0], column[0]) for column in ys.T]
        low, high = np.array(band).T
        found[str(name)] = Curve(xs[0], ys.mean(axis=0), low, high, list(ys))
    return found


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of independent ``values [n]``, n at least 2."""
    reach = stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)
