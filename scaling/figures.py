"""Figures that a paper could print: losses, laws, scores by task, Elo; intervals as bands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scaling.elo import EloTable
from scaling.findings import scientific
from scaling.laws import Law
from scaling.look import (
    HUES,
    MARKERS,
    SIZE,
    TALL,
    Look,
    beside,
    drawing,
    formula,
    legend_above,
    run_mark,
    show_formulas,
)
from scaling.study import levels, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def loss_axis(axis: Any) -> None:
    """Plain ticks on a logarithmic loss axis on which everything is drawn: evenly apart where it spans no decade."""
    from matplotlib import ticker

    axes = axis.axes
    low, high = axes.get_ylim() if axis is axes.yaxis else axes.get_xlim()
    even = ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    axis.set_major_locator(even if high < 12 * low else ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_locator(ticker.NullLocator())


def flops_axis(axes: Axes, label: str = "training compute (FLOPs, per-stream count)") -> None:
    """A logarithmic compute axis with readable ticks over less than two decades too."""
    from matplotlib import ticker

    axes.set_xscale("log")
    axes.set_xlabel(label)
    low, high = axes.get_xlim()
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    if high / low < 300:
        subs = (1.0, 3.0) if high / low > 12 else (1.0, 2.0, 3.0, 5.0)
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: scientific(value, 0).removeprefix("1×")))


def loss_curves(curves: pd.DataFrame, look: Look, x: str) -> Figure:
    """Validation loss against ``x``, ``step`` or ``train_flops``, a line a run."""
    with drawing() as (figure, axes):
        draw_loss_curves(axes, curves, look, x)
        look.legend(figure)
        return figure


def draw_loss_curves(axes: Axes, curves: pd.DataFrame, look: Look, x: str) -> None:
    """The same in given axes, each line under its run's mark."""
    for _, run in curves.groupby("run_id", sort=False):
        run = run.sort_values("step")
        keep = (values(run, "val_loss") > 0) & (values(run, x) > 0)
        depth, kind = run["depth"].iloc[0], run["formulation"].iloc[0]
        axes.plot(
            values(run, x)[keep],
            values(run, "val_loss")[keep],
            color=look.colour(depth, kind),
            linestyle=look.line(kind),
            marker=look.marker(kind),
            markersize=3,
            lw=1.2,
            zorder=look.order(kind),
            gid=run_mark(run["name"].iloc[0]),
        )
    axes.set_yscale("log")
    loss_axis(axes.yaxis)
    axes.set_ylabel("validation loss (EMA weights, mean of levels)")
    if x == "step":
        axes.set_xlabel("training steps")
    else:
        flops_axis(axes)


def law_figure(
    curves: pd.DataFrame,
    fits: Mapping[str, tuple[Law, pd.DataFrame]],
    look: Look,
    pooled_name: str,
) -> Figure:
    """All validations in grey, each formulation's frontier as points, its law as a line with its interval as a band.

    ``pooled_name`` is what the law of all formulations together is called; of more than the look tells apart, the
    others are left out.
    """
    with drawing() as (figure, axes):
        handles = draw_laws(axes, curves, fits, look, pooled_name)
        show_formulas(figure.legend(handles=handles, loc="outside upper left", ncols=1).get_texts())
        return figure


def draw_laws(
    axes: Axes,
    curves: pd.DataFrame,
    fits: Mapping[str, tuple[Law, pd.DataFrame]],
    look: Look,
    pooled_name: str,
) -> list[Any]:
    """The same in given axes; returns what its legend says, with formulas (``show_formulas``)."""
    from matplotlib.lines import Line2D

    cost, loss = values(curves, "train_flops"), values(curves, "val_loss")
    keep = (cost > 0) & (loss > 0)
    axes.scatter(cost[keep], loss[keep], s=7, color="#c4c4c4", zorder=1, lw=0)
    handles = [Line2D([], [], color="#c4c4c4", marker="o", lw=0, label="every validation of every run")]
    drawn = {kind: fit for kind, fit in fits.items() if kind in look.formulations or kind == pooled_name}
    for kind, (law, rows) in drawn.items():
        pooled = kind == pooled_name
        hue = "#555555" if pooled else look.hue(kind)
        line: Any = ":" if pooled else look.line(kind)
        low, high = law.compute_range
        grid = np.geomspace(low / 1.15, high * 2, 100)
        if not pooled:
            bottom, top = law.band(grid)
            axes.fill_between(grid, bottom, top, color=hue, alpha=0.15, lw=0, zorder=2)
            for name, own in rows.groupby("name", sort=False):
                points = (values(own, "train_flops"), values(own, "val_loss"))
                style: Any = {"color": hue, "marker": look.marker(kind), "markersize": 4.7, "mew": 0, "lw": 0}
                axes.plot(*points, zorder=4, gid=run_mark(str(name)), **style)
        axes.plot(grid, law.predict(grid), color=hue, linestyle=line, lw=1.4, zorder=3)
        marker = None if pooled else look.marker(kind)
        handles.append(
            Line2D([], [], color=hue, linestyle=line, marker=marker, label=formula(kind, law.equation())),
        )
    axes.set_yscale("log")
    ends = [np.concatenate(law.band(np.array(law.compute_range))) for law, _ in drawn.values()]
    span = np.concatenate([loss[keep], *ends])
    span = span[np.isfinite(span)]
    # A law from three runs may have a band of any width; the data keep at least half of the axis.
    middle = np.median(loss[keep])
    axes.set_ylim(
        max(span.min(), loss[keep].min() * loss[keep].min() / middle) / 1.1,
        min(span.max(), 2 * loss[keep].max()) * 1.05,
    )
    loss_axis(axes.yaxis)
    axes.set_ylabel("validation loss (EMA weights, mean of levels)")
    flops_axis(axes)
    return handles


