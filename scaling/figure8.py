"""The SD3 paper's Figure 8 from a study's runs: loss against steps and compute, and against scores of images."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.analysis import POOLED, Analysis
from scaling.correlation_figures import draw_correlation
from scaling.figures import draw_laws, draw_loss_curves
from scaling.interactive import Panel
from scaling.look import Look, drawing, panels, save, save_svg, show_formulas
from scaling.page import Section
from scaling.paper_tables import strict_tells
from scaling.score_correlations import Score
from scaling.study import StudyTables, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (12.6, 7.4)
PANEL_SIZE = (4.2, 3.4)
MOST_LAWS = 2
"""Of more laws, only that of all formulations together stands in the legend."""
BELOW = {
    "GenEval": ("GenEval proxy", "graded score"),
    "Elo": ("Elo",),
    "CompBench": ("CompBench proxy",),
}
"""Panels of the lower row, and the score that each shows: the first that there is."""
WHERE_FROM = {
    "GenEval": "no scores of three runs or more in geneval.csv",
    "Elo": "no battles between three runs or more in battles.csv",
    "CompBench": "no column compbench in results.csv (evaluation.compbench_prompts)",
}


@dataclass(frozen=True)
class Drawn:
    """A panel: how it is drawn, or ``why`` it can't be."""

    name: str
    draw: Callable[[Axes], None] | None
    why: str = ""
    curve: bool = False


def contents(tables: StudyTables, analysis: Analysis, look: Look) -> list[Drawn]:
    """The six panels, the upper row first."""
    curves = tables.curves.assign(val_loss=values(tables.curves, "val_loss")).dropna(subset=["val_loss"])
    found = []
    for x, name in (("step", "Loss against steps"), ("train_flops", "Loss against FLOPs")):
        draw = None if curves.empty else _curves(tables, look, x)
        found.append(Drawn(name, draw, "no validations in curves.csv", curve=True))
    found.append(Drawn("Law over compute", _law(tables, analysis, look) if analysis.fits else None, _no_law(analysis)))
    for name, scores in BELOW.items():
        if name == "GenEval" and len(tables.geneval) and not strict_tells(tables.geneval):
            scores = scores[::-1]
        known = [analysis.correlations[score] for score in scores if score in analysis.correlations]
        reasons = [analysis.uncorrelated[score] for score in scores if score in analysis.uncorrelated]
        draw = _score(known[0], look) if known else None
        found.append(Drawn(f"Loss against {name}", draw, "; ".join(reasons) or WHERE_FROM[name]))
    return found


def figure8(drawn: list[Drawn], look: Look) -> Figure:
    """All six as one figure; a panel without data says what is missing."""
    with panels(2, 3, SIZE) as (figure, grid):
        for axes, panel in zip(grid.flat, drawn, strict=True):
            if panel.draw is not None:
                panel.draw(axes)
                _short(axes)
            else:
                _say(axes, panel)
        look.legend(figure)
        return figure


def figure8_section(tables: StudyTables, analysis: Analysis, look: Look, folder: Path) -> Section:
    """``figure8.png`` and ``.pdf``, and the panels one by one for the page."""
    part = Section("Loss, compute and quality")
    drawn = contents(tables, analysis, look)
    save(figure8(drawn, look), folder, "figure8")
    for panel in drawn:
        if panel.draw is None:
            part.panels.append(Panel(panel.name, "", panel.why))
            continue
        with drawing(PANEL_SIZE) as (figure, axes):
            panel.draw(axes)
            _short(axes)
            part.panels.append(Panel(panel.name, save_svg(figure), curve=panel.curve))
    part.legend = look.entries()
    part.notes.append(
        "As Figure 8 of Esser et al. 2024: above, validation loss (EMA weights, mean of levels) against training steps "
        "and training compute, and the law of its frontier with a 95 % band; below, against scores of images, with "
        f"Pearson's r and its 95 % interval{look.told_apart}. All six in one: figures/figure8.png and .pdf."
    )
    return part


def _curves(tables: StudyTables, look: Look, x: str) -> Callable[[Axes], None]:
    return lambda axes: draw_loss_curves(axes, tables.curves, look, x)


def _law(tables: StudyTables, analysis: Analysis, look: Look) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        handles = draw_laws(axes, tables.curves, analysis.fits, look, POOLED)[1:]
        if len(handles) > MOST_LAWS + 1:
            handles = [handle for handle in handles if str(handle.get_label()).startswith(POOLED)]
        if handles:
            style: Any = {"fontsize": 7, "frameon": True, "framealpha": 0.85, "edgecolor": "none"}
            show_formulas(axes.legend(handles=handles, loc="lower left", **style).get_texts())

    return draw


def _score(score: Score, look: Look) -> Callable[[Axes], None]:
    return lambda axes: draw_correlation(axes, score, look)


def _short(axes: Axes) -> None:
    """Labels that fit a panel; the note below says the rest."""
    for read, write in ((axes.get_xlabel, axes.set_xlabel), (axes.get_ylabel, axes.set_ylabel)):
        write(read().replace(" (EMA weights, mean of levels)", "").replace(", per-stream count", ""))


def _no_law(analysis: Analysis) -> str:
    return analysis.why.get("law", "a law needs at least three points on the frontier")


def _say(axes: Axes, panel: Drawn) -> None:
    axes.set_axis_off()
    text = "\n".join(textwrap.wrap(f"{panel.name}: {panel.why}", 38))
    axes.text(0.5, 0.5, text, ha="center", va="center", color="#666666", transform=axes.transAxes)
