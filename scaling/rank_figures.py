"""Figures of a ranking and of sampling efficiency: fronts setting by setting, average ranks, losses by steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scaling.efficiency import EfficiencyTable
from scaling.labels import label_front
from scaling.look import HUES, LINES, MARKERS, SIZE, drawing, legend_above, panels
from scaling.names import families, short
from scaling.ranking import RankTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 12
ACROSS = 3
MOST_LINES = 10
"""So many groups at most in the figure of efficiency: more lines can't be told apart."""
TITLES = {"dataset": "{}", "weights": "{} weights", "method": "{}", "steps": "{} steps", "guidance": "guidance {}"}


def shown_panels(settings: pd.DataFrame) -> list[int]:
    """The places of at most MOST_PANELS settings to draw; of more, those with EMA weights, then an even choice.

    In order of data set, steps and guidance, where the table says them.
    """
    facts = settings
    if len(facts) > MOST_PANELS and "weights" in facts.columns and (facts["weights"] == "ema").any():
        facts = facts[facts["weights"] == "ema"]
    keys = [column for column in ("dataset", "steps", "guidance", "weights") if column in facts.columns]
    if keys:
        order = facts[keys].apply(
            lambda column: found if (found := pd.to_numeric(column, errors="coerce")).notna().all() else column
        )
        facts = facts.loc[order.sort_values(keys, kind="stable").index]
    places = [int(place) for place in facts.index]
    if len(places) > MOST_PANELS:
        places = [places[i] for i in np.linspace(0, len(places) - 1, MOST_PANELS).round().astype(int)]
    return places


def panel_titles(settings: pd.DataFrame, places: list[int]) -> list[str]:
    """What tells the chosen settings apart, by the facts that differ among them; else their own labels."""
    chosen = settings.loc[places]
    columns = [name for name in TITLES if name in chosen.columns and chosen[name].nunique() > 1]
    titles = [", ".join(TITLES[name].format(row[name]) for name in columns) for _, row in chosen.iterrows()]
    return titles if len(set(titles)) == len(titles) and columns else [str(label) for label in chosen["setting"]]


def shown_text(settings: pd.DataFrame, places: list[int]) -> str:
    """What is drawn of the settings, and what all of it has in common: ``12 of 24 settings; ema weights, euler``."""
    chosen = settings.loc[places]
    count = f"{len(places)} of {len(settings)} settings" if len(places) < len(settings) else f"{len(places)} settings"
    common = [
        TITLES[name].format(chosen[name].iloc[0])
        for name in TITLES
        if name in chosen.columns and len(chosen) > 1 and chosen[name].nunique() == 1
    ]
    return "; ".join([count, *([", ".join(common)] if common else [])])