def level_losses(results: pd.DataFrame, look: Look) -> Figure:
    """Final validation loss per level of t, a line a run."""
    with drawing() as (figure, axes):
        columns = levels(results)
        centres = (np.arange(len(columns)) + 0.5) / len(columns)
        for _, run in results.iterrows():
            axes.plot(
                centres,
                [run[column] for column in columns],
                color=look.colour(run["depth"], run["formulation"]),
                linestyle=look.line(run["formulation"]),
                marker=look.marker(run["formulation"]),
                lw=1.2,
                zorder=look.order(run["formulation"]),
            )
        axes.set_yscale("log")
        loss_axis(axes.yaxis)
        axes.set_xlim(0, 1)
        axes.set_xlabel("t of the level (0 data, 1 noise)")
        axes.set_ylabel("final validation loss at that t")
        look.legend(figure)
        return figure


def level_ratios(ratios: pd.DataFrame, baseline: str, look: Look) -> Figure:
    """Loss of each formulation over the baseline's at the same depth, per level of t.

    ``ratios``: columns formulation, depth, t, ratio; a line for each formulation and depth.
    """
    with drawing() as (figure, axes):
        axes.axhline(1.0, color="#444444", lw=1)
        for (kind, depth), part in ratios.groupby(["formulation", "depth"], sort=True):
            axes.plot(
                part["t"],
                part["ratio"],
                color=look.colour(depth, kind),
                linestyle=look.line(kind),
                marker=look.marker(kind),
                lw=1.2,
                zorder=look.order(kind),
            )
        axes.set_xlim(0, 1)
        axes.set_xlabel("t of the level (0 data, 1 noise)")
        axes.set_ylabel(beside(f"loss divided by {baseline}'s at the same depth"))
        look.legend(figure)
        return figure


def task_scores(
    geneval: pd.DataFrame, runs: pd.DataFrame, look: Look, columns: tuple[str, str, str, str], label: str
) -> Figure:
    """A score per task and run with its interval, chance as a bar across. ``columns``: value, low, high, chance."""
    from matplotlib.lines import Line2D

    value, low, high, chance = columns
    tasks = list(dict.fromkeys(geneval["task"]))
    named = runs[runs["formulation"].isin(look.formulations) & runs["name"].isin(set(geneval["name"]))]
    present = [row for _, row in named.iterrows()]
    with drawing(TALL) as (figure, axes):
        for place, task in enumerate(tasks):
            part = geneval[geneval["task"] == task].set_index("name")
            level = values(part, chance).mean()
            if np.isfinite(level):
                axes.plot([level, level], [place - 0.42, place + 0.42], color="#B00020", lw=2, zorder=2)
            for index, run in enumerate(present):
                if run["name"] not in part.index:
                    continue
                row = part.loc[run["name"]]
                offset = place + 0.36 * (2 * (index + 0.5) / len(present) - 1)
                colour = look.colour(run["depth"], run["formulation"])
                axes.plot([row[low], row[high]], [offset, offset], color=colour, lw=1.3, zorder=3)
                axes.plot(row[value], offset, marker=look.marker(run["formulation"]), color=colour, lw=0, zorder=4)
        axes.set_yticks(range(len(tasks)), [str(task).replace("_", " ") for task in tasks])
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.grid(False, axis="y")
        for place in range(1, len(tasks)):
            axes.axhline(place - 0.5, color="#e3e3e3", lw=0.8)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.set_xlabel(label)
        look.legend(figure, [Line2D([], [], color="#B00020", lw=2, label="chance")], others=False)
        return figure


def elo_figure(tables: Mapping[str, EloTable]) -> Figure:
    """Ratings with intervals, a row a run, a colour a table (a judge); the first table sets the order.

    Without a legend where the only table has no name.
    """
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(rating.name for table in tables.values() for rating in table.ratings))
    row = 0.45 if len(names) <= 16 else 0.24
    hues = HUES if list(tables) != [""] else ("#222222",)
    with drawing((SIZE[0], max(2.6, row * len(names) + 1.4))) as (figure, axes):
        handles = []
        for index, (judge, table) in enumerate(tables.items()):
            hue, marker = hues[index % len(hues)], MARKERS[index % len(MARKERS)]
            for rating in table.ratings:
                place = names.index(rating.name) + 0.32 * (2 * (index + 0.5) / len(tables) - 1)
                axes.plot([rating.low, rating.high], [place, place], color=hue, lw=1.5)
                axes.plot(rating.elo, place, marker=marker, color=hue, lw=0)
            handles.append(Line2D([], [], color=hue, marker=marker, lw=1.5, label=judge))
        for anchor in next(iter(tables.values())).anchors.values() or (1000,):
            axes.axvline(anchor, color="#888888", lw=0.8)
        axes.set_yticks(range(len(names)), names, fontsize=9 if len(names) <= 16 else 7)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_xlabel(f"Elo ({next(iter(tables.values())).scale})")
        if list(tables) != [""]:
            legend_above(figure, handles)
        return figure
