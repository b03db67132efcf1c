"""The SD3 ranking protocol on a table: fronts in every setting, their average as a rank, and how sure that order is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.cells import Cells, codes, constant, read_cells
from scaling.complete import align_seeds
from scaling.errors import TableError
from scaling.pareto import fronts
from scaling.plain import plain
from scaling.repeats import mean_of_draws, repeats
from scaling.resample import how_resampled, interval
from scaling.tables import require

FACTS = ("dataset", "weights", "method", "steps", "guidance", "depth")
"""Optional columns that say what a setting is; each has one value in a setting."""


@dataclass(frozen=True)
class Estimate:
    """An average rank and its interval, NaN where nothing could be resampled."""

    rank: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers, None where there is no interval."""
        return {"rank": self.rank, "low": plain(self.low), "high": plain(self.high)}


@dataclass(frozen=True)
class Place:
    """One name: its average rank, the same over the settings of each group, and how often it is (or shares) the best.

    ``firsts`` is the number of settings in which it is on the first front.
    """

    name: str
    all: Estimate
    groups: Mapping[str, Estimate]
    p_best: float
    firsts: int


@dataclass(frozen=True)
class RankTable:
    """Names by average rank, best first. Arrays have the names in the order of ``places``.

    ``front``, ``up``, ``down`` are ``[names, settings]``, ``up_ends``, ``down_ends`` ``[2, names, settings]`` (NaN
    without draws and seeds), ``pairs [names, names]`` the probability that the row's rank is better than the column's,
    ties as half (NaN on the diagonal, and everywhere without a bootstrap), ``samples [bootstraps, names]`` the average
    ranks behind it. ``settings`` has a row a setting: ``setting`` and those of FACTS that the table holds.
    """

    places: tuple[Place, ...]
    settings: pd.DataFrame
    by: str | None
    groups: tuple[str, ...]
    front: np.ndarray
    up: np.ndarray
    down: np.ndarray
    up_ends: np.ndarray
    down_ends: np.ndarray
    pairs: np.ndarray
    samples: np.ndarray
    resampled: str
    level: float
    seeds: int
    prompt_draws: int
    columns: tuple[str, str]

    @property
    def draws(self) -> int:
        """Bootstraps behind the intervals."""
        return len(self.samples)

    @property
    def how(self) -> str:
        """What the intervals are made of, in words."""
        return how_resampled(self.resampled, self.level, self.draws, self.seeds)

    @property
    def names(self) -> list[str]:
        """The names, best first."""
        return [place.name for place in self.places]

    def to_json(self) -> dict[str, object]:
        """The object that ``rank --json`` prints; ``pairs`` is a matrix in the order of ``names``."""
        labels = list(self.settings["setting"])
        rows = [
            {
                "name": place.name,
                **place.all.to_json(),
                "p_best": plain(place.p_best),
                "firsts": place.firsts,
                "groups": {label: estimate.to_json() for label, estimate in place.groups.items()},
                "fronts": {label: int(front) for label, front in zip(labels, self.front[index], strict=True)},
            }
            for index, place in enumerate(self.places)
        ]
        return {
            "rows": rows,
            "names": self.names,
            "settings": labels,
            "pairs": plain(self.pairs.tolist()),
            "by": self.by,
            "resampled": self.resampled,
            "level": self.level,
            "seeds": self.seeds,
            "prompt_draws": self.prompt_draws,
            "draws": self.draws,
        }


