"""The coordinate check: how the size of activations, and of their change in training, goes with a model's size.

Yang et al. 2022 (Tensor Programs V, arXiv 2203.03466, appendix D.1): where a learning rate serves every width, no
activation's coordinates grow or vanish with the width after a few steps. A table has a row a model, seed, step and
place, with the root mean square over all coordinates of what is there (``activation``) and of how far it is from where
it was at step 0 (``change``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scaling.errors import TableError
from scaling.groups import interval
from scaling.look import HUES, legend_above, panels
from scaling.tables import labels, numbers, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTITIES = ("activation", "change")


@dataclass(frozen=True)
class Slope:
    """Of the logarithm of an activation's size over that of the model's size: the mean over seeds of their own
    least-squares lines. 0 is flat, 1 proportional. ``low`` and ``high`` are Student's t interval; NaN with one seed."""

    kind: str
    place: str
    quantity: str
    slope: float
    low: float
    high: float
    seeds: int


def slopes(table: pd.DataFrame, x: str, *, by: str = "parametrization", level: float = 0.95) -> list[Slope]:
    """Of each ``by`` and place of ``table`` at its last step (columns ``by``, place, step, seed, ``x``, QUANTITIES).

    Places where nothing has moved yet are left out.

    Raises TableError for an absent column, a number that is none, fewer than 2 values of ``x``, or values of ``x`` that
    a seed lacks.
    """
    clean = _clean(table, x, by)
    last = clean[clean["step"] == clean["step"].max()]
    if last["x"].nunique() < 2:
        raise TableError(f"{x}={last['x'].iloc[0]:g}: the only one in the table; expected 2 or more")
    found = []
    for (kind, place), part in last.groupby(["kind", "place"], sort=False):
        for quantity in QUANTITIES:
            if (part[quantity] <= 0).any():
                continue
            wide = part.pivot_table(index="x", columns="seed", values=quantity)
            if wide.isna().any(axis=None):
                raise TableError(f"{by}={str(kind)!r}: its seeds have different {x}; expected the same in each")
            own = np.polyfit(np.log(wide.index.to_numpy(float)), np.log(wide.to_numpy()), 1)[0]
            low, high = interval(own, level) if len(own) > 1 else (np.nan, np.nan)
            found.append(Slope(str(kind), str(place), quantity, float(own.mean()), low, high, len(own)))
    return found


def coordinate_figure(table: pd.DataFrame, x: str, places: Sequence[str], *, by: str = "parametrization") -> Figure:
    """A column a place; a row a quantity and kind, kinds of a quantity with the same axes. A line a step, the later the
    darker: the geometric mean over seeds, which are points."""
    from matplotlib.lines import Line2D

    clean = _clean(table, x, by)
    missing = [place for place in places if place not in set(clean["place"])]
    if missing:
        raise TableError(f"place={missing[0]!r}: not in the table; it has {', '.join(dict.fromkeys(clean['place']))}")
    kinds, steps = list(dict.fromkeys(clean["kind"])), sorted(clean["step"].unique())
    rows = [(quantity, kind) for quantity in QUANTITIES for kind in kinds]
    shade = {step: 0.25 + 0.75 * i / max(len(steps) - 1, 1) for i, step in enumerate(steps)}
    hue = {kind: HUES[i % len(HUES)] for i, kind in enumerate(kinds)}
    with panels(len(rows), len(places), (1.2 + 1.75 * len(places), 0.8 + 1.5 * len(rows))) as (drawn, grid):
        for row, (quantity, kind) in enumerate(rows):
            for column, place in enumerate(places):
                axes: Axes = grid[row, column]
                own = clean[(clean["kind"] == kind) & (clean["place"] == place) & (clean[quantity] > 0)]
                for step, part in own.groupby("step"):
                    axes.plot(part["x"], part[quantity], ".", color=hue[kind], alpha=0.4 * shade[step], ms=3)
                    middle = np.exp(np.log(part[quantity]).groupby(part["x"]).mean())
                    axes.plot(middle.index, middle, color=hue[kind], alpha=shade[step], lw=1.3)
                axes.set_xscale("log", base=2)
                axes.set_yscale("log", base=2)
                axes.set_ylim(*_limits(clean[clean["place"] == place][quantity]))
                axes.tick_params(labelsize=7)
                if row == 0:
                    axes.set_title(place, fontsize=9)
                if row == len(rows) - 1:
                    axes.set_xlabel(x)
                if column == 0:
                    what = "rms" if quantity == "activation" else "rms of change"
                    axes.set_ylabel(f"{kind}\n{what}")
        legend_above(drawn, [Line2D([], [], color="#333333", alpha=shade[s], label=f"step {s:g}") for s in steps])
        return drawn


def _clean(table: pd.DataFrame, x: str, by: str) -> pd.DataFrame:
    require(table, [by, "place", "step", "seed", x, *QUANTITIES])
    columns = {"kind": labels(table, by), "place": labels(table, "place"), "seed": labels(table, "seed")}
    columns |= {"step": numbers(table, "step"), "x": numbers(table, x, positive=True)}
    return pd.DataFrame({**columns, **{name: numbers(table, name) for name in QUANTITIES}})


def _limits(values: pd.Series) -> tuple[float, float]:
    """Of a logarithmic axis, at least four octaves: what is flat shall look so."""
    seen = values[values > 0]
    low, high = (np.log2(seen.min()), np.log2(seen.max())) if len(seen) else (-1.0, 1.0)
    reach = max((high - low) / 2 + 0.3, 2.0)
    return 2 ** ((low + high) / 2 - reach), 2 ** ((low + high) / 2 + reach)
