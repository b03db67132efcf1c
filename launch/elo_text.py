"""What ``mmdit elo`` prints for people: ratings, win rates, battles to run next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from launch.tables import text_table

if TYPE_CHECKING:
    from scaling.elo import EloTable
    from scaling.win_rates import WinRates

Key = tuple[str, ...]
"""Values of the columns of --by; empty without it."""

GROUP = "met_group"
"""What tells tables apart whose runs never met, beside the columns of --by."""
APART = "runs of different groups never met, not even through others: their ratings do not compare"
DOUBTFUL = 0.05
"""Anchors that agree with the battles less than this are remarked on."""


def label(by: Sequence[str], key: Key) -> str:
    """What tells one table from the others: ``question=typography, judge=ada``."""
    return ", ".join(f"{column}={value}" for column, value in zip(by, key, strict=True))


def others(by: Sequence[str]) -> Key:
    """The columns of --by that tell figures of win rates apart: in each there are all questions."""
    return tuple(column for column in by if column not in ("question", GROUP))


def elo_text(
    tables: Mapping[Key, EloTable],
    by: Sequence[str],
    won: Mapping[Key, WinRates],
    following: Sequence[dict[str, Any]],
    against: str | None,
) -> str:
    """A table of ratings for each value of --by, then win rates of ``against``, then battles to run next."""
    parts = []
    for key, table in tables.items():
        parts.append("\n".join([*([label(by, key)] if by else []), _ratings_text(table)]))
    if GROUP in by:
        parts.append(APART)
    for key, found in won.items():
        parts.append("\n".join([*([label(others(by), key)] if key else []), _won_text(found, str(against))]))
    if following:
        frame = pd.DataFrame(following).rename(columns={"drop": "lowers error by"})
        frame["lowers error by"] = frame["lowers error by"].map("{:.3g}".format)
        parts.append(
            "battles to run next, by how much one more of each lowers the root mean square error of a rating "
            f"difference (Elo)\n{text_table(frame)}"
        )
    return "\n\n".join(parts)


def _ratings_text(table: EloTable) -> str:
    percent = f"{100 * table.level:g} %"
    rows = []
    for rating in table.ratings:
        row = {"name": rating.name, "elo": f"{rating.elo:.0f}"}
        if table.intervals == "bootstrap":
            row[f"{percent} bootstrap"] = _range(rating.low, rating.high)
        if table.intervals != "none":
            row[f"{percent} sandwich"] = _range(rating.sandwich_low, rating.sandwich_high)
            row[f"{percent} rank"] = (
                f"{rating.rank_low}–{rating.rank_high}" if rating.rank_low < rating.rank_high else f"{rating.rank_low}"
            )
        rows.append(row | {"battles": f"{rating.battles:,}"})
    lines = [text_table(pd.DataFrame(rows))]
    for effect in table.effects:
        bounds = f" [{effect.low:+.1f}, {effect.high:+.1f}]" if math.isfinite(effect.low) else ""
        lines.append(f"{effect.name}: {effect.elo:+.1f} Elo{bounds}".replace("-", "−"))
    if table.anchors_p < DOUBTFUL:
        lines.append(f"these battles put the anchors elsewhere than they are given (p = {table.anchors_p:.2g})")
    if table.separated:
        groups = "; ".join(", ".join(group) for group in table.separated)
        lines.append(
            f"wins go one way between ({groups}): how far apart these are, and its interval, is the prior's word; "
            "their ranks are a sign test's"
        )
    clusters = " and ".join(f"{count} {column}{'s' * (count != 1)}" for column, count in table.clusters.items())
    drawn = f"{len(table.samples)} bootstraps over {clusters}; ranks are simultaneous"
    if table.intervals == "sandwich":
        drawn = f"intervals over {clusters}; ranks are simultaneous"
    elif table.intervals == "none":
        drawn = f"no intervals from {clusters}"
        if min(table.clusters.values()) > 1:
            drawn += ", whose battles all ended alike"
    lines.append(
        f"{table.battles:,} battles on {table.prompts} prompt{'s' * (table.prompts != 1)}, {drawn}; {table.scale}"
    )
    return "\n".join(lines)


def _won_text(found: WinRates, against: str) -> str:
    from scaling.win_bars import baseline_frame

    frame = baseline_frame(found)
    bounded = bool(frame["low"].notna().any())
    rows = []
    for row in frame.to_dict("records"):
        shown = {
            f"{against} against": row["opponent"],
            "question": row["question"],
            "wins": f"{100 * row['rate']:.1f} %",
        }
        if not row["question"]:
            del shown["question"]
        if bounded:
            told = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if math.isfinite(row["low"]) else ""
            shown["95 % interval"] = told
        rows.append(shown | {"battles": f"{row['battles']:,}"})
    prompts = f"{found.prompts} prompt{'s' * (found.prompts != 1)}"
    return f"{text_table(pd.DataFrame(rows))}\nties as half, 50 % is even; {prompts}, {found.how}"


def _range(low: float, high: float) -> str:
    return f"{low:.0f} … {high:.0f}"