def rank(
    table: pd.DataFrame,
    *,
    up: str = "clip",
    down: str = "fid",
    name: str = "name",
    setting: str = "setting",
    by: str | None = None,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> RankTable:
    """Rank names by the mean, over settings, of the Pareto front that each is on (Esser et al. 2024, section 5.1).

    ``table`` has a row a (name, setting[, seed][, draw]) with two scores, ``up`` to be high and ``down`` to be low.
    ``seed`` tells trainings apart: scores are averaged over them before fronts are peeled; a data set may have seeds of
    its own, as many as the others. ``draw`` is 0 for the score over all prompts and 1, 2, … for that over bootstrap
    resamples of the prompts, the same resample for every name. ``dataset`` says which settings share prompts. ``by``
    also ranks over the settings of each of its values (by default ``steps``, where there are several).

    Intervals and probabilities come from ``bootstrap`` repetitions of the measurement (``scaling.repeats``), joint for
    all names. They are about the average rank that such a measurement gives: noise puts names on a common front that
    belong on different ones, so that ranks lie closer together than endless prompts and seeds would show them, and
    closer still in a repetition, which adds its noise to what is there. An interval therefore reaches as far on either
    side of the average as ``level`` of the repetitions lie from it. A table with neither draws nor several seeds, such
    as a printed one, has its settings resampled instead: how far the order holds over settings, not over repeated
    measurement. ``resampled`` says which was done.

    Raises TableError for absent columns, missing or repeated cells, a score that is no number, fewer than 2 names.
    """
    table = align_seeds(table)
    cells = read_cells(
        table,
        (name, setting),
        (up, down),
        repeated="expected one; choose with --where, or tell them apart by seed",
        missing=" (--complete ranks the names that have what most have)",
    )
    if by is None and "steps" in table.columns and table["steps"].nunique() > 1:
        # Steps of training, say, which differ by name, are no fact of a setting.
        by = "steps" if _is_fact(table, "steps", codes(table, setting)[0]) else None
    if len(cells.rows) < 2:
        raise TableError(f"{name}={cells.rows[0]!r} in every row: expected 2 or more to rank")
    if bootstrap < 0:
        raise TableError(f"bootstrap={bootstrap}: expected 0 or more")
    facts = _facts(table, setting, cells, by)
    groups = _groups(facts, by)
    rng = np.random.default_rng(seed)
    front = fronts(cells.mean(up).T, cells.mean(down).T).T
    places_of = {"": np.arange(front.shape[1]), **groups}
    average = {label: front[:, part].mean(axis=1) for label, part in places_of.items()}
    samples = {label: np.zeros((0, len(front))) for label in places_of}
    ends = {column: np.full((2, *front.shape), np.nan) for column in (up, down)}
    resampled = cells.resampled if bootstrap else "none"
    if resampled != "none":
        strata = codes(facts, "dataset")[0] if "dataset" in facts.columns else None
        drawn = repeats(cells, bootstrap, rng, strata)
        for column in (up, down):
            ends[column] = interval(drawn[column], level, centre=cells.mean(column))
        again = fronts(*(drawn[column].transpose(0, 2, 1) for column in (up, down))).transpose(0, 2, 1)
        samples = {label: again[:, :, part].mean(axis=2) for label, part in places_of.items()}
    elif bootstrap and front.shape[1] > 1:
        resampled = "settings"
        samples = {label: _resample_settings(front[:, part], bootstrap, rng) for label, part in places_of.items()}
    order = np.lexsort((np.array(cells.rows), average[""]))
    estimates = {label: _estimates(average[label], samples[label], level) for label in average}
    overall = samples[""][:, order]
    best = _share_best(overall)
    places = tuple(
        Place(
            cells.rows[i],
            estimates[""][i],
            {label: estimates[label][i] for label in groups},
            float(best[place]),
            int((front[i] == 1).sum()),
        )
        for place, i in enumerate(order)
    )
    return RankTable(
        places=places,
        settings=facts.rename(columns={setting: "setting"}),
        by=by,
        groups=tuple(groups),
        front=front[order],
        up=cells.mean(up)[order],
        down=cells.mean(down)[order],
        up_ends=ends[up][:, order],
        down_ends=ends[down][:, order],
        pairs=_pairs(overall),
        samples=overall,
        resampled=resampled,
        level=level,
        seeds=len(cells.seeds),
        prompt_draws=cells.draws,
        columns=(up, down),
    )


def _facts(table: pd.DataFrame, setting: str, cells: Cells, by: str | None) -> pd.DataFrame:
    """A row a setting, in the order of ``cells.columns``: its label, and its value of FACTS' columns and of ``by``."""
    index = codes(table, setting)[0]
    frame = pd.DataFrame({setting: list(cells.columns)})
    if by is not None:
        require(table, [by])
    for column in dict.fromkeys([*FACTS, *([by] if by is not None else [])]):
        present = column in table.columns and column != setting
        if present and (column == by or column == "dataset" or _is_fact(table, column, index)):
            frame[column] = constant(table, setting, index, column)
    return frame


def _is_fact(table: pd.DataFrame, column: str, index: np.ndarray) -> bool:
    """Whether a column that the ranking doesn't need is filled and has one value in each setting."""
    if table[column].isna().any():
        return False
    code = codes(table, column)[0]
    first = np.unique(index, return_index=True)[1]
    return bool((code == code[first][index]).all())


def _groups(facts: pd.DataFrame, by: str | None) -> dict[str, np.ndarray]:
    """Value of ``by`` -> the places of its settings; numbers in order, else in order of appearance."""
    if by is None:
        return {}
    column = facts[by]
    labels = list(dict.fromkeys(column))
    as_numbers = pd.to_numeric(pd.Series(labels), errors="coerce")
    if as_numbers.notna().all():
        labels = [labels[i] for i in np.argsort(as_numbers.to_numpy(), kind="stable")]
    return {str(label): np.flatnonzero((column == label).to_numpy()) for label in labels}


def _resample_settings(front: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Mean fronts over other settings of the same kind: ``[names, S]`` -> ``[count, names]``, NaN for one setting.

    Two or three fronts of a name may be equal by chance: the spread that names have on average counts as one setting
    more.
    """
    names, settings = front.shape
    if settings < 2:
        return np.full((count, names), np.nan)
    average = front.mean(axis=1, keepdims=True)
    around = (front - average).T
    usual = np.sqrt((around**2).sum() / (names * (settings - 1)))
    pool = np.concatenate([around, usual * np.eye(names)])
    return average.T + mean_of_draws(pool, settings, settings, (count, 1), rng)[:, 0]


def _estimates(average: np.ndarray, samples: np.ndarray, level: float) -> list[Estimate]:
    """Average ranks with intervals symmetric about them, cut at 1 and n, the ends of what a rank of n names can be."""
    low = high = np.full(len(average), np.nan)
    if len(samples):
        reach = np.quantile(np.abs(samples - average), level, axis=0)
        low, high = np.maximum(average - reach, 1.0), np.minimum(average + reach, float(len(average)))
    return [Estimate(float(a), float(b), float(c)) for a, b, c in zip(average, low, high, strict=True)]


def _pairs(samples: np.ndarray) -> np.ndarray:
    """P(row better than column), ties as half, from ``[bootstraps, names]`` average ranks."""
    count = samples.shape[1]
    if not len(samples):
        return np.full((count, count), np.nan)
    # Averages over settings are sums of whole numbers over a count: equal ones may differ in the last bit.
    rounded = np.round(samples, 9)
    better = np.stack([(rounded[:, i : i + 1] < rounded).mean(axis=0) for i in range(count)])
    out = (better + 1 - better.T) / 2
    np.fill_diagonal(out, np.nan)
    return out


def _share_best(samples: np.ndarray) -> np.ndarray:
    """How often each name has the lowest average rank, shared among equals: ``[names]``, summing to 1."""
    if not len(samples):
        return np.full(samples.shape[1], np.nan)
    rounded = np.round(samples, 9)
    best = rounded == rounded.min(axis=1, keepdims=True)
    return (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