def fronts_figure(table: RankTable) -> Figure:
    """A panel a setting: up against down, a colour and a line a front, the first front's names at their points."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
    from matplotlib.ticker import MaxNLocator

    places = shown_panels(table.settings)
    across = min(ACROSS, len(places))
    down = -(-len(places) // across)
    most = int(table.front[:, places].max())
    # The first front stands out from the others, which fade towards the last.
    colours = np.concatenate([[to_rgba(HUES[1])], colormaps["viridis"](np.linspace(0, 0.93, most))[1:]])
    with panels(down, across, (3.1 * across + 0.9, 2.75 * down + 0.3)) as (figure, grid):
        for axes, place, title in zip(grid.flat, places, panel_titles(table.settings, places), strict=False):
            x, y, front = table.down[:, place], table.up[:, place], table.front[:, place]
            for index in range(most, 0, -1):
                on = np.flatnonzero(front == index)
                on = on[np.lexsort((y[on], x[on]))]
                first = index == 1
                axes.plot(x[on], y[on], color=colours[index - 1], lw=1.3 if first else 0.6, zorder=3 + first)
                axes.scatter(x[on], y[on], s=16 if first else 9, color=colours[index - 1], lw=0, zorder=4 + first)
            axes.set_title(title, fontsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.tick_params(labelsize=7)
            # Room for names beyond the first front, at the upper left.
            axes.margins(0.06)
            (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            axes.set_xlim(left - 0.45 * (right - left), right)
            axes.set_ylim(bottom, top + 0.4 * (top - bottom))
        for axes in list(grid.flat)[len(places) :]:
            axes.remove()
        figure.suptitle(shown_text(table.settings, places), fontsize=9)
        figure.supxlabel(f"{table.columns[1]} (lower is better)", fontsize=9)
        figure.supylabel(f"{table.columns[0]} (higher is better)", fontsize=9)
        if most > 1:
            scale = ScalarMappable(BoundaryNorm(np.arange(0.5, most + 1), most), ListedColormap(colours))
            bar = figure.colorbar(
                scale, ax=list(figure.axes), aspect=30, pad=0.02, fraction=0.03, shrink=0.5 if down > 2 else 0.9
            )
            bar.set_ticks(sorted({1, *range(5, most - 1, 5), most}) if most > 8 else list(range(1, most + 1)))
            bar.ax.tick_params(labelsize=7, length=0, which="both")
            bar.set_label("Pareto front (1 is best)", fontsize=8)
        figure.draw_without_rendering()
        names = [short(name) for name in table.names]
        for axes, place in zip(grid.flat, places, strict=False):
            best = np.flatnonzero(table.front[:, place] == 1)
            lost = label_front(axes, table.down[best, place], table.up[best, place], [names[i] for i in best])
            if lost:
                text = f"{lost} name{'s' * (lost != 1)} left out"
                axes.text(0.98, 0.02, text, transform=axes.transAxes, fontsize=6, ha="right", color="#777777")
        return figure


def ranks_figure(table: RankTable) -> Figure:
    """Average rank of each name with its interval, best on top, a colour and marker a family."""
    from matplotlib.lines import Line2D

    names = table.names
    kinds = families(names)
    order = list(dict.fromkeys(kinds))
    dense = len(names) > 24
    height = len(names) * (0.165 if dense else 0.24) + 1.3
    with drawing((SIZE[0], max(2.6, height))) as (figure, axes):
        for row, (place, kind) in enumerate(zip(table.places, kinds, strict=True)):
            look = order.index(kind)
            hue, marker = HUES[look % len(HUES)], MARKERS[look % len(MARKERS)]
            if np.isfinite(place.all.low):
                axes.plot([place.all.low, place.all.high], [row, row], color=hue, lw=1.4, solid_capstyle="butt")
            axes.plot(place.all.rank, row, marker=marker, color=hue, lw=0)
        axes.set_yticks(range(len(names)), names, fontsize=7 if dense else 8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(False, axis="y")
        settings = table.front.shape[1]
        axes.set_xlabel(f"average rank over {settings} setting{'s' * (settings != 1)} (1 is best)")
        end = axes.get_xlim()[1]
        # The best rank there can be is always marked.
        axes.set_xticks(sorted({1.0, *(float(tick) for tick in axes.get_xticks() if 1 < tick <= end)}))
        axes.set_xlim(1 - 0.03 * (end - 1), end)
        if order != [""] and len(order) > 1:
            handles = [
                Line2D([], [], color=HUES[i % len(HUES)], marker=MARKERS[i % len(MARKERS)], lw=1.4, label=kind)
                for i, kind in enumerate(order)
            ]
            legend_above(figure, handles)
        return figure


def efficiency_figure(table: EfficiencyTable, group: str) -> Figure:
    """Relative loss of score against the number of steps, a line a group, with intervals."""
    from matplotlib import ticker
    from matplotlib.lines import Line2D

    rows = table.rows[:MOST_LINES]
    with drawing() as (figure, axes):
        axes.axhline(0, color="#444444", lw=0.8)
        handles = []
        for index, row in enumerate(rows):
            hue, marker = HUES[index % len(HUES)], MARKERS[index % len(MARKERS)]
            line: Any = LINES[index % len(LINES)]
            # Side by side, since intervals at one number of steps would hide each other.
            x = np.array(table.steps[:-1]) * 1.03 ** (index - (len(rows) - 1) / 2)
            y = np.array([value.value for value in row.losses])
            axes.plot(x, y, color=hue, marker=marker, linestyle=line, lw=1.2)
            for at, value in zip(x, row.losses, strict=True):
                if np.isfinite(value.low):
                    axes.plot([at, at], [value.low, value.high], color=hue, lw=1.1)
            label = f"{group} {row.group}" if row.group.replace(".", "").isdigit() else row.group
            handles.append(Line2D([], [], color=hue, marker=marker, linestyle=line, lw=1.2, label=label))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.FixedLocator(list(table.steps[:-1])))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlabel("sampling steps")
        axes.set_ylabel(f"loss of {table.score} against {table.steps[-1]} steps (%)")
        legend_above(figure, handles)
        return figure
