"""The report's first screen: which recipe won, by how much, how surely, and what to run next. Words, from numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.analysis import Analysis
from scaling.contest import Contest, Crossed, by_elo, by_loss, by_rank, by_size
from scaling.findings import listed
from scaling.next_steps import Names, Step, next_steps, sizes_disagree
from scaling.ranking import RankTable
from scaling.recipes import recipes
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


def first_screen(
    tables: StudyTables,
    analysis: Analysis,
    ranking: RankTable | None,
    names: Names,
    missing: Sequence[str] = (),
) -> FirstScreen:
    """From a study's tables; ``names`` are its own in commands. Ranks come before ratings, these before losses.

    ``missing`` are the study's runs that are in no table, with what became of them: they are told.
    """
    results = tables.results
    gaps = _gaps(len(results), missing)
    known = results[values(results, "val_loss") > 0] if len(results) else results
    found = [by_rank(ranking) if ranking is not None else None]
    found += [by_elo(elo, results, question) for question, elo in analysis.questions.items()]
    found.append(by_loss(known))
    contests = [contest for contest in found if contest is not None]
    if not contests:
        return _without_contest(tables, known, names, gaps)
    winner, decided = _winner(contests)
    own = known[recipes(known) == winner] if len(known) and winner is not None else known[:0]
    size = by_size(own)
    crossed = sizes_disagree(contests, winner)
    headline = _headline(contests, winner, decided, size, crossed)
    margin = [margin_text(contest, winner) for contest in contests]
    surety = [surety_text(contest, winner) + _other_judges(contest, analysis, results) for contest in contests]
    if size is not None:
        margin.append(_size_margin(size))
        surety.append(_size_surety(size))
    decided = decided and crossed is None
    steps = next_steps(tables, contests, size, winner, decided, names)
    return FirstScreen(headline, tuple(margin), (*surety, *gaps), steps, decided)


def _gaps(count: int, missing: Sequence[str]) -> tuple[str, ...]:
    """Which runs of the study are not in its tables, in one line."""
    if not missing:
        return ()
    more = f" and {len(missing) - MOST_NAMES} more" if len(missing) > MOST_NAMES else ""
    shown = ", ".join(missing[:MOST_NAMES]) + more
    return (f"{len(missing)} of {count + len(missing)} runs have no result: {shown}",)


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
    contests: Sequence[Contest], winner: str | None, decided: bool, size: Contest | None, crossed: Crossed | None
) -> str:
    if winner is None:
        by: dict[str, list[str]] = {}
        for contest in contests:
            if contest.known:
                by.setdefault(bare(contest.names[0]), []).append(contest.measure)
        sides = "; ".join(f"{name} by {listed(measures)}" for name, measures in by.items())
        return f"Not decided, measures disagree: {sides}."
    if not decided:
        first = contests[0]
        tied = [bare(name) for name in first.tied]
        if not first.known or not first.trained:
            return f"Not decided: {winner} is ahead by {first.measure}, but nothing tells that from luck."
        more = f" and {len(tied) - MOST_NAMES} more" if len(tied) > MOST_NAMES else ""
        shown = ", ".join(tied[:MOST_NAMES]) + more if more else listed(tied)
        return f"Not decided: {shown} are not told apart by {first.measure}."
    if crossed is not None:
        return f"Not decided, sizes disagree: {winner} on average, {bare(crossed.name)} at {crossed.size}."
    few = not any(contest.seeds > 1 for contest in contests if contest.settled)
    where = ""
    if size is not None:
        where = f", and is best at {size.names[0]} at equal steps" + ("" if size.settled else " (not settled)")
    return f"{winner} {'leads, with one seed' if few else 'won'}{where}."


def _without_contest(tables: StudyTables, known: pd.DataFrame, names: Names, gaps: tuple[str, ...]) -> FirstScreen:
    """No two recipes to compare: which size, or nothing."""
    if known.empty:
        waiting = f"{len(tables.runs)} have validations" if len(tables.runs) else "none has begun"
        step = Step("Let a run finish.", names.command("run"))
        return FirstScreen(f"No run has finished with a loss yet: {waiting}.", ("–",), gaps or ("–",), (step,), False)
    kinds = list(dict.fromkeys(recipes(known)))
    size = by_size(known) if len(kinds) == 1 else None
    if size is None:
        lowest = values(known, "val_loss").min()
        headline = (
            f"Not decided: of {len(kinds)} recipes no two were trained at one size and seed."
            if len(kinds) > 1
            else f"{kinds[0]} is the only recipe, at one depth: nothing to compare yet."
        )
        text = f"Train a second recipe or depth with the same seeds. Add it to {names.grid}, then:"
        step = Step(text, names.command("run"))
        return FirstScreen(headline, (f"Lowest validation loss {lowest:.4f}",), gaps or ("–",), (step,), False)
    what = f"{kinds[0]}, the only recipe, is best at {size.names[0]}"
    headline = f"{what} at equal steps." if size.settled else f"Not decided: {what} at equal steps (not settled)."
    steps = next_steps(tables, [], size, kinds[0], size.settled, names)
    return FirstScreen(headline, (_size_margin(size),), (_size_surety(size), *gaps), steps, size.settled)


def margin_text(contest: Contest, winner: str | None = None) -> str:
    """The lead of the first over the second; whose, where it isn't the ``winner``'s."""
    first, second = (bare(name) for name in contest.names[:2])
    losses, elo = contest.kind == "loss", contest.kind == "elo"
    factor, digits, unit = (100, 1, " %") if losses else (1, 0, "") if elo else (1, 2, "")
    lead, low, high = (_number(factor * x, digits) for x in (contest.margin, contest.low, contest.high))
    ends = f" ({low} to {high}{unit})" if np.isfinite(contest.low) else ""
    if losses or elo:
        text = f"{lead}{unit} {'below' if losses else 'above'} {second}{ends}"
    else:
        text = f"{contest.scores[0]:.2f}, better by {lead} than {second}{ends}"
    whose = "" if first == winner else f"{first} "
    crossed = contest.crossed
    if crossed is not None and not crossed.low <= 0:
        low, high = (_number(100 * x, 1) for x in (crossed.low, crossed.high))
        arms = f", {low} to {high} %" if np.isfinite(crossed.low) else ", not known how surely"
        text += f"; at {crossed.size} {bare(crossed.name)} is ahead by {_number(100 * crossed.margin, 1)} %{arms}"
    return f"{_capital(contest.measure)}: {whose}{text}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def surety_text(contest: Contest, winner: str | None = None) -> str:
    """The probability of being best, and what was repeated to know it."""
    name = _capital(contest.measure)
    how = contest.how + (f"; {listed(list(contest.apart))} shared no size and seed with these" if contest.apart else "")
    if not contest.known:
        return f"{name}: not known, nothing was repeated ({how})"
    what = "better" if len(contest.names) == 2 else f"the best of {len(contest.names)}"
    whose = "" if bare(contest.names[0]) == winner else f"{bare(contest.names[0])} is "
    only = "" if contest.trained else "for these trainings alone, of others nothing is known: "
    return f"{name}: {only}{whose}{what} with probability {_chance(contest.best)} ({how})"


def _other_judges(contest: Contest, analysis: Analysis, results: pd.DataFrame) -> str:
    """Which judges of a rating's question show another recipe to be first."""
    if contest.kind != "elo":
        return ""
    found = []
    for judge, elo in analysis.judges.get(contest.question, {}).items():
        own = by_elo(elo, results)
        if own is not None and own.names[0] != contest.names[0] and own.low > 0:
            low, high = (_number(x, 0) for x in (own.low, own.high))
            found.append(f"; its judge {judge} has {bare(own.names[0])} first, by {own.margin:.0f} ({low} to {high})")
    return "".join(found)


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
