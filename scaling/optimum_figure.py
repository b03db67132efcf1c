"""Optima of a hyperparameter as a figure: losses with their parabolas, and the optimum over the size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scaling.figures import loss_axis
from scaling.look import HUES, MARKERS, legend_above, panels
from scaling.optimum import Drift, Optimum
from scaling.tables import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADROOM = 0.8
"""Octaves of loss above the least at every size that are shown: what diverges shall not flatten the rest."""


def optimum_figure(
    tables: Mapping[str, pd.DataFrame],
    found: Mapping[str, Sequence[Optimum]],
    drifts: Mapping[str, Drift],
    x: str,
    loss: str,
    by: str,
) -> Figure:
    """A panel a table: points are runs, thin lines their means, thick ones the parabolas, crosses optima with 95 %.
    Then a panel with the optima of all over the size."""
    import matplotlib
    from matplotlib.lines import Line2D

    sizes = sorted({item.size for own in found.values() for item in own})
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(sizes)))
    hue = dict(zip(sizes, shades, strict=True))
    count = len(tables) + 1
    top = max(item.loss for own in found.values() for item in own) * 2**HEADROOM
    least = min(item.loss for own in found.values() for item in own)
    with panels(1, count, (3.6 * count, 3.8)) as (drawn, grid):
        for axes, (name, table) in zip(grid[0], tables.items(), strict=False):
            _losses(axes, table, found[name], hue, (x, loss, by))
            axes.set_ylim(least / 2**0.1, top)
            axes.set_title(name, fontsize=9)
        last: Axes = grid[0, -1]
        for i, (name, own) in enumerate(found.items()):
            _drift(last, own, drifts[name], HUES[i % len(HUES)], MARKERS[i % len(MARKERS)], name)
        last.set_xscale("log", base=2)
        last.set_yscale("log", base=2)
        last.set_xlabel(by)
        last.set_ylabel(f"best {x}")
        last.set_xticks(sizes, [f"{size:g}" for size in sizes])
        last.legend(loc="best")
        legend_above(drawn, [Line2D([], [], color=hue[size], lw=3, label=f"{by} {size:g}") for size in sizes])
        return drawn


def _losses(
    axes: Axes,
    table: pd.DataFrame,
    found: Sequence[Optimum],
    hue: Mapping[float, np.ndarray],
    columns: tuple[str, str, str],
) -> None:
    x, loss, by = columns
    size, at, losses = numbers(table, by), numbers(table, x), numbers(table, loss, allow_missing=True)
    for item in found:
        own = (size == item.size) & np.isfinite(losses)
        colour = hue[item.size]
        axes.plot(at[own], losses[own], ".", color=colour, alpha=0.6, ms=4)
        means = pd.Series(losses[own]).groupby(at[own]).mean()
        axes.plot(means.index, means, color=colour, lw=0.5, alpha=0.7)
        if np.isfinite(item.curve[2]):
            u = np.linspace(np.log2(item.span[0]), np.log2(item.span[1]), 60)
            axes.plot(2**u, 2 ** np.polyval(item.curve[::-1], u), color=colour, lw=1.6)
            axes.plot(item.best, item.loss, "x", color=colour, ms=7, mew=1.8, zorder=5)
        if item.bounded:
            axes.plot([item.low, item.high], [item.loss] * 2, color=colour, lw=3, alpha=0.35, solid_capstyle="butt")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(loss)
    loss_axis(axes.yaxis)


def _drift(axes: Axes, found: Sequence[Optimum], line: Drift, hue: str, marker: str, name: str) -> None:
    known = [item for item in found if item.bounded]
    best = np.array([item.best for item in known])
    reach = np.array([[item.best - item.low for item in known], [item.high - item.best for item in known]])
    label = f"{name}: slope {line.slope:+.2f} ({line.low:+.2f} to {line.high:+.2f})" if known else name
    if known:
        axes.errorbar([item.size for item in known], best, reach, fmt=marker, color=hue, capsize=3, label=label)
    if np.isfinite(line.slope):
        u = np.log2([min(item.size for item in known), max(item.size for item in known)])
        axes.plot(2**u, 2 ** (line.middle[1] + line.slope * (u - line.middle[0])), color=hue, lw=1)
    for item in found:
        if not item.bounded:  # hollow: at the end of the grid, or not bounded
            axes.plot(item.size, item.best, marker, color=hue, mfc="white", zorder=4)
