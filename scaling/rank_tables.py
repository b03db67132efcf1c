"""A ranking as the tables that the SD3 paper prints: average ranks (Table 1), scores by data set (Table 2), pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from scaling.ranking import RankTable

STEPS = "25"
"""The number of sampling steps that Table 2 shows."""
Show = Callable[[str, str, str], str]
"""(value, low, high) as text -> a cell."""


def brackets(value: str, low: str, high: str) -> str:
    """``1.54 [1.25, 2.10]``, for a terminal."""
    return f"{value} [{low}, {high}]"


def beneath(value: str, low: str, high: str) -> str:
    """The interval in a second line, which the report sets smaller."""
    return f"{value}\n{low} to {high}"


def group_title(table: RankTable, label: str) -> str:
    """How a group of settings is called in a heading: ``5 steps``, ``dataset emoji``."""
    return f"{label} steps" if table.by == "steps" else f"{table.by} {label}"


def ranks_frame(table: RankTable) -> pd.DataFrame:
    """Table 1 as numbers: name, rank, low, high, the same with ``_label`` for each group, p_best, firsts."""
    rows = []
    for place in table.places:
        row: dict[str, object] = {"name": place.name, **vars(place.all)}
        for label, found in place.groups.items():
            row |= {f"{key}_{label}": value for key, value in vars(found).items()}
        rows.append({**row, "p_best": place.p_best, "firsts": place.firsts})
    return pd.DataFrame(rows)


def ranks_text(table: RankTable, show: Show = brackets) -> pd.DataFrame:
    """Table 1 as text: name, all, a column a group; intervals where there are any."""
    rows = []
    for place in table.places:
        row = {"name": place.name, "all": _cell(show, place.all.rank, place.all.low, place.all.high, "{:.2f}")}
        for label, found in place.groups.items():
            row[group_title(table, label)] = _cell(show, found.rank, found.low, found.high, "{:.2f}")
        rows.append(row)
    return pd.DataFrame(rows)


def shown_settings(table: RankTable) -> dict[str, int]:
    """Data set -> the place of the setting that Table 2 shows for it.

    25 steps (else the most), EMA weights and Euler where there is a choice, then the highest guidance. Empty without a
    column of data sets.
    """
    facts = table.settings
    if "dataset" not in facts.columns:
        return {}
    return {str(name): _typical(facts[facts["dataset"] == name]) for name in dict.fromkeys(facts["dataset"])}


def _typical(facts: pd.DataFrame) -> int:
    for column, wanted in (("weights", "ema"), ("method", "euler"), ("steps", STEPS)):
        if column in facts.columns:
            hit = facts[facts[column] == wanted]
            facts = hit if len(hit) else facts
    for column in ("steps", "guidance"):
        if column in facts.columns:
            numbers = pd.to_numeric(facts[column], errors="coerce")
            facts = facts[numbers == numbers.max()] if numbers.notna().any() else facts
    return int(facts.index[0])


def scores_frame(table: RankTable) -> pd.DataFrame:
    """Table 2 as numbers: name, then both scores of each data set (``dataset_clip``), each with ``_low``, ``_high``."""
    out: dict[str, object] = {"name": table.names}
    for dataset, place in shown_settings(table).items():
        for column, value, ends in _scores(table):
            out[f"{dataset}_{column}"] = value[:, place]
            out[f"{dataset}_{column}_low"], out[f"{dataset}_{column}_high"] = ends[:, :, place]
    return pd.DataFrame(out)


def scores_text(table: RankTable, show: Show = brackets) -> pd.DataFrame:
    """Table 2 as text: name, then both scores of each data set, with intervals where there are any."""
    out: dict[str, object] = {"name": table.names}
    for dataset, place in shown_settings(table).items():
        for column, value, ends in _scores(table):
            shown = digits(value[:, place], ends[:, :, place])
            out[f"{dataset} {column}"] = [
                _cell(show, value[i, place], ends[0, i, place], ends[1, i, place], f"{{:.{shown}f}}")
                for i in range(len(value))
            ]
    return pd.DataFrame(out)


def pairs_frame(table: RankTable) -> pd.DataFrame:
    """A row a pair, the better average first: better, worse, probability that this order is right (ties as half)."""
    names = table.names
    rows = [
        {"better": names[i], "worse": names[j], "probability": table.pairs[i, j]}
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]
    return pd.DataFrame(rows)


def _scores(table: RankTable) -> list[tuple[str, np.ndarray, np.ndarray]]:
    return [(table.columns[0], table.up, table.up_ends), (table.columns[1], table.down, table.down_ends)]


def digits(values: np.ndarray, ends: np.ndarray) -> int:
    """Decimals that show three figures of a usual interval's width; without intervals, four of the smallest value."""
    widths = ends[1] - ends[0]
    widths = widths[np.isfinite(widths) & (widths > 0)]
    sizes = np.abs(values[values != 0])
    if len(widths):
        return int(np.clip(2 - np.floor(np.log10(np.median(widths))), 0, 6))
    return int(np.clip(3 - np.floor(np.log10(sizes.min())), 0, 6)) if len(sizes) else 2


def _cell(show: Show, value: float, low: float, high: float, pattern: str) -> str:
    if not np.isfinite(low):
        return pattern.format(value)
    return show(pattern.format(value), pattern.format(low), pattern.format(high))
