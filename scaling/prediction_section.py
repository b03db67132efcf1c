"""The report's part on losses that were foretold: what was expected, and what came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scaling.errors import TableError
from scaling.look import drawing, legend_above, save
from scaling.page import Section
from scaling.predictions import LOSS, law_name, read_predictions, with_truth

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def prediction_section(study: Path, results: pd.DataFrame, folder: Path) -> list[Section]:
    """Truth beside every prediction in ``study``; none where nothing was foretold."""
    part = Section("What was predicted, and what came")
    try:
        records = read_predictions(study)
    except TableError as error:
        part.missing.append(f"predictions are not to be relied on: {error}")
        return [part]
    if not records:
        return []
    table = with_truth(records, results)
    level = float(records[0]["level"])
    part.findings.append(prediction_finding(table, level))
    png = save(prediction_figure(table, level), folder, "predictions")
    part.broad.append((png, "Each prediction with its interval for one new run, and the loss that came"))
    part.tables.append((prediction_text(table), "Predictions, in the order in which they were written down"))
    part.notes.append(
        "predictions.jsonl was written before these runs began. Each line holds its digest and that of the one before: "
        "one that was changed, taken out or put in is seen; that the last ones were deleted, or the whole file written "
        f"anew, is not.{_unsealed(records)} Intervals are of one new run's loss at {100 * level:g} %: the law's own "
        "uncertainty and the noise of a run."
    )
    return [part]


def _unsealed(records: Sequence[Mapping[str, Any]]) -> str:
    """What the digests don't tell of a last line that has none of its own."""
    return "" if "digest" in records[-1] else " The last line, written without its own, could have been changed unseen."


def prediction_finding(table: pd.DataFrame, level: float) -> str:
    """How many came, how many lie within their interval, and how far off the predictions were."""
    count = len(table)
    come = table.dropna(subset=["actual"])
    if come.empty:
        return f"{count} loss{'es were' if count != 1 else ' was'} predicted; no such run is done yet."
    inside = int(come["inside"].astype(bool).sum())
    error = come["error"].to_numpy(dtype=float)
    worst = come.iloc[int(np.argmax(np.abs(error)))]
    which = "" if (table["loss_column"] == LOSS).all() else f" {worst['loss_column']}"
    side = "too high" if worst["error"] > 0 else "too low"
    waiting = f" ({count - len(come)} more wait for their run)" if len(come) < count else ""
    if len(come) == 1:
        where = "lies" if inside else "does not lie"
        return (
            f"The{which} loss that came, {worst['actual']:.4f} of {worst['name']}, {where} within the "
            f"{100 * level:g} % interval of its prediction: {worst['predicted']:.4f}, "
            f"{100 * abs(worst['error']):.1f} % {side}{waiting}."
        )
    return (
        f"{inside} of {len(come)} predictions{waiting} have the loss that came within their {100 * level:g} % "
        f"interval; they are {100 * np.abs(error).mean():.1f} % off on average, at worst {worst['name']}'s{which}, "
        f"{100 * abs(worst['error']):.1f} % {side}."
    )


def prediction_text(table: pd.DataFrame) -> pd.DataFrame:
    """Ready strings, a row a prediction."""
    rows = []
    several = (table["loss_column"] != LOSS).any()
    for row in table.itertuples(index=False):
        come = np.isfinite(row.actual)
        rows.append(
            {
                "run": row.name,
                **({"loss": row.loss_column} if several else {}),
                "law": law_name(row.law, row.floor),
                "written down": str(row.registered),
                "from rows": str(row.rows),
                "predicted": f"{row.predicted:.4f}\n{row.low:.4f} to {row.high:.4f}",
                "came": f"{row.actual:.4f}" if come else "not done",
                "predicted over actual": f"{100 * row.error:+.1f} %".replace("-", "−") if come else "–",
                "in the interval": ("yes" if row.inside else "no") if come else "–",
            }
        )
    return pd.DataFrame(rows)


def prediction_figure(table: pd.DataFrame, level: float) -> Figure:
    """A row a prediction: the interval, the prediction as an open point, what came as a filled one."""
    from matplotlib.lines import Line2D

    several = (table["loss_column"] != LOSS).any()
    labels = [
        f"{row.name} ({f'{row.loss_column}, ' if several else ''}{law_name(row.law, row.floor)})"
        for row in table.itertuples(index=False)
    ]
    with drawing((7.2, max(1.9, 0.34 * len(table) + 1.3))) as (figure, axes):
        for place, row in enumerate(table.itertuples(index=False)):
            hue = "#555555" if row.inside is None else "#009E73" if row.inside else "#D55E00"
            axes.plot([row.low, row.high], [place, place], color="#888888", lw=1.6)
            axes.plot(row.predicted, place, marker="o", color="#555555", mfc="white", lw=0, zorder=3)
            axes.plot(row.actual, place, marker="D", color=hue, lw=0, zorder=4)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_xlabel("validation loss")
        open_point = Line2D([], [], marker="o", color="#888888", mec="#555555", mfc="white")
        open_point.set_label(f"predicted, {100 * level:g} % of a new run")
        came = [
            Line2D([], [], marker="D", lw=0, color=hue, label=text)
            for hue, text in (("#009E73", "came, inside"), ("#D55E00", "came, outside"))
        ]
        legend_above(figure, [open_point, *came])
        return figure
