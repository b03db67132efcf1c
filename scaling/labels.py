"""Names along a Pareto front in a figure, none over another, over a point or over the front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT = 6.5
GAP = 3.0
"""Between a name and its point or the next name, in points (1/72 inch)."""


def label_front(axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> int:
    """Write ``names`` at the points ``x, y [n]`` of a first front, x to be low and y to be high.

    Nothing lies to the upper left of such a front. A name ends at its point and stands above it, and above the names
    of the points farther down; where that lifts it, a thin line goes down from its end to its point. So no name and
    no line crosses another, the front, or a point of another front. The figure's layout must be final.

    Returns how many names found no room within the axes, and are left out.
    """
    from matplotlib.text import Text

    figure = axes.figure
    scale = figure.dpi / 72
    at = axes.transData.transform(np.column_stack([x, y]))
    frame = axes.get_window_extent()
    placed: list[tuple[float, float, float]] = []  # left, right and top of each name, in pixels
    lost = 0
    for index in map(int, np.lexsort((at[:, 0], at[:, 1]))):
        size = Text(0, 0, names[index], fontsize=FONT, figure=figure).get_window_extent()
        right = max(at[index, 0] - GAP * scale, frame.x0 + size.width)  # names may not leave the axes at the left
        left = right - size.width
        under = [top for begin, end, top in placed if begin < right + GAP * scale and left < end + GAP * scale]
        bottom = max([at[index, 1] + GAP * scale, *under])
        top = bottom + size.height
        if top > frame.y1 or right > frame.x1:
            lost += 1
            continue
        placed.append((left, max(right, at[index, 0]), top))
        lifted = bottom > at[index, 1] + 1.5 * GAP * scale
        axes.annotate(
            names[index],
            xy=(float(x[index]), float(y[index])),
            xytext=((right - at[index, 0]) / scale, (bottom - at[index, 1]) / scale),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=FONT,
            zorder=6,
            in_layout=False,
        )
        if lifted:
            axes.annotate(
                "",
                xy=(float(x[index]), float(y[index])),
                xytext=(
                    min(right, at[index, 0]) / scale - at[index, 0] / scale,
                    (bottom + size.height / 2 - at[index, 1]) / scale,
                ),
                textcoords="offset points",
                zorder=2,
                in_layout=False,
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "#888888", "shrinkA": 0, "shrinkB": 2},
            )
    return lost
