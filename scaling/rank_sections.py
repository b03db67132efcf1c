"""The parts of a study's report on its sampler settings: the SD3 ranking, and what fewer sampling steps cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scaling.complete import complete
from scaling.efficiency import EfficiencyTable, efficiency
from scaling.efficiency_tables import losses_text
from scaling.errors import TableError
from scaling.findings import listed
from scaling.look import PLAIN, save
from scaling.page import Section
from scaling.published import ranks
from scaling.rank_figures import MOST_LINES, efficiency_figure, fronts_figure, ranks_figure
from scaling.rank_tables import beneath, ranks_text, scores_text, shown_settings
from scaling.ranking import RankTable, rank
from scaling.reference import Agreement, agree, bare
from scaling.study import StudyTables

LEAST_COMMON = 4
"""Fewer names in common with the paper say nothing about agreement."""
SETTLED = 0.975


@dataclass(frozen=True)
class Ranked:
    """A study's names by average rank, or ``why`` there is none; what was left out of it."""

    table: RankTable | None
    left_out: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Measured:
    """What fewer sampling steps cost by ``group``, in which setting; or ``why`` that isn't known."""

    table: EfficiencyTable | None
    group: str
    setting: str
    left_out: tuple[str, ...] = ()
    why: str = ""


def ranked(tables: StudyTables, *, draws: int, seed: int) -> Ranked | None:
    """Names by average front over the settings that are complete; None without scores."""
    if tables.scores.empty:
        return None
    try:
        cut = complete(tables.scores)
        count = cut.table["name"].nunique()
        if count < 2:
            raise TableError(f"{count} name{'s are' if count != 1 else ' is'} complete; expected 2 or more to rank")
        return Ranked(rank(cut.table, bootstrap=draws, seed=seed), tuple(cut.left_out))
    except TableError as error:
        return Ranked(None, why=f"no ranking: {error}")


def rank_section(tables: StudyTables, found: Ranked | None, folder: Path, *, seed: int) -> list[Section]:
    """Names by average front over settings, with figures and all groups of settings; none without scores."""
    if found is None:
        return []
    part = Section("Ranking over sampler settings")
    table = found.table
    if table is None:
        part.missing.append(found.why)
        return [part]
    part.findings.append(lead_finding(table))
    agreement = _agreement(table, seed)
    if agreement is not None:
        part.findings.append(agreement_finding(agreement))
    part.missing += found.left_out
    png = save(ranks_figure(table), folder, "ranks")
    part.figures.append((png, "Average front of each name over the settings, lower is better, with 95 % intervals"))
    png = save(fronts_figure(table), folder, "fronts")
    part.broad.append((png, "Pareto fronts setting by setting; the first front's names stand at their points"))
    part.tables.append((ranks_text(table, beneath), f"Average rank; {table.how}"))
    shown = shown_settings(table)
    if shown:
        labels = [str(table.settings["setting"][place]) for place in shown.values()]
        part.tables.append((scores_text(table, beneath), f"Scores at {listed(labels)}"))
    part.notes += real_notes(tables.real)
    part.notes.append(
        "In every setting names are peeled into Pareto fronts of clip (high) and fid (low), averaged over seeds, and "
        "a name's rank is the mean of its fronts over settings (Esser et al. 2024, section 5.1). Ranks depend on who "
        "takes part: those of another study are not on the same scale. Noise merges fronts, so that ranks lie closer "
        "together than more prompts and seeds would show them; intervals are those of a measurement of this size."
    )
    return [part]


def real_notes(real: pd.DataFrame) -> list[str]:
    """What real images score, to read the scores against: one sentence a data set."""
    return [
        f"{row.images} held-out images of {row.dataset}, in place of generated ones, score a CLIP of {row.clip:.3f} "
        f"and a Fréchet distance of {row.fid:.4f}."
        for row in real.itertuples(index=False)
    ]


def lead_finding(table: RankTable) -> str:
    """Who leads, and how surely before the next and before plain rectified flow."""
    first = table.places[0]
    tied = [place.name for place in table.places if abs(place.all.rank - first.all.rank) < 1e-9]
    settings = table.front.shape[1]
    text = f"{listed(tied)} lead{'s' * (len(tied) == 1)} with an average rank of {first.all.rank:.2f}"
    if np.isfinite(first.all.low) and len(tied) == 1:
        text += f" ({first.all.low:.2f} to {first.all.high:.2f})"
    text += f" over {settings} setting{'s' * (settings != 1)} among {len(table.places)} names"
    if len(tied) > 1:
        return text + "; they are not told apart."
    after = table.names[1]
    chance = float(table.pairs[0, 1])
    if not np.isfinite(chance):
        return f"{text}; {after} is next."
    text += f"; with probability {chance:.2f} it ranks better than {after}, the next"
    plain = [i for i, name in enumerate(table.names) if bare(name) == PLAIN]
    if len(plain) == 1 and plain[0] > 1:
        text += f", and with {table.pairs[0, plain[0]]:.2f} better than {table.names[plain[0]]}"
    if table.resampled == "settings":
        text += " (over settings: no measurement was repeated)"
    return text + ("." if chance >= SETTLED else ": first place is not settled.")


