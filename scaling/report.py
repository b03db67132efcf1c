"""A study's tables -> its figures and one self-contained report.html."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from scaling import loss_sections, sections
from scaling.analysis import DRAWS, analyse
from scaling.architecture_section import architecture_section
from scaling.correlation_section import correlation_section
from scaling.goodput_section import goodput_section
from scaling.look import Look
from scaling.page import Section, render
from scaling.rank_sections import efficiency_section, rank_section
from scaling.removal_section import removal_section
from scaling.study import load_study


def write_report(
    study_dir: Path | str, *, title: str, notes: Sequence[str] = (), draws: int = DRAWS, seed: int = 0
) -> Path:
    """Read the tables in ``study_dir``, write ``figures/*.png`` and ``.pdf`` and ``report.html``; return its path.

    ``notes`` are sentences for "How these numbers were made" that only the caller knows (machine, hours, command).
    A part whose table is missing or too thin says so instead of failing. The same tables give the same bytes.

    Raises TableError where the study has no runs at all or a table is malformed.
    """
    folder = Path(study_dir)
    tables = load_study(folder)
    analysis = analyse(tables, draws=draws, seed=seed)
    look = Look.of(tables.runs, tables.results)
    folder_of_figures = folder / "figures"
    runs = sections.runs_section(tables, analysis)
    results = [
        loss_sections.loss_section(tables, look, folder_of_figures),
        *architecture_section(tables, folder_of_figures),
        loss_sections.law_section(tables, analysis, look, folder_of_figures),
        loss_sections.level_section(tables, look, folder_of_figures),
        sections.task_section(tables, look, folder_of_figures),
        *rank_section(tables, folder_of_figures, draws=draws, seed=seed),
        *efficiency_section(tables, folder_of_figures, draws=draws, seed=seed),
        *removal_section(tables.without_battles, tables.without, tables.without_samples, draws=draws, seed=seed),
        sections.elo_section(tables, analysis, folder_of_figures),
        correlation_section(analysis.correlations, analysis.uncorrelated, look, folder_of_figures),
    ]
    short = Section("In short", [text for part in results for text in part.findings[:1]])
    others = sections.others_section(tables, folder_of_figures)
    method = sections.method_section(tables, analysis, notes, draws)
    time = goodput_section(folder / "goodput.csv", folder_of_figures)
    page = [short, runs, *results, sections.samples_section(tables), *others, *time, method]
    count = len(tables.runs)
    subtitle = f"{count} run{'s' * (count != 1)} on {tables.dataset}" + (
        f", {len(set(tables.others.get('run_id', [])))} on other data sets" if len(tables.others) else ""
    )
    path = folder / "report.html"
    partial = path.with_suffix(".html.partial")
    partial.write_text(render(title, subtitle, page), encoding="utf-8")
    os.replace(partial, path)
    return path
