"""Win rates of a baseline in the layout of Stable Diffusion 3's announcement: a bar a question for each competitor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scaling.look import HUES, drawing, legend_above
from scaling.win_rates import WinRates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTIONS = ("prompt following", "aesthetics", "typography")
"""SD3's, in the order of its bars; others come after, in order of appearance."""


def baseline_frame(found: WinRates) -> pd.DataFrame:
    """How often the baseline wins: a row a competitor and question (opponent, question, rate, low, high, battles).

    Rates are in [0, 1], ties as half. Competitors are in order of the baseline's mean rate, the strongest first.
    """
    frame = pd.DataFrame(
        {
            "opponent": [row.name for row in found.rows],
            "question": [row.question for row in found.rows],
            "rate": [1 - row.rate for row in found.rows],
            "low": [1 - row.high for row in found.rows],
            "high": [1 - row.low for row in found.rows],
            "battles": [row.battles for row in found.rows],
        }
    )
    asked = list(dict.fromkeys(frame["question"]))
    order = [*(q for q in QUESTIONS if q in asked), *(q for q in asked if q not in QUESTIONS)]
    frame["mean"] = frame.groupby("opponent")["rate"].transform("mean")
    frame["place"] = frame["question"].map(order.index)
    frame = frame.sort_values(["mean", "opponent", "place"], kind="stable", ignore_index=True)
    return frame.drop(columns=["mean", "place"])


def win_bars(frame: pd.DataFrame, against: str, beside: Sequence[str] = ()) -> Figure:
    """A group of bars a competitor, one a question, with intervals and the line of 50 %; from ``baseline_frame``.

    ``beside``: the questions in the order of ``figures.elo_figure``, if it shows these: each has the same colour there.
    """
    from matplotlib.patches import Patch

    opponents = list(dict.fromkeys(frame["opponent"]))
    asked = list(dict.fromkeys(frame.sort_values("question", key=_places)["question"]))
    order = list(beside) if set(asked) <= set(beside) else asked
    hues = {question: HUES[order.index(question) % len(HUES)] for question in asked}
    thick = 0.8 / len(asked)
    with drawing((5.4, max(2.2, (0.22 * len(asked) + 0.12) * len(opponents) + 1.2))) as (figure, axes):
        for _, row in frame.iterrows():
            index = asked.index(row["question"])
            place = opponents.index(row["opponent"]) + thick * (index - (len(asked) - 1) / 2)
            axes.barh(place, 100 * row["rate"], height=0.9 * thick, color=hues[row["question"]], alpha=0.85, lw=0)
            if np.isfinite(row["low"]):
                axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color="#222222", lw=1.1)
        axes.axvline(50, color="#222222", lw=1.0, linestyle="--")
        axes.set_yticks(range(len(opponents)), opponents, fontsize=9 if len(opponents) <= 16 else 7)
        axes.set_ylim(len(opponents) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 10))
        axes.grid(False, axis="y")
        axes.set_xlabel(f"win rate of {against} (%), ties as half")
        if asked != [""]:
            legend_above(figure, [Patch(color=hues[question], alpha=0.85, label=question) for question in asked])
        return figure


def _places(questions: pd.Series) -> pd.Series:
    return questions.map(lambda question: QUESTIONS.index(question) if question in QUESTIONS else len(QUESTIONS))
