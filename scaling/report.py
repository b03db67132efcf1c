"""A study's tables -> its figures, the paper's tables, and one self-contained report.html."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from scaling import loss_sections, sections
from scaling.analysis import DRAWS, analyse
from scaling.architecture_section import architecture_section
from scaling.correlation_section import correlation_section
from scaling.figure8 import figure8_section
from scaling.first_screen import FirstScreen, first_screen
from scaling.goodput_section import goodput_section
from scaling.interactive import run_facts
from scaling.look import Look
from scaling.next_steps import Names
from scaling.page import Lead, Section, render
from scaling.paper_tables import PaperTable, table_1, table_2, table_5, table_6, tables_section, write_tables
from scaling.prediction_section import prediction_section
from scaling.rank_sections import Measured, Ranked, efficiency_section, measured, rank_section, ranked
from scaling.removal_section import removal_section
from scaling.study import StudyTables, load_study


def write_report(
    study_dir: Path | str,
    *,
    title: str,
    study: str = "STUDY",
    options: str = "",
    file: str = "",
    own_seeds: bool = False,
    missing: Sequence[str] = (),
    notes: Sequence[str] = (),
    draws: int = DRAWS,
    seed: int = 0,
) -> Path:
    """Read the tables in ``study_dir``, write ``figures/*.png`` and ``.pdf``, ``tables/*.csv`` and ``.tex``, and
    ``report.html``; return its path.

    ``study`` is what commands call it, ``options`` what follows it there; ``file`` and ``own_seeds`` as in ``Names``.
    ``missing`` are its runs that are in no table, with what became of them. ``notes`` are sentences for "How these
    numbers were made" that only the caller knows (machine, hours, command). A part whose table is missing or too thin
    says so instead of failing. The same tables give the same bytes.

    Raises TableError where the study has no runs at all or a table is malformed.
    """
    folder = Path(study_dir)
    tables = load_study(folder)
    analysis = analyse(tables, draws=draws, seed=seed)
    ranking, efficiency = ranked(tables, draws=draws, seed=seed), measured(tables, draws=draws, seed=seed)
    look = Look.of(tables.runs, tables.results)
    figures = folder / "figures"
    printed = _paper_tables(tables, ranking, efficiency)
    if printed:
        write_tables(printed, folder / "tables")
    results = [
        *prediction_section(folder, tables.results, figures),
        loss_sections.loss_section(tables, look, figures),
        *architecture_section(tables, figures),
        loss_sections.law_section(tables, analysis, look, figures),
        loss_sections.level_section(tables, look, figures),
        sections.task_section(tables, look, figures),
        *rank_section(tables, ranking, figures, seed=seed),
        *efficiency_section(efficiency, figures),
        *removal_section(tables.without_battles, tables.without, tables.without_samples, draws=draws, seed=seed),
        sections.elo_section(tables, analysis, figures),
        correlation_section(analysis.correlations, analysis.uncorrelated, look, figures),
    ]
    page = [
        figure8_section(tables, analysis, look, figures),
        *tables_section(printed),
        Section("In short", [text for part in results for text in part.findings[:1]]),
        sections.runs_section(tables, analysis),
        *results,
        sections.samples_section(tables),
        *sections.others_section(tables, figures),
        *goodput_section(folder / "goodput.csv", figures),
        sections.method_section(tables, analysis, notes, draws),
    ]
    count = len(tables.runs)
    of = f" of {count + len(tables.others) + len(missing)}" if missing else ""
    subtitle = f"{count}{of} run{'s' * (count != 1 or bool(of))} on {tables.dataset}" + (
        f", {len(set(tables.others.get('run_id', [])))} on other data sets" if len(tables.others) else ""
    )
    names = Names(study, str(folder), options, file, own_seeds)
    lead = _lead(first_screen(tables, analysis, ranking.table if ranking else None, names, missing))
    path = folder / "report.html"
    partial = path.with_suffix(".html.partial")
    partial.write_text(render(title, subtitle, page, lead=lead, facts=run_facts(tables, folder)), encoding="utf-8")
    os.replace(partial, path)
    return path


def _paper_tables(tables: StudyTables, ranking: Ranked | None, efficiency: Measured | None) -> list[PaperTable]:
    """Those of the paper's tables that the study has numbers for."""
    found: list[PaperTable | None] = []
    if ranking is not None and ranking.table is not None:
        found += [table_1(ranking.table), table_2(ranking.table)]
    found.append(table_5(tables.geneval, tables.results))
    if efficiency is not None and efficiency.table is not None:
        found.append(table_6(efficiency.table, efficiency.group, efficiency.setting))
    return [table for table in found if table is not None]


def _lead(screen: FirstScreen) -> Lead:
    return Lead(
        screen.headline,
        [("By how much", screen.margin), ("How sure", screen.surety)],
        "What to run next",
        [(step.text, step.command) for step in screen.steps],
    )
