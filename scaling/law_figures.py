"""A fitted law as a figure and tables: curves with bands, points, what the law leaves over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scaling.figures import loss_axis
from scaling.laws import Law
from scaling.look import legend_above, panels, save, show_formulas

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 8
"""Of a joint law: one a value of D."""
WIDE = (8.4, 4.0)


def write_laws(laws: Mapping[str, tuple[Law, pd.DataFrame]], folder: Path, units: Mapping[str, str]) -> None:
    """Write ``law_<loss>.png`` and ``.pdf`` and ``law_<loss>.csv`` (rows with prediction and residual) of each law."""
    folder.mkdir(parents=True, exist_ok=True)
    for loss, (law, rows) in laws.items():
        save(law_figure(law, rows, units, loss), folder, f"law_{loss}")
        predicted = law.predict(*(rows[x].to_numpy() for x in law.kind.abscissae))
        told = rows.assign(predicted=predicted, log_residual=np.log(rows["L"] / predicted))
        told.to_csv(folder / f"law_{loss}.csv", index=False)


def law_figure(law: Law, rows: pd.DataFrame, units: Mapping[str, str], loss: str) -> Figure:
    """Left the law over its first abscissa (a curve a value of the second) with its band, right its residuals.

    ``rows``: a column an abscissa, L, dropped (crosses).
    """
    from matplotlib import ticker

    with panels(1, 2, WIDE) as (figure, grid):
        left, right = grid[0]
        handles = _one(left, law, rows) if len(law.kind.abscissae) == 1 else _two(left, law, rows)
        first = law.kind.abscissae[0]
        kept = rows[~rows["dropped"]]
        predicted = law.predict(*(kept[x].to_numpy() for x in law.kind.abscissae))
        right.axhline(0.0, color="#444444", lw=1)
        right.axhspan(-100 * law.run_noise, 100 * law.run_noise, color="#888888", alpha=0.15, lw=0)
        right.scatter(kept[first], 100 * np.log(kept["L"] / predicted), s=14, color="#0b5cad", lw=0)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(ticker.NullFormatter())
            axes.set_xlabel(f"{first}: {units[first]}")
        left.set_yscale("log")
        loss_axis(left.yaxis)
        left.set_ylabel(loss)
        show_formulas([left.set_title(law.equation(), fontsize=9)])
        right.set_ylabel("loss over law, %")
        right.set_title("band: what a run misses by", fontsize=9)
        if handles:
            legend_above(figure, handles)
        return figure


def _one(axes: Axes, law: Law, rows: pd.DataFrame) -> list[Artist]:
    x = law.kind.abscissae[0]
    low, high = law.ranges[0]
    grid = np.geomspace(low / 1.2, high * 2, 80)
    bottom, top = law.band(grid)
    axes.fill_between(grid, bottom, top, color="#0b5cad", alpha=0.15, lw=0)
    axes.plot(grid, law.predict(grid), color="#0b5cad")
    _points(axes, rows, x, "#0b5cad")
    return []


def _two(axes: Axes, law: Law, rows: pd.DataFrame) -> list[Artist]:
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    first, second = law.kind.abscissae
    values = np.unique(rows[second])
    shown = values if len(values) <= MOST_CURVES else np.geomspace(values[0], values[-1], MOST_CURVES)
    low, high = law.ranges[0]
    grid = np.geomspace(low / 1.2, high * 2, 60)
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(shown)))
    for value, colour in zip(shown, colours, strict=True):
        bottom, top = law.band(grid, np.full_like(grid, value))
        axes.fill_between(grid, bottom, top, color=colour, alpha=0.12, lw=0)
        axes.plot(grid, law.predict(grid, value), color=colour, lw=1.3)
    nearest = np.abs(np.log(rows[second].to_numpy()[:, None] / shown)).argmin(axis=1)
    for index, colour in enumerate(colours):
        _points(axes, rows[nearest == index], first, colour)
    return [
        Line2D([], [], color=colour, marker="o", markersize=4, label=f"{second} = {value:.3g}")
        for value, colour in zip(shown, colours, strict=True)
    ]


def _points(axes: Axes, rows: pd.DataFrame, x: str, colour: object) -> None:
    kept = rows[~rows["dropped"]]
    axes.scatter(kept[x], kept["L"], s=18, color=colour, lw=0, zorder=3)
    out = rows[rows["dropped"]]
    axes.scatter(out[x], out["L"], s=22, color="#b00020", marker="x", zorder=3)
