"""Figures that a paper could print: depth by shade, formulation by marker and line, intervals as bands.

matplotlib is imported inside the functions, always through its object interface (Agg): nothing global changes.
The same tables give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scaling.correlation import Correlation
from scaling.elo import EloTable
from scaling.laws import PowerLaw
from scaling.study import levels, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
SIZE = (5.4, 4.0)
TALL = (5.4, 6.2)
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "scaling",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


MOST_KINDS = len(HUES)
"""So many formulations at most are told apart in a figure of lines; the others are grey."""
OTHER = "#cccccc"


@dataclass(frozen=True)
class Look:
    """How runs are drawn, the same in every figure of a report.

    Formulations have a marker and a line each. Depths have a shade; where all runs have one depth, formulations have a
    colour instead. Of more than MOST_KINDS formulations the ``others`` are grey, without a place in the legend.
    """

    depths: tuple[float, ...]
    formulations: tuple[str, ...]
    others: int = 0

    @classmethod
    def of(cls, runs: pd.DataFrame, results: pd.DataFrame | None = None) -> Look:
        """The look of a table of runs (columns depth, formulation).

        Of too many formulations those with the lowest mean loss in ``results`` are told apart, and the baseline.
        """
        kinds = sorted(set(runs["formulation"]))
        depths = tuple(sorted(set(runs["depth"])))
        if len(kinds) <= MOST_KINDS:
            return cls(depths, tuple(kinds))
        order = kinds
        if results is not None and len(results):
            mean = results.assign(loss=values(results, "val_loss")).groupby("formulation")["loss"].mean().sort_values()
            order = [*mean.index, *(kind for kind in kinds if kind not in mean.index)]
        first = baseline(kinds)
        shown = [first, *(kind for kind in order if kind != first)][:MOST_KINDS]
        return cls(depths, tuple(kind for kind in kinds if kind in shown), len(kinds) - len(shown))

    @property
    def told_apart(self) -> str:
        """What a caption says of the formulations that are grey, beginning with a blank; nothing where none is."""
        if not self.others:
            return ""
        return f"; {len(self.formulations)} formulations of lowest loss, the baseline among them; {self.others} in grey"

    def shade(self, depth: float) -> tuple[float, float, float, float]:
        """Colour of a depth: viridis without its pale end, darkest for the deepest."""
        from matplotlib import colormaps

        place = self.depths.index(depth) / max(len(self.depths) - 1, 1)
        return colormaps["viridis"](0.78 * (1 - place))

    def colour(self, depth: float, formulation: str) -> Any:
        """Colour of a run: its depth's, its formulation's where there is one depth, or grey."""
        if formulation not in self.formulations:
            return OTHER
        return self.hue(formulation) if self._by_kind else self.shade(depth)

    def hue(self, formulation: str) -> str:
        """Colour of a formulation, for figures in which depth is not told apart."""
        return HUES[self.formulations.index(formulation) % len(HUES)] if formulation in self.formulations else OTHER

    def marker(self, formulation: str) -> str:
        """Marker of a formulation."""
        if formulation not in self.formulations:
            return "."
        return MARKERS[self.formulations.index(formulation) % len(MARKERS)]

    def line(self, formulation: str) -> Any:
        """Line style of a formulation."""
        if formulation not in self.formulations:
            return "-"
        return LINES[self.formulations.index(formulation) % len(LINES)]

    def order(self, formulation: str) -> int:
        """Where it is drawn: grey behind colours."""
        return 3 if formulation in self.formulations else 2

    def legend(self, figure: Figure, extra: Sequence[Any] = (), *, others: bool = True) -> None:
        """One legend over the axes: a shade a depth, a marker and line a formulation."""
        from matplotlib.lines import Line2D

        shades = [Line2D([], [], color=self.shade(d), lw=4, label=f"depth {d:g}") for d in self.depths]
        kinds = [
            Line2D(
                [],
                [],
                color=self.hue(f) if self._by_kind else "#444444",
                marker=self.marker(f),
                linestyle=self.line(f),
                label=f,
            )
            for f in self.formulations
        ]
        grey = [Line2D([], [], color=OTHER, label=f"{self.others} others")] if self.others and others else []
        legend_above(figure, [*([] if self._by_kind else shades), *kinds, *grey, *extra])

    @property
    def _by_kind(self) -> bool:
        return len(self.depths) == 1 and len(self.formulations) > 1


def baseline(formulations: Sequence[str]) -> str:
    """What formulations are compared with: plain rectified flow, or else the first by name."""
    return "rf" if "rf" in formulations else sorted(formulations)[0]


@contextmanager
def drawing(size: tuple[float, float] = SIZE) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one axes, under this module's style; the caller's matplotlib settings are as before afterwards."""
    with panels(1, 1, size) as (figure, grid):
        yield figure, grid[0, 0]


