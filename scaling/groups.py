"""Groups of runs that were trained with the same seeds: curves with intervals, and paired differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from scaling.errors import TableError
from scaling.tables import labels, numbers, require


@dataclass(frozen=True)
class Place:
    """One group in a ranking: its mean, and its difference to the baseline with a t interval over seed pairs."""

    name: str
    mean: float
    difference: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Curve:
    """Mean over seeds of a group at each point of a run, with a t interval; all float64 ``[points]``, x as given."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: list[np.ndarray]


def ranking(results: pd.DataFrame, by: str, value: str, baseline: str, *, level: float = 0.95) -> list[Place]:
    """Groups of ``results`` (columns ``by``, seed, ``value``; one row a run) from the lowest mean to the highest.

    A group's difference is the mean over seeds of its run less the baseline's run of the same seed, with Student's t
    interval; of seeds both have. The baseline's own difference is 0.

    Raises TableError for an absent column or baseline, a seed twice in a group, or a group with fewer than 2 pairs.
    """
    require(results, [by, "seed", value])
    table = pd.DataFrame({"group": labels(results, by), "seed": labels(results, "seed"), "y": numbers(results, value)})
    if baseline not in set(table["group"]):
        raise TableError(f"baseline={baseline!r}: no such {by}; the table has {', '.join(sorted(set(table['group'])))}")
    twice = table[table.duplicated(["group", "seed"])]
    if len(twice):
        raise TableError(f"{by}={twice['group'].iloc[0]!r}: seed {twice['seed'].iloc[0]} is there twice; expected once")
    wide = table.pivot(index="seed", columns="group", values="y")
    places = []
    for name in wide.columns:
        pairs = (wide[name] - wide[baseline]).dropna().to_numpy()
        if len(pairs) < 2:
            raise TableError(f"{by}={name!r}: {len(pairs)} seeds in common with {baseline}; expected 2 or more")
        low, high = interval(pairs, level)
        places.append(Place(str(name), float(wide[name].mean()), float(pairs.mean()), low, high, len(pairs)))
    return sorted(places, key=lambda place: place.mean)


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
