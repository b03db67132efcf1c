"""How figures look: depth by shade, formulation by marker, line or colour; how they are begun, saved and explained.

matplotlib is imported inside the functions, always through its object interface (Agg): nothing global changes.
The same figure gives the same bytes. Text is shown as it stands, whatever its letters; only what
``show_formulas`` is given is mathematics.
"""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scaling.letters import boxes_told, families, in_own_font, without_mathematics
from scaling.study import FIRST_ARCHITECTURE, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
SIGNS = dict(zip(MARKERS, "●■▲◆▼✚✖★◀▶", strict=True))
"""Of MARKERS, as letters."""
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
    "text.parse_math": False,  # names come from tables: a dollar in one is a dollar
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

MOST_KINDS = len(HUES)
"""So many formulations at most are told apart in a figure of lines; the others are grey."""
OTHER = "#cccccc"
PLAIN = "rf"
"""What the paper compares every formulation with."""


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
        return self._own(HUES, formulation, OTHER)

    def marker(self, formulation: str) -> str:
        """Marker of a formulation."""
        return self._own(MARKERS, formulation, ".")

    def line(self, formulation: str) -> Any:
        """Line style of a formulation."""
        return self._own(LINES, formulation, "-")

    def _own(self, looks: Sequence[Any], formulation: str, other: Any) -> Any:
        """The formulation's own of ``looks``, by its place; ``other`` where it is one of the others."""
        if formulation not in self.formulations:
            return other
        return looks[self.formulations.index(formulation) % len(looks)]

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

    def entries(self) -> list[tuple[str, str, str]]:
        """The legend as (colour, sign, text) for a page: a shade a depth, a sign a formulation."""
        from matplotlib.colors import to_hex

        shades = [] if self._by_kind else [(to_hex(self.shade(d)), "■", f"depth {d:g}") for d in self.depths]
        kinds = [(self.hue(f) if self._by_kind else "", SIGNS[self.marker(f)], f) for f in self.formulations]
        return [*shades, *kinds, *([(OTHER, "●", f"{self.others} others")] if self.others else [])]

    @property
    def _by_kind(self) -> bool:
        return len(self.depths) == 1 and len(self.formulations) > 1


def baseline(formulations: Sequence[str]) -> str:
    """What formulations are compared with: plain rectified flow, of an MMDiT where several architectures are told
    apart; else the first of an MMDiT, else the first by name."""
    plain = (PLAIN, f"{FIRST_ARCHITECTURE} {PLAIN}")
    return min(formulations, key=lambda name: (name not in plain, not name.startswith(f"{FIRST_ARCHITECTURE} "), name))


def run_mark(name: str) -> str:
    """What a run's points and lines are called within a figure (``gid``, an id in SVG): letters whatever its name."""
    return f"run-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


@contextmanager
def drawing(size: tuple[float, float] = SIZE) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one axes, under this module's style; the caller's matplotlib settings are as before afterwards."""
    with panels(1, 1, size) as (figure, grid):
        yield figure, grid[0, 0]


@contextmanager
def panels(rows: int, columns: int, size: tuple[float, float]) -> Iterator[tuple[Figure, np.ndarray]]:
    """The same with ``rows`` × ``columns`` axes, given as an object array of that shape."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False)


@contextmanager
def _style() -> Iterator[None]:
    """This module's style, whatever the caller's is, with what fonts there are for other letters."""
    import matplotlib

    with matplotlib.rc_context(), boxes_told():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        matplotlib.rcParams["font.family"] = families()
        yield


def save(figure: Figure, folder: Path, name: str) -> bytes:
    """Write ``folder/name.png`` and ``.pdf`` without dates inside; return the PNG's bytes."""
    from scaling.log_ticks import spell_out

    folder.mkdir(parents=True, exist_ok=True)
    spell_out(figure)
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
        figure.set_layout_engine("none")  # the PNG's layout serves the PDF too
        empty = {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None}
        figure.savefig(folder / f"{name}.pdf", format="pdf", metadata=empty)
    (folder / f"{name}.png").write_bytes(buffer.getvalue())
    return buffer.getvalue()


def save_svg(figure: Figure) -> str:
    """The figure as an SVG element that scales with the page: no declaration, no size, no date; ids as ``gid``."""
    from scaling.log_ticks import spell_out

    spell_out(figure)
    buffer = io.StringIO()
    with _style():
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return re.sub(
        r' (?:width|height|xmlns(?::xlink)?|version)="[^"]*"', "", text[text.index("<svg") :], count=5
    ).strip()


def legend_above(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend above the axes, in as many columns as its labels leave room for."""
    labels = [str(handle.get_label()) for handle in handles]
    columns = max(1, min(len(handles), 4, int(84 / (max(map(len, labels)) + 8))))
    # Of a label that begins with an underscore matplotlib thinks that it is to be hidden.
    shown = [f" {label}" if label.startswith("_") else label for label in labels]
    figure.legend(handles=list(handles), labels=shown, loc="outside upper center", ncols=columns)


def beside(text: str) -> str:
    """A long label for the side of a figure of SIZE, in lines that fit it."""
    return textwrap.fill(text, 42)


def formula(name: str, mathematics: str) -> str:
    """``name: mathematics`` (``$…$``) for ``show_formulas``, nothing of the name read as mathematics."""
    plain = name.replace("$", r"\$")
    return f"{plain}: {mathematics}"


def show_formulas(texts: Sequence[Text]) -> None:
    """Read what stands between dollars in these texts as mathematics, where its font has their other letters too."""
    for text in texts:
        if in_own_font(text.get_text()):
            text.set_parse_math(True)
        else:
            text.set_text(without_mathematics(text.get_text()))