def _agreement(table: RankTable, seed: int) -> Agreement | None:
    """Agreement with Table 1; none where too few names are there, or one is there at several depths."""
    reference = ranks()
    ours = [name for name in map(bare, table.names) if name in set(reference["name"])]
    if len(ours) < LEAST_COMMON or len(set(ours)) < len(ours):
        return None
    return agree(table, reference, "the paper's Table 1", seed=seed)


def agreement_finding(found: Agreement) -> str:
    """Does the order agree with the paper's?"""
    spearman = found.spearman
    if not np.isfinite(spearman.r):
        return f"Spearman with {found.source} has no value over {len(found.names)} names: all ranks are equal."
    numbers = f"Spearman {spearman.r:+.2f}, {spearman.low:+.2f} to {spearman.high:+.2f} over the names"
    if np.isfinite(found.low):
        numbers += f", {found.low:+.2f} to {found.high:+.2f} over the {found.resampled}"
    if spearman.low > 0:
        verdict = "agrees with"
    elif spearman.high < 0:
        verdict = "runs against"
    else:
        verdict = "is not shown to agree with"
    return f"The order {verdict} {found.source} ({numbers}; {len(found.names)} names in common).".replace("-", "−")


def measured(tables: StudyTables, *, draws: int, seed: int) -> Measured | None:
    """Score lost with fewer steps, by depth or else by name; None where there is none, or too many."""
    rows, setting = _euler_rows(tables)
    if rows.empty:
        return None
    group = "name"
    if "depth" in rows.columns and rows["depth"].nunique() > 1:
        group = "depth"
        kinds = rows["name"].map(bare)
        kind = kinds.value_counts().index[0]
        if kinds.nunique() > 1:
            setting = f"{kind} only, which has most rows; {setting}"
        rows = rows[kinds == kind]
    if rows[group].nunique() > MOST_LINES:
        return None
    try:
        cut = complete(rows, name=group, setting="steps")
        if cut.table.empty:
            raise TableError(f"no {group} has every number of steps")
        path = "path_length" if "path_length" in rows.columns else None
        table = efficiency(cut.table, group=group, path=path, bootstrap=draws, seed=seed)
        return Measured(table, group, setting, tuple(cut.left_out))
    except TableError as error:
        return Measured(None, group, setting, why=f"no losses ({setting}): {error}")


def efficiency_section(found: Measured | None, folder: Path) -> list[Section]:
    """Score lost with fewer steps and path length; none where not measured."""
    if found is None:
        return []
    part = Section("Sampling efficiency")
    table, group, setting = found.table, found.group, found.setting
    if table is None:
        part.missing.append(found.why)
        return [part]
    part.findings.append(loss_finding(table, group))
    part.missing += found.left_out
    png = save(efficiency_figure(table, group), folder, "efficiency")
    part.figures.append((png, f"CLIP score lost with fewer steps, against {table.steps[-1]}; {setting}"))
    part.tables.append(
        (
            losses_text(table, group, beneath),
            f"Loss of CLIP score in % of that at {table.steps[-1]} steps; {setting}; {table.how}",
        )
    )
    return [part]


def _euler_rows(tables: StudyTables) -> tuple[pd.DataFrame, str]:
    """EMA, Euler rows of one data set at the highest guidance with several numbers of steps, and that in words.

    The data set is the study's main one, or the first that has such rows. Empty where none has.
    """
    scores = tables.scores
    needed = {"dataset", "weights", "method", "steps", "guidance"}
    if scores.empty or not needed <= set(scores.columns):
        return pd.DataFrame(), ""
    euler = scores[(scores["weights"] == "ema") & (scores["method"] == "euler")]
    for dataset in dict.fromkeys([tables.dataset, *euler["dataset"]]):
        part = euler[euler["dataset"] == dataset]
        counts = part.groupby("guidance")["steps"].nunique()
        several = counts.index[counts >= 2]
        if len(several):
            guidance = max(several)
            return part[part["guidance"] == guidance], f"{dataset}, EMA weights, Euler, guidance {guidance:g}"
    return pd.DataFrame(), ""


def loss_finding(table: EfficiencyTable, group: str) -> str:
    """What the fewest steps cost the first and the last group, and by how much they differ."""
    few, many = table.steps[0], table.steps[-1]
    ordered = table.rows if group == "depth" else tuple(sorted(table.rows, key=lambda row: row.losses[0].value))
    first, last = ordered[0], ordered[-1]
    a, b = first.losses[0], last.losses[0]

    def called(label: str) -> str:
        return f"depth {label}" if group == "depth" else label

    text = f"With {few} steps instead of {many}, {called(first.group)} loses {a.value:.1f} % of its CLIP score"
    if len(ordered) == 1:
        return f"{text}.".replace("-", "−")
    text += f" and {called(last.group)} {b.value:.1f} %"
    # Names are not in an order of their own: the least and the greatest of many differ by chance alone.
    apart = table.difference(0, len(table.rows) - 1) if group == "depth" else None
    if apart is not None and np.isfinite(apart.low):
        text += f", a difference of {apart.value:.1f} ({apart.low:.1f} to {apart.high:.1f}) points"
        if apart.low <= 0 <= apart.high:
            text += ": no order is shown"
    return f"{text}.".replace("-", "−")
