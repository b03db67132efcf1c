"""Figures of loss beside scores: a point a run, and correlations with the loss at each t."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.look import HUES, Look, drawing, panels, run_mark
from scaling.score_correlations import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def correlation_figure(score: Score, look: Look) -> Figure:
    """Validation loss against a score, a point a run."""
    with drawing() as (figure, axes):
        draw_correlation(axes, score, look)
        look.legend(figure)
        return figure


def draw_correlation(axes: Axes, score: Score, look: Look) -> None:
    """The same in given axes, each point under its run's mark; r and its interval are the title."""
    for _, run in score.points.iterrows():
        colour, order = look.colour(run["depth"], run["formulation"]), look.order(run["formulation"])
        if np.isfinite(run["low"]):
            bar: Any = {"color": colour, "lw": 1, "alpha": 0.7, "gid": f"{run_mark(run['name'])}-bar"}
            axes.plot([run["x"], run["x"]], [run["low"], run["high"]], zorder=order, **bar)
        style = {"marker": look.marker(run["formulation"]), "color": colour, "markersize": 6, "lw": 0}
        axes.plot(run["x"], run["y"], zorder=order, gid=run_mark(run["name"]), **style)
    axes.set_xlabel("validation loss (EMA weights, mean of levels)")
    axes.set_ylabel(score.label)
    axes.margins(x=0.08)
    pearson = score.found.pearson
    text = f"Pearson r = {pearson.r:.2f} [{pearson.low:.2f}, {pearson.high:.2f}], n = {score.found.rows}"
    axes.set_title(text.replace("-", "−"), fontsize=9)


def bins_figure(scores: Mapping[str, Score]) -> Figure:
    """Pearson's r of each score with the loss at each t, a panel a score; the mean loss's as a line and a band.

    A filled point is a bin that goes with the score more than the mean does, by the p of the best of all bins.
    """
    with panels(1, len(scores), (0.6 + 2.9 * len(scores), 3.1)) as (figure, grid):
        for axes, (name, score) in zip(grid[0], scores.items(), strict=True):
            bins = score.bins
            if bins is None:
                continue
            rows = bins.rows["pearson"]
            r, low, high = bins.mean["pearson"]
            axes.axhspan(low, high, color="#888888", alpha=0.15, lw=0)
            axes.axhline(r, color="#555555", lw=1.2)
            axes.axhline(0, color="#222222", lw=0.6)
            for place, row in enumerate(rows):
                t = (place + 0.5) / len(rows)
                better = row.difference > 0 and row.p_best < 1 - bins.level
                axes.plot([t, t], [row.r_low, row.r_high], color=HUES[0], lw=1.2)
                axes.plot(t, row.r, marker="o", color=HUES[0], markerfacecolor=HUES[0] if better else "white", lw=0)
            axes.set_xlim(0, 1)
            axes.set_ylim(-1.04, max(0.1, r, *(row.r_high for row in rows)) + 0.04)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("t of the level (0 data, 1 noise)")
        grid[0, 0].set_ylabel("Pearson r with the loss at t")
        return figure
