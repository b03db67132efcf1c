"""The report's first screen: which recipe won, by how much, how surely, and what to run next. Words, from numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from scaling.analysis import Analysis
from scaling.contest import SETTLED, Contest, by_elo, by_loss, by_rank, by_size, recipes
from scaling.errors import TableError
from scaling.findings import listed, scientific
from scaling.next_battle import next_battles
from scaling.ranking import RankTable
from scaling.reference import bare
from scaling.study import StudyTables, values

MOST_SEEDS = 8
"""More than this to tell two recipes apart is too dear to be told: they are as good as equal."""
MOST_STEPS = 2
MOST_NAMES = 3
LEAST_SIZES = 3
"""Sizes from which on ``mmdit recommend`` can fit a law."""


@dataclass(frozen=True)
class Step:
    """What to run next: why, and a command where there is one."""

    text: str
    command: str = ""


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


def first_screen(tables: StudyTables, analysis: Analysis, ranking: RankTable | None, study: str) -> FirstScreen:
    """From a study's tables; ``study`` is its name in commands. Ranks come before ratings, these before losses."""
    results = tables.results
    if results.empty:
        waiting = f"{len(tables.runs)} have validations" if len(tables.runs) else "none has begun"
        step = Step("Let a run finish.", f"mmdit study run {study}")
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
        return _without_contest(tables, size, study)
    headline = _headline(contests, winner, decided, size, len(own) > 0)
    margin, surety = [margin_text(c, winner) for c in contests], [surety_text(c, winner) for c in contests]
    if size is not None:
        margin.append(_size_margin(size))
        surety.append(_size_surety(size))
    steps = _steps(tables, analysis, contests, size, winner, decided, study)
    return FirstScreen(headline, tuple(margin), tuple(surety), steps, decided)


def _winner(contests: Sequence[Contest]) -> tuple[str | None, bool]:
    """The first of the contests that are settled, if they agree; else the first contest's, undecided."""
    settled = list(dict.fromkeys(bare(contest.names[0]) for contest in contests if contest.settled))
    if len(settled) == 1:
        return settled[0], True
    return (bare(contests[0].names[0]) if contests and not settled else None), False


def _headline(contests: Sequence[Contest], winner: str | None, decided: bool, size: Contest | None, sized: bool) -> str:
    if winner is None:
        sides = "; ".join(f"{bare(c.names[0])} by {c.measure}" for c in contests if c.settled)
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
    if sized and size is not None:
        where = f", and is best at {size.names[0]}" + ("" if size.settled else " (not settled)")
    return f"{winner} {'leads, with one seed' if few else 'won'}{where}."


def _without_contest(tables: StudyTables, size: Contest | None, study: str) -> FirstScreen:
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
            "Train a second recipe or depth with the same seeds; a study file is a grid.", f"mmdit study plan {study}"
        )
        return FirstScreen(headline, (f"Lowest validation loss {lowest:.4f}",), ("–",), (step,), False)
    verdict = (
        f"{kind}, the only recipe, is best at {size.names[0]}"
        if size.settled
        else f"Not decided: {kind}, the only recipe, has its lowest loss at {size.names[0]}"
    )
    steps = _steps(tables, Analysis(), [], size, kind, size.settled, study)
    return FirstScreen(f"{verdict}.", (_size_margin(size),), (_size_surety(size),), steps, size.settled)


def margin_text(contest: Contest, winner: str | None = None) -> str:
    """The lead of the first over the second; whose, where it isn't the ``winner``'s."""
    first, second = (bare(name) for name in contest.names[:2])
    ends = ""
    if contest.measure == "validation loss":
        if np.isfinite(contest.low):
            ends = f" ({100 * contest.low:.1f} to {100 * contest.high:.1f} %)"
        text = f"{100 * contest.margin:.1f} % below {second}{ends}"
    else:
        digits = 0 if contest.measure == "Elo" else 2
        if np.isfinite(contest.low):
            ends = f" ({contest.low:.{digits}f} to {contest.high:.{digits}f})"
        sign = "above" if contest.measure == "Elo" else f"{contest.scores[0]:.2f}, better by"
        lead = f"{contest.margin:.{digits}f}"
        text = f"{lead} {sign} {second}{ends}" if contest.measure == "Elo" else f"{sign} {lead} than {second}{ends}"
    whose = "" if first == winner else f"{first} "
    return f"{_capital(contest.measure)}: {whose}{text}".replace(" -", " −").replace("(-", "(−")


def surety_text(contest: Contest, winner: str | None = None) -> str:
    """The probability of being best, and what was repeated to know it."""
    name = _capital(contest.measure)
    if not contest.known:
        return f"{name}: not known, nothing was repeated ({contest.how})"
    what = "better" if len(contest.names) == 2 else f"the best of {len(contest.names)}"
    whose = "" if bare(contest.names[0]) == winner else f"{bare(contest.names[0])} is "
    return f"{name}: {whose}{what} with probability {_chance(contest.best)} ({contest.how})"


def _size_margin(size: Contest) -> str:
    return (
        margin_text(size, size.names[0])
        .replace("Validation loss", f"{_capital(size.names[0])}: loss")
        .replace("loss:", "loss")
    )


