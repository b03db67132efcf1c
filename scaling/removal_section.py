"""The report's part on text encoders removed at inference, in the layout of SD3's Figure 9."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from scaling.errors import TableError
from scaling.page import Section
from scaling.win_rates import WinRate, WinRates, win_rates

ALL = "all encoders"
PAPER = "The paper's model without T5 wins 50 % on aesthetics, 46 % on prompt following and 38 % on typography."


def removal_section(
    battles: pd.DataFrame, scores: pd.DataFrame, samples: Path | None, *, draws: int, seed: int
) -> list[Section]:
    """Win rates without encoders against all of them, GenEval-proxy by what was removed, and the grid ``samples``.

    None without battles.
    """
    if battles.empty:
        return []
    part = Section("Without some text encoders")
    try:
        found = win_rates(battles, ALL, by=("question", "judge"), trainings="run", draws=draws, seed=seed)
    except TableError as error:
        part.missing.append(f"no win rates: {error}")
        return [part]
    part.findings.append(removal_finding(found))
    part.tables.append((rates_table(found), f"Win rate against {ALL}, ties as half; {found.how}"))
    if not scores.empty:
        part.tables.append((scores_table(scores), "Graded GenEval-proxy by task, mean over trainings"))
    if samples is not None:
        part.wide.append((samples.read_bytes(), "The first run's images: same prompts and same noise in every row"))
    part.notes.append(
        f"{PAPER} Here a small model of the judge's features of real images stands for aesthetics, and nothing is "
        "spelled out, so there is no typography. 50 % means that nothing is lost."
    )
    return [part]


def rates_table(found: WinRates) -> pd.DataFrame:
    """Ready strings: a row a name, a column a question and judge, the interval on a line of its own."""
    columns = list(dict.fromkeys(row.question for row in found.rows))
    rows = []
    for name in dict.fromkeys(row.name for row in found.rows):
        own = {row.question: rate_text(row) for row in found.rows if row.name == name}
        rows.append({"removed": name.removeprefix("without "), **{column: own.get(column, "") for column in columns}})
    return pd.DataFrame(rows)


def rate_text(row: WinRate) -> str:
    """The rate in %, and its interval below."""
    bounds = f"\n{100 * row.low:.1f} to {100 * row.high:.1f}" if np.isfinite(row.low) else ""
    return f"{100 * row.rate:.1f} %{bounds}"


def scores_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Graded score of each task by what was removed, and what random scenes get, as ready strings."""
    tasks = list(dict.fromkeys(scores["task"]))
    kept = scores.assign(without=scores["without"].fillna(""))
    means = kept.groupby(["without", "task"], sort=False)["graded"].mean()
    rows = [
        {"removed": removed or "nothing", **{task: f"{means[removed, task]:.3f}" for task in tasks}}
        for removed in dict.fromkeys(kept["without"])
    ]
    chance = kept.groupby("task")["chance_graded"].mean()
    return pd.DataFrame([*rows, {"removed": "(chance)", **{task: f"{chance[task]:.3f}" for task in tasks}}])


def removal_finding(found: WinRates) -> str:
    """What costs most, and whether an interval leaves 50 % out."""
    worst = min(found.rows, key=lambda row: row.rate)
    text = f"{worst.name.capitalize()}, images win {100 * worst.rate:.0f} % against {ALL} on {worst.question}"
    if np.isfinite(worst.low):
        shown = "a loss that is shown" if worst.high < 0.5 else "no loss that is shown"
        text += f" ({100 * worst.low:.0f} to {100 * worst.high:.0f}): {shown}"
    return text + "."
