"""Goodput as a figure: the wall time of each run by what it went to, in shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaling.goodput import LOST, Goodput
from scaling.look import SIZE, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USEFUL = "useful"
COLOURS = {
    USEFUL: "#0072B2",
    "redone": "#D55E00",
    "compile": "#E69F00",
    "data": "#F0E442",
    "checkpoint": "#CC79A7",
    "validation": "#56B4E9",
    "startup": "#009E73",
    "evaluation": "#8A6FBF",
    "down": "#333333",
    "unaccounted": "#C4C4C4",
}
"""Okabe and Ito's eight (2008), with a violet, and grey for what is not known."""
MANY = 16
"""Of more bars than this, each is thinner."""


def goodput_figure(bars: Sequence[tuple[str, Goodput]]) -> Figure:
    """A bar a run, top to bottom: the shares of its wall time, those of LOST after the useful one, which is told too.

    ``bars``: (label, goodput), each of some wall time; the first may be the total. The legend has what any bar has.
    """
    from matplotlib.patches import Patch
    from matplotlib.ticker import PercentFormatter

    few = len(bars) <= MANY
    with drawing((SIZE[0] * 1.4, max(2.2, (0.36 if few else 0.22) * len(bars) + 1.3))) as (figure, axes):
        handles = []
        left = [0.0] * len(bars)
        for name in (USEFUL, *LOST):
            seconds = [found.useful_seconds if name == USEFUL else found.lost[name] for _, found in bars]
            widths = [own / found.wall_seconds for own, (_, found) in zip(seconds, bars, strict=True)]
            if not any(width > 0 for width in widths):
                continue
            axes.barh(range(len(bars)), widths, left=left, color=COLOURS[name], height=0.74, lw=0)
            handles.append(Patch(color=COLOURS[name], label=name))
            left = [start + width for start, width in zip(left, widths, strict=True)]
        size = 9 if few else 7
        for place, (_, found) in enumerate(bars):
            axes.text(1.012, place, f"{100 * found.share:.1f} %", va="center", fontsize=size)
        axes.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=size)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_xlabel("share of wall time; beside each bar its goodput")
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5))
        return figure
