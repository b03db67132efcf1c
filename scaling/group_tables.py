"""A comparison of groups of runs as a table of ready strings, as rows of numbers and as a figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scaling.errors import TableError
from scaling.figures import flops_axis, loss_axis
from scaling.groups import Curve, Place, interval
from scaling.look import HUES, MARKERS, legend_above, panels
from scaling.study import values
from scaling.tables import labels, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGNIFICANT = 2
"""Figures of the narrowest interval that a table shows."""
MOST_DECIMALS = 7
HELD = ("params", "steps", "train_flops")
"""What a group costs."""


def compared_frame(places: Mapping[str, Sequence[Place]]) -> pd.DataFrame:
    """A row a score and group with Place's columns, for CSV and JSON."""
    return pd.DataFrame(
        [{"score": score, **dataclasses.asdict(place)} for score, found in places.items() for place in found]
    )


def compared_text(results: pd.DataFrame, by: str, places: Mapping[str, Sequence[Place]], baseline: str) -> pd.DataFrame:
    """Ready strings: groups in the order of the first score; of each score mean, difference with interval, and p.

    Columns of HELD are shown where they are there, numbers throughout, and the same in all runs of a group.
    """
    order = [place.name for place in next(iter(places.values()))]
    names = labels(results, by)
    columns: dict[str, list[str]] = {by: order}
    for name in HELD:
        of_group = [values(results[names == group], name).to_numpy() for group in order]
        if name != by and all((own == own[0]).all() for own in of_group):  # a blank is NaN, which equals nothing
            columns[name] = [_count(own[0]) for own in of_group]
    for score, found in places.items():
        digits = _digits([place.high - place.difference for place in found])
        known = {place.name: place for place in found}
        columns[score] = [_number(known[group].mean, digits) for group in order]
        columns[f"{score}: difference (95 %)"] = [_difference(known[group], baseline, digits) for group in order]
        columns[f"{score}: p"] = ["" if group == baseline else _probability(known[group].p) for group in order]
    return pd.DataFrame(columns)


def compared_figure(
    results: pd.DataFrame, by: str, order: Sequence[str], scores: Sequence[str], curves: Mapping[str, Curve], x: str
) -> Figure:
    """Left, where there are curves, the first score against ``x``: thin lines are runs, bands 95 % of their mean. Then
    a panel a score of finished runs, each a point, with 95 % of their mean beside them.
    """
    from matplotlib.lines import Line2D

    count = len(scores) + bool(curves)
    # By name, not by rank: a group looks the same in figures of other scores.
    looks: dict[str, dict[str, Any]] = {
        name: {"color": HUES[i % len(HUES)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(sorted(order))
    }
    with panels(1, count, (max(5.4, 4.2 * count), 4.0)) as (drawn, grid):
        axes = list(grid[0])
        if curves:
            _curves(axes.pop(0), {name: curves[name] for name in order if name in curves}, looks, scores[0], x)
        for score, own in zip(scores, axes, strict=True):
            _points(own, {name: numbers(results[labels(results, by) == name], score) for name in order}, looks)
            own.set_ylabel(f"{score} of the finished run")
        legend_above(drawn, [Line2D([], [], label=name, **looks[name]) for name in order])
        return drawn


def _curves(axes: Axes, found: Mapping[str, Curve], looks: Mapping[str, Any], score: str, x: str) -> None:
    by_compute = x == "train_flops"
    if not any((curve.x > 0).any() if by_compute else len(curve.x) for curve in found.values()):
        raise TableError(f"curves: no point of the compared groups to draw over {x}")
    for name, curve in found.items():
        seen = curve.x > 0 if by_compute else np.ones(len(curve.x), bool)  # its axis is logarithmic
        hue = looks[name]["color"]
        axes.fill_between(curve.x[seen], curve.low[seen], curve.high[seen], color=hue, alpha=0.15, lw=0)
        for run in curve.runs:
            axes.plot(curve.x[seen], run[seen], color=hue, lw=0.4, alpha=0.6)
        axes.plot(curve.x[seen], curve.mean[seen], lw=1.5, markersize=4, zorder=3, **looks[name])
    if all((curve.mean > 0).all() for curve in found.values()):
        axes.set_yscale("log")
        loss_axis(axes.yaxis)
    axes.set_ylabel(score)
    if by_compute:
        flops_axis(axes)
    else:
        axes.set_xlabel(x)


def _points(axes: Axes, of_group: Mapping[str, np.ndarray], looks: Mapping[str, Any]) -> None:
    for index, (name, own) in enumerate(of_group.items()):
        place = index + 0.05 * (np.arange(len(own)) - (len(own) - 1) / 2)
        axes.scatter(place, own, s=18, lw=0, alpha=0.7, **looks[name])
        if len(own) > 1:
            low, high = interval(own)
            middle, hue = own.mean(), looks[name]["color"]
            axes.errorbar(index + 0.3, middle, [[middle - low], [high - middle]], color=hue, capsize=3)
    axes.set_xticks(range(len(of_group)), list(of_group), rotation=20, ha="right")
    axes.grid(axis="x", visible=False)


def _digits(reaches: Sequence[float]) -> int:
    """Decimals that show the narrowest interval with two figures, 0 or more."""
    narrow = min((reach for reach in reaches if reach > 0), default=0.01)
    return int(max(SIGNIFICANT - 1 - np.floor(np.log10(narrow)), 0))


def _number(value: float, digits: int, sign: str = "") -> str:
    """With so many decimals; in scientific notation where those are many."""
    text = f"{value:{sign}.{digits}f}" if digits <= MOST_DECIMALS else f"{value:{sign}.3e}"
    return text.replace("-", "−")


def _difference(place: Place, baseline: str, digits: int) -> str:
    if place.name == baseline:
        return "(baseline)"
    texts = [_number(value, digits, "+") for value in (place.difference, place.low, place.high)]
    return "{} ({} to {})".format(*texts) if np.isfinite(place.low) else f"{texts[0]} (no spread)"


def _probability(p: float) -> str:
    if not np.isfinite(p):
        return "–"
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _count(value: float) -> str:
    """Whole numbers with commas, huge and broken ones in scientific notation."""
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e11 else f"{value:.4g}"
