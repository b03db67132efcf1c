"""The report's part on architectures, where a study has several: SD3's figure 4 with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scaling.errors import TableError
from scaling.findings import listed
from scaling.group_tables import compared_figure, compared_text
from scaling.groups import Place, compare, curves
from scaling.look import save
from scaling.page import Section
from scaling.study import ARCHITECTURE, StudyTables, values

BASELINE = "mmdit"
SCORES = ("val_loss", "geneval_graded")
LEVEL = 0.05


def architecture_section(tables: StudyTables, folder: Path) -> list[Section]:
    """Loss and graded score of each architecture against the MMDiT's, seed by seed; none where there is one."""
    results = tables.results
    if ARCHITECTURE not in results.columns or results[ARCHITECTURE].nunique() < 2:
        return []
    part = Section("Architectures")
    names = sorted(set(results[ARCHITECTURE]))
    baseline = BASELINE if BASELINE in names else names[0]
    scores = [score for score in SCORES if values(results, score).notna().all()]
    try:
        found = {score: compare(results, ARCHITECTURE, score, baseline) for score in scores}
        way = curves(tables.curves, ARCHITECTURE, "train_flops", scores[0])
    except (TableError, IndexError) as error:
        part.missing.append(f"no comparison seed by seed: {error}")
        return [part]
    part.findings += [comparison_finding(places, score, baseline) for score, places in found.items()]
    order = [place.name for place in found[scores[0]]]
    png = save(compared_figure(results, ARCHITECTURE, order, scores, way, "train_flops"), folder, "architectures")
    part.broad.append((png, "Thin lines are runs, bands and bars 95 % of their mean; one point a finished run"))
    table = compared_text(results, ARCHITECTURE, found, baseline, ("params", "steps", "train_flops"))
    part.tables.append((table, f"Differences to {baseline} of the same seed, Student's t; p by Holm's rule"))
    return [part]


def comparison_finding(places: Sequence[Place], score: str, baseline: str) -> str:
    """Which groups differ from the baseline at a family-wise level of 5 %, and how far the others may."""
    others = [place for place in places if place.name != baseline]
    shown = [place for place in others if place.p < LEVEL]
    texts = [
        f"{place.name} {'above' if place.difference > 0 else 'below'} it by {abs(place.difference):.2g}"
        for place in shown
    ]
    text = f"{score} against {baseline}'s: " + ("; ".join(texts) if texts else "no difference is shown")
    left = [place for place in others if place.p >= LEVEL]
    if left:
        widest = max(max(abs(place.low), abs(place.high)) for place in left)
        whose = f" for {listed([place.name for place in left])}" if shown else ""
        text += f"{'; none is shown' if shown else ''}{whose}, which may still be up to {widest:.2g}"
    return text + "."