@contextmanager
def panels(rows: int, columns: int, size: tuple[float, float]) -> Iterator[tuple[Figure, np.ndarray]]:
    """The same with ``rows`` × ``columns`` axes, given as an object array of that shape."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, folder: Path, name: str) -> bytes:
    """Write ``folder/name.png`` and ``.pdf`` without dates inside; return the PNG's bytes."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
        figure.set_layout_engine("none")  # the PNG's layout serves the PDF too
        empty = {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None}
        figure.savefig(folder / f"{name}.pdf", format="pdf", metadata=empty)
    (folder / f"{name}.png").write_bytes(buffer.getvalue())
    return buffer.getvalue()


def legend_above(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend above the axes, in as many columns as its labels leave room for."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), 4, int(84 / (longest + 8))))
    figure.legend(handles=list(handles), loc="outside upper center", ncols=columns)


def loss_axis(axis: Any) -> None:
    """Plain ticks on a logarithmic loss axis, which rarely spans a decade."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
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
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _scientific(value)))


def _scientific(value: float) -> str:
    exponent = int(np.floor(np.log10(value) + 1e-9))
    mantissa = value / 10**exponent
    return rf"$10^{{{exponent}}}$" if abs(mantissa - 1) < 1e-6 else rf"${mantissa:.0f}\cdot10^{{{exponent}}}$"


def loss_curves(curves: pd.DataFrame, look: Look, x: str) -> Figure:
    """Validation loss against ``x``, ``step`` or ``train_flops``, a line a run."""
    with drawing() as (figure, axes):
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
            )
        axes.set_yscale("log")
        loss_axis(axes.yaxis)
        axes.set_ylabel("validation loss (EMA weights, mean of levels)")
        if x == "step":
            axes.set_xlabel("training steps")
        else:
            flops_axis(axes)
        look.legend(figure)
        return figure


def law_figure(
    curves: pd.DataFrame,
    fits: Mapping[str, tuple[PowerLaw, pd.DataFrame]],
    look: Look,
    pooled_name: str,
) -> Figure:
    """All validations in grey, each formulation's frontier as points, its law as a line with its interval as a band.

    ``pooled_name`` is what the law of all formulations together is called; of more than the look tells apart, the
    others are left out.
    """
    from matplotlib.lines import Line2D

    with drawing() as (figure, axes):
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
                points = (values(rows, "train_flops"), values(rows, "val_loss"))
                axes.scatter(*points, s=22, color=hue, marker=look.marker(kind), zorder=4, lw=0)
            axes.plot(grid, law.predict(grid), color=hue, linestyle=line, lw=1.4, zorder=3)
            handles.append(
                Line2D(
                    [],
                    [],
                    color=hue,
                    linestyle=line,
                    marker=None if pooled else look.marker(kind),
                    label=f"{kind}: {law.equation()}",
                )
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
        figure.legend(handles=handles, loc="outside upper left", ncols=1)
        return figure


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
        axes.set_ylabel(f"loss divided by {baseline}'s at the same depth")
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
    """Ratings with intervals, a row a run, a colour a judge; the first table sets the order."""
    from matplotlib.lines import Line2D

    names = [rating.name for rating in next(iter(tables.values())).ratings]
    row = 0.45 if len(names) <= 16 else 0.24
    with drawing((SIZE[0], max(2.6, row * len(names) + 1.4))) as (figure, axes):
        handles = []
        for index, (judge, table) in enumerate(tables.items()):
            hue, marker = HUES[(index - 1) % len(HUES)] if index else "#222222", MARKERS[index % len(MARKERS)]
            for rating in table.ratings:
                place = names.index(rating.name) + 0.32 * (2 * (index + 0.5) / len(tables) - 1)
                axes.plot([rating.low, rating.high], [place, place], color=hue, lw=1.5)
                axes.plot(rating.elo, place, marker=marker, color=hue, lw=0)
            handles.append(Line2D([], [], color=hue, marker=marker, lw=1.5, label=judge))
        axes.axvline(1000, color="#888888", lw=0.8)
        axes.set_yticks(range(len(names)), names, fontsize=9 if len(names) <= 16 else 7)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_xlabel("Elo (the runs' mean is 1000)")
        legend_above(figure, handles)
        return figure


def correlation_figure(points: pd.DataFrame, found: Correlation, look: Look, label: str) -> Figure:
    """Validation loss against a score, a point a run. ``points``: depth, formulation, x, y[, low, high]."""
    with drawing() as (figure, axes):
        for _, run in points.iterrows():
            colour, order = look.colour(run["depth"], run["formulation"]), look.order(run["formulation"])
            if "low" in points.columns and np.isfinite(run["low"]):
                axes.plot([run["x"], run["x"]], [run["low"], run["high"]], color=colour, lw=1, alpha=0.7, zorder=order)
            marker = look.marker(run["formulation"])
            axes.plot(run["x"], run["y"], marker=marker, color=colour, markersize=6, lw=0, zorder=order)
        axes.set_xlabel("validation loss (EMA weights, mean of levels)")
        axes.set_ylabel(label)
        axes.margins(x=0.08)
        pearson = found.pearson
        text = f"Pearson r = {pearson.r:.2f} [{pearson.low:.2f}, {pearson.high:.2f}], n = {found.rows}"
        axes.set_title(text.replace("-", "−"), fontsize=9)
        look.legend(figure)
        return figure