def _size_surety(size: Contest) -> str:
    p = f"probability {_chance(size.best)}" if size.known else "not known, nothing was repeated"
    return f"{_capital(size.names[0])}: {p} ({size.how})"


def _chance(p: float) -> str:
    return "above 0.99" if p > 0.99 else f"{p:.2f}"


def seeds_wanted(contest: Contest) -> tuple[int, float] | None:
    """How many more seeds of the first two would tell a difference as large as is seen, and the arm of the interval
    (a share) then; None for more than MOST_SEEDS, or where noise is not known."""
    if not np.isfinite(contest.noise) or not contest.sizes:
        return None
    gap = abs(np.log1p(-contest.margin))
    for more in range(1, MOST_SEEDS + 1):
        seeds = contest.seeds + more
        freedom = contest.sizes * (seeds - 1)
        arm = float(stats.t.ppf(SETTLED, freedom) * contest.noise * np.sqrt(2 / (contest.sizes * seeds)))
        if arm < gap:
            return more, arm
    return None


def _steps(
    tables: StudyTables,
    analysis: Analysis,
    contests: Sequence[Contest],
    size: Contest | None,
    winner: str | None,
    decided: bool,
    study: str,
) -> tuple[Step, ...]:
    """The most useful first."""
    found: list[Step] = []
    run = f"mmdit study run {study}"
    loss = next((c for c in [*contests, *([size] if size else [])] if c.measure == "validation loss"), None)
    if contests and winner is None:
        found.append(Step("Let people decide between them, blind.", f"mmdit arena studies/{study}"))
    if loss is not None and not loss.settled:
        found.append(_seeds(loss, run))
    elif loss is not None and loss.seeds == 1:
        first, second = (bare(name) for name in loss.names[:2])
        found.append(Step(f"One more seed of {first} and {second}: one seed each does not tell luck.", run))
    battle = _battle(tables, analysis, contests, study)
    found += [battle] if battle is not None else []
    edge = _edge(tables.results, size, study)
    found += [edge] if edge is not None else []
    if decided and not found:
        found.append(_larger(tables.results, study))
    if contests and not analysis.elo and len(found) < MOST_STEPS:
        found.append(Step("Battles: losses do not tell how images look.", f"mmdit arena studies/{study}"))
    return tuple(found[:MOST_STEPS])


def _seeds(contest: Contest, run: str) -> Step:
    first, second = (bare(name) for name in contest.names[:2])
    if not contest.known:
        return Step(
            f"Two more seeds of {first} and {second}: from one run each, nothing tells their difference from luck.", run
        )
    wanted = seeds_wanted(contest)
    if wanted is None:
        return Step(
            f"{first} and {second} are as good as equal here: {MOST_SEEDS} more seeds each would not tell "
            f"{100 * contest.margin:.1f} % from none. Take the cheaper."
        )
    more, arm = wanted
    before = (contest.high - contest.low) / 2
    seeds = f"{more} more seed{'s' * (more != 1)}"
    return Step(f"{seeds} of {first} and {second}: ±{100 * before:.1f} % would become ±{100 * arm:.1f} %.", run)


def _battle(tables: StudyTables, analysis: Analysis, contests: Sequence[Contest], study: str) -> Step | None:
    """The pair whose battle narrows ratings most, where ratings are not settled."""
    elo = next((contest for contest in contests if contest.measure == "Elo"), None)
    if elo is None or elo.settled or tables.battles.empty:
        return None
    try:
        left, right, _ = next_battles(tables.battles)[0]
    except TableError:
        return None
    return Step(
        f"More battles, {left} against {right} first: they narrow the ratings most.", f"mmdit arena studies/{study}"
    )


def _edge(results: pd.DataFrame, size: Contest | None, study: str) -> Step | None:
    """A larger or smaller depth, where the best one is at an end of the grid."""
    if size is None:
        return None
    depths = sorted(set(values(results, "depth").dropna()))
    best = float(size.names[0].removeprefix("depth "))
    if best not in (depths[0], depths[-1]) or len(depths) < 2:
        return None
    if best == depths[0]:
        return Step(f"Train longer, or below depth {best:g}: the smallest model tried is the best at this length.")
    return Step(
        f"Deeper than {best:g}: the largest model tried is the best, so the best may lie beyond.",
        _larger(results, study).command,
    )


def _larger(results: pd.DataFrame, study: str) -> Step:
    """What ten times the largest compute should be spent on."""
    flops = values(results, "train_flops").max()
    depths = sorted(set(values(results, "depth").dropna()))
    if not np.isfinite(flops) or len(depths) < LEAST_SIZES:
        return Step(
            "The next size up, before a larger budget is spent: a law needs three.", f"mmdit study plan {study}"
        )
    low, high = int(depths[-1]), int(np.ceil(2 * depths[-1]))
    return Step(
        f"This grid is settled. Ask its law what {scientific(10 * flops)} FLOPs should be spent on.",
        f"mmdit recommend studies/{study}/results.csv --study {study} --flops {10 * flops:.1e} --depths {low}-{high}",
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
