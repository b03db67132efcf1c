"""Everything a report computes from a study's tables: laws, Elo, correlations; and why one could not be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from scaling.elo import EloTable, rate
from scaling.envelope import fit_frontier, frontier
from scaling.errors import TableError
from scaling.laws import Law, fit_power_law
from scaling.score_correlations import Score, score_correlations
from scaling.study import ARCHITECTURE, StudyTables, values

POOLED = "all formulations"
"""Name of the law fitted to every formulation's frontier at once."""
DRAWS = 1000
QUESTIONS = ("prompt following", "typography", "aesthetics")
"""In this order one of them is the report's main rating; the others stand beside it."""


@dataclass
class Analysis:
    """Everything that is computed once and shown in several sections.

    ``elo`` are ratings by what they are called, the main one first; ``questions`` those of each question over all of
    its judges ("" where battles name none), ``judges`` those of each of its judges. ``why`` says what could not be
    computed, by name, ``uncorrelated`` which scores.
    """

    fits: dict[str, tuple[Law, pd.DataFrame]] = field(default_factory=dict)
    floors: dict[str, Law] = field(default_factory=dict)
    elo: dict[str, EloTable] = field(default_factory=dict)
    questions: dict[str, EloTable] = field(default_factory=dict)
    judges: dict[str, dict[str, EloTable]] = field(default_factory=dict)
    correlations: dict[str, Score] = field(default_factory=dict)
    uncorrelated: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


def analyse(tables: StudyTables, *, draws: int = DRAWS, seed: int = 0) -> Analysis:
    """Laws per formulation and pooled, Elo over all judges and per judge, correlations of loss with each score."""
    out = Analysis()
    if one_budget(tables):
        depths = tables.curves["depth"].unique()
        alike = f"depth {depths[0]:g} and one length" if len(depths) == 1 else "one budget"
        out.why["law"] = (
            f"no law, since all runs have {alike}: losses on the way show how a model trains, not what more compute is "
            "worth"
        )
    elif len(tables.curves):
        parts = {str(kind): part for kind, part in tables.curves.groupby("formulation", sort=True)}
        if len(parts) > 1:
            parts[POOLED] = pd.concat([frontier(part) for part in parts.values()])
        for kind, part in parts.items():
            try:
                if kind == POOLED:
                    fitted = (_fit(part, False, draws, seed), part)
                else:
                    fitted = fit_frontier(part, draws=draws, seed=seed)
                out.fits[kind] = fitted
                out.floors[kind] = _fit(fitted[1], True, draws, seed)
            except TableError as error:
                out.why[f"law {kind}"] = str(error)
    if len(tables.battles):
        try:
            for question, battles in by_question(tables.battles).items():
                judges = {judge: rate(part, draws=draws, seed=seed) for judge, part in _by_judge(battles).items()}
                pooled = rate(battles, draws=draws, seed=seed) if len(judges) != 1 else next(iter(judges.values()))
                out.questions[question], out.judges[question] = pooled, judges
            out.elo = _called(out.questions, out.judges)
        except TableError as error:
            out.why["elo"] = str(error)
    out.correlations, out.uncorrelated = score_correlations(tables, out.elo, seed=seed)
    return out


def by_question(battles: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The battles of each question, the main one (the first of QUESTIONS that was asked) first.

    Different questions are never pooled: who follows prompts best may draw worst. Without a column of questions there
    is one, "".
    """
    if "question" not in battles.columns:
        return {"": battles}
    parts = {str(question): part for question, part in battles.groupby("question", sort=True)}
    main = next((question for question in QUESTIONS if question in parts), next(iter(parts), None))
    return {main: parts.pop(main), **parts} if main is not None else {"": battles}


def _called(questions: Mapping[str, EloTable], judges: Mapping[str, Mapping[str, EloTable]]) -> dict[str, EloTable]:
    """Ratings by what a reader calls them: of the main question all judges and each, of others each judge."""
    found: dict[str, EloTable] = {}
    for place, (question, pooled) in enumerate(questions.items()):
        many = f"{question}, all judges" if question and len(questions) > 1 else "all judges"
        if place == 0 and len(judges[question]) != 1:
            found[many] = pooled
        for judge, table in judges[question].items():
            found[judge if place == 0 else f"{question} ({judge})"] = table
    return found


def _by_judge(battles: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if "judge" not in battles.columns:
        return {}
    return {str(judge): part for judge, part in battles.groupby("judge", sort=True)}


def one_budget(tables: StudyTables) -> bool:
    """Whether several runs have one depth and one length, or several architectures one compute (within 2 %): a
    comparison of recipes, in which no law can be seen."""
    if tables.curves.empty or tables.results.empty or tables.curves["run_id"].nunique() < 2:
        return False
    flops = values(tables.results, "train_flops")
    if ARCHITECTURE in tables.results and tables.results[ARCHITECTURE].nunique() > 1 and flops.notna().all():
        return bool(flops.max() <= 1.02 * flops.min())
    return tables.curves["depth"].nunique() == 1 and values(tables.results, "steps").nunique() == 1


def _fit(rows: pd.DataFrame, floor: bool, draws: int, seed: int) -> Law:
    return fit_power_law(
        values(rows, "train_flops").to_numpy(),
        values(rows, "val_loss").to_numpy(),
        floor=floor,
        groups=rows["run_id"].to_numpy(),
        draws=draws,
        seed=seed,
    )
