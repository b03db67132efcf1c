"""The report's first screen: which recipe won, by how much, how surely, and what to run next. Words, from numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.analysis import Analysis
from scaling.contest import Contest, by_elo, by_loss, by_rank, by_size, recipes
from scaling.findings import listed
from scaling.next_steps import Names, Step, next_steps
from scaling.ranking import RankTable
from scaling.reference import bare
from scaling.study import StudyTables, values

MOST_NAMES = 3
"""Of more recipes that are not told apart, how many more there are is told."""


@dataclass(frozen=True)
class FirstScreen:
    """One sentence and three answers; ``decided`` where the sentence names a winner that is shown to be one."""

    headline: str
    margin: tuple[str, ...]
    """By how much, a line a measure."""
    surety: tuple[str, ...]
    """How sure, likewise."""
    steps: tuple[Step, ...]
    decided: bool


def first_screen(tables: StudyTables, analysis: Analysis, ranking: RankTable | None, names: Names) -> FirstScreen:
    """From a study's tables; ``names`` are its own in commands. Ranks come before ratings, these before losses."""
    results = tables.results
    if results.empty:
        waiting = f"{len(tables.runs)} have validations" if len(tables.runs) else "none has begun"
        step = Step("Let a run finish.", names.command("run"))
        return FirstScreen(f"No run has finished yet: {waiting}.", ("–",), ("–",), (step,), False)
    elo = next(iter(analysis.elo.values()), None)
    found = (
        by_rank(ranking) if ranking is not None else None,
        by_elo(elo, results) if elo is not None else None,
        by_loss(results),
    )
    contests = [contest for contest in found if contest is not None]
    winner, decided = _winner(contests)
    own = results[recipes(results) == (winner or "")]
    size = by_size(own if len(own) else results) if len(own) or not contests else None
    if not contests:
        return _without_contest(tables, size, names)
    headline = _headline(contests, winner, decided, size if len(own) else None, results)
    margin, surety = [margin_text(c, winner) for c in contests], [surety_text(c, winner) for c in contests]
    if size is not None:
        margin.append(_size_margin(size))
        surety.append(_size_surety(size))
    steps = next_steps(tables, analysis, contests, size, winner, decided, names)
    return FirstScreen(headline, tuple(margin), tuple(surety), steps, decided)


def _winner(contests: Sequence[Contest]) -> tuple[str | None, bool]:
    """Who is first where a contest is settled, decided if no other contest shows that it isn't; None where one does.

    Where none is settled: the first contest's first, undecided.
    """
    settled = list(dict.fromkeys(bare(contest.names[0]) for contest in contests if contest.settled))
    if not settled:
        return (bare(contests[0].names[0]) if contests else None), False
    beaten = any(
        contest.known and settled[0] in map(bare, contest.names) and settled[0] not in map(bare, contest.tied)
        for contest in contests
    )
    return (None, False) if beaten or len(settled) > 1 else (settled[0], True)


def _headline(
    contests: Sequence[Contest], winner: str | None, decided: bool, size: Contest | None, results: pd.DataFrame
) -> str:
    if winner is None:
        sides = "; ".join(f"{bare(c.names[0])} by {c.measure}" for c in contests if c.known)
        return f"Not decided, measures disagree: {sides}."
    if not decided:
        first = contests[0]
        tied = [bare(name) for name in first.tied]
        if not first.known:
            return f"Not decided: {winner} is ahead by {first.measure}, but nothing tells that from luck."
        more = f" and {len(tied) - MOST_NAMES} more" if len(tied) > MOST_NAMES else ""
        shown = ", ".join(tied[:MOST_NAMES]) + more if more else listed(tied)
        return f"Not decided: {shown} are not told apart by {first.measure}."
    few = all(contest.seeds == 1 for contest in contests if contest.seeds)
    where = ""
    if size is not None:
        where = f", and is best at {_depth(size, results)}" + ("" if size.settled else " (not settled)")
    return f"{winner} {'leads, with one seed' if few else 'won'}{where}."


def _without_contest(tables: StudyTables, size: Contest | None, names: Names) -> FirstScreen:
    """One recipe only: which size, or nothing to compare."""
    results = tables.results
    kind = recipes(results).iloc[0]
    if size is None:
        lowest = values(results, "val_loss").min()
        many = recipes(results).nunique() > 1
        headline = (
            "Not decided: no two recipes were trained at one size and seed."
            if many
            else f"{kind} is the only recipe, at one depth: nothing to compare yet."
        )
        step = Step(
            "Train a second recipe or depth with the same seeds; a study file is a grid.", names.command("plan")
        )
        return FirstScreen(headline, (f"Lowest validation loss {lowest:.4f}",), ("–",), (step,), False)
    verdict = (
        f"{kind}, the only recipe, is best at {_depth(size, results)}"
        if size.settled
        else f"Not decided: {kind}, the only recipe, has its lowest loss at {_depth(size, results)}"
    )
    steps = next_steps(tables, Analysis(), [], size, kind, size.settled, names)
    return FirstScreen(f"{verdict}.", (_size_margin(size),), (_size_surety(size),), steps, size.settled)


def _depth(size: Contest, results: pd.DataFrame) -> str:
    """The best depth, and after how many steps where there are several lengths."""
    several = values(results, "steps").nunique() > 1
    return size.names[0] + (f" after {size.how.split(' after ')[-1]}" if several and " after " in size.how else "")


def margin_text(contest: Contest, winner: str | None = None) -> str:
    """The lead of the first over the second; whose, where it isn't the ``winner``'s."""
    first, second = (bare(name) for name in contest.names[:2])
    losses, elo = contest.measure == "validation loss", contest.measure == "Elo"
    factor, digits, unit = (100, 1, " %") if losses else (1, 0, "") if elo else (1, 2, "")
    lead, low, high = (_number(factor * x, digits) for x in (contest.margin, contest.low, contest.high))
    ends = f" ({low} to {high}{unit})" if np.isfinite(contest.low) else ""
    if losses or elo:
        text = f"{lead}{unit} {'below' if losses else 'above'} {second}{ends}"
    else:
        text = f"{contest.scores[0]:.2f}, better by {lead} than {second}{ends}"
    whose = "" if first == winner else f"{first} "
    return f"{_capital(contest.measure)}: {whose}{text}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def surety_text(contest: Contest, winner: str | None = None) -> str:
    """The probability of being best, and what was repeated to know it."""
    name = _capital(contest.measure)
    if not contest.known:
        return f"{name}: not known, nothing was repeated ({contest.how})"
    what = "better" if len(contest.names) == 2 else f"the best of {len(contest.names)}"
    whose = "" if bare(contest.names[0]) == winner else f"{bare(contest.names[0])} is "
    return f"{name}: {whose}{what} with probability {_chance(contest.best)} ({contest.how})"


def _size_margin(size: Contest) -> str:
    text = margin_text(size, size.names[0]).removeprefix("Validation loss: ")
    return f"{_capital(size.names[0])}: loss {text}"


def _size_surety(size: Contest) -> str:
    p = f"probability {_chance(size.best)}" if size.known else "not known, nothing was repeated"
    return f"{_capital(size.names[0])}: {p} ({size.how})"


def _chance(p: float) -> str:
    return "above 0.99" if p > 0.99 else f"{p:.2f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
