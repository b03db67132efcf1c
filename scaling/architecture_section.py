"""The report's part on architectures, where a study has several: SD3's figure 4 with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scaling.errors import TableError
from scaling.findings import listed
from scaling.group_tables import compared_figure, compared_text
from scaling.groups import Place, compare, curves
from scaling.look import save
from scaling.page import Section
from scaling.study import ARCHITECTURE, FIRST_ARCHITECTURE, StudyTables, values

CURVE = "val_loss"
SCORES = (CURVE, "geneval_graded")
LEVEL = 0.05


def architecture_section(tables: StudyTables, folder: Path) -> list[Section]:
    """Loss and graded score of each architecture against the MMDiT's (else the first's), seed by seed.

    None where there is one architecture; a section that says why where runs differ in more than it and their seed.
    """
    results = tables.results
    if ARCHITECTURE not in results.columns or results[ARCHITECTURE].nunique() < 2:
        return []
    part = Section("Architectures")
    names = sorted(set(results[ARCHITECTURE]))
    baseline = FIRST_ARCHITECTURE if FIRST_ARCHITECTURE in names else names[0]
    scores = [score for score in SCORES if values(results, score).notna().all()]
    try:
        found = {score: compare(results, ARCHITECTURE, score, baseline) for score in scores}
    except TableError as error:
        part.missing.append(f"no comparison seed by seed: {error}")
        return [part]
    if not scores:
        part.missing.append(f"no comparison: neither {' nor '.join(SCORES)} is there for every run")
        return [part]
    way = {}
    if scores[0] == CURVE:
        try:
            way = curves(tables.curves, ARCHITECTURE, "train_flops", CURVE)
        except TableError as error:
            part.missing.append(f"no curves: {error}")
    part.findings += [comparison_finding(places, score, baseline) for score, places in found.items()]
    order = [place.name for place in found[scores[0]]]
    png = save(compared_figure(results, ARCHITECTURE, order, scores, way, "train_flops"), folder, "architectures")
    part.broad.append((png, "Thin lines are runs, bands and bars 95 % of their mean; one point a finished run"))
    table = compared_text(results, ARCHITECTURE, found, baseline)
    caption = f"Differences to {baseline} of the same seed; Student's t, each interval alone; p by Holm's rule a score"
    part.tables.append((table, caption))
    return [part]


def comparison_finding(places: Sequence[Place], score: str, baseline: str) -> str:
    """Which groups differ from the baseline, at 5 % for all of a score together, and how far the others may."""
    others = [place for place in places if place.name != baseline]
    shown = [place for place in others if place.p < LEVEL]
    texts = [
        f"{place.name} {'above' if place.difference > 0 else 'below'} it by {abs(place.difference):.2g}"
        for place in shown
    ]
    text = f"{score} against {baseline}'s: " + ("; ".join(texts) if texts else "no difference is shown")
    left = [place for place in others if not place.p < LEVEL]
    if left:
        whose = f"; none is shown for {listed([place.name for place in left])}" if shown else ""
        reach = [max(abs(place.low), abs(place.high)) for place in left if np.isfinite(place.low)]
        text += whose + (f", which may still be up to {max(reach):.2g}" if reach else "")
    return text + "."
