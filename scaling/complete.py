"""What of a half-filled table of scores can be ranked: the names that have every setting and seed that most have."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from scaling.cells import codes
from scaling.tables import require

SHOWN = 4
"""So many left out names or settings are listed; the rest are counted."""


@dataclass(frozen=True)
class Complete:
    """The rows to rank, and a sentence for each kind of thing that was left out (none where nothing was)."""

    table: pd.DataFrame
    left_out: tuple[str, ...]


def align_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The table with seeds numbered from 0 in every data set, where data sets have as many seeds, but other ones.

    A training has one data set, so that seed 3 on one and seed 0 on another are only the first trainings on each.
    Any other table comes back as it is.
    """
    if not {"seed", "dataset"} <= set(table.columns) or table[["seed", "dataset"]].isna().any().any():
        return table
    seeds = {dataset: sorted(set(part["seed"])) for dataset, part in table.groupby("dataset", sort=False)}
    sets = list(seeds.values())
    if all(found == sets[0] for found in sets) or len({len(found) for found in sets}) > 1:
        return table
    places = {(dataset, seed): i for dataset, found in seeds.items() for i, seed in enumerate(found)}
    return table.assign(seed=[places[key] for key in zip(table["dataset"], table["seed"], strict=True)])


def complete(table: pd.DataFrame, *, name: str = "name", setting: str = "setting") -> Complete:
    """Cut a table with rows by name, setting[, seed][, draw] down to a full one.

    Kept are the settings that more than half of the names have, of those the seeds in which more than half of the
    names have all of them (else the one seed that most have), and the names that then lack nothing. So one diverged
    run costs its name, and a seed or a data set that has only begun costs nothing.

    Raises TableError for an absent column or a blank name, setting or seed.
    """
    require(table, [name, setting])
    table = align_seeds(table)
    name_code, names = codes(table, name)
    setting_code, settings = codes(table, setting)
    seed_code, seeds = codes(table, "seed") if "seed" in table.columns else (0, [""])
    cells = pd.DataFrame({"name": name_code, "setting": setting_code, "seed": seed_code})
    have = cells.drop_duplicates()
    most = len(names) / 2

    counts = have.groupby("setting")["name"].nunique()
    kept_settings = set(counts.index[counts > most]) or set(counts.index[counts == counts.max()])
    have = have[have["setting"].isin(kept_settings)]
    whole = have.groupby(["seed", "name"])["setting"].nunique() == len(kept_settings)
    whole_names = whole.groupby("seed").sum()
    kept_seeds = set(whole_names.index[whole_names > most])
    if not kept_seeds:
        kept_seeds = {whole_names.idxmax()}
    have = have[have["seed"].isin(kept_seeds)]
    full = have.groupby("name").size() == len(kept_settings) * len(kept_seeds)
    kept_names = set(full.index[full])

    keep = cells["name"].isin(kept_names) & cells["setting"].isin(kept_settings) & cells["seed"].isin(kept_seeds)
    told = []
    for what, labels, kept, why in (
        (name, names, kept_names, "not scored everywhere that most are"),
        (setting, settings, kept_settings, "scored for half or less"),
        ("seed", seeds, kept_seeds, "complete for half or less"),
    ):
        lost = [label for place, label in enumerate(labels) if place not in kept]
        if lost:
            told.append(f"{_listed(what, lost)} left out: {why}")
    return Complete(table[keep.to_numpy()].reset_index(drop=True), tuple(told))


def _listed(what: str, lost: list[str]) -> str:
    more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
    plural = "s" * (len(lost) > 1 and not what.endswith("s"))
    return f"{what}{plural} {', '.join(lost[:SHOWN])}{more}"
