"""What to run next, from what a study has and has not shown: seeds, votes, battles, sizes; the most useful first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from scaling.analysis import Analysis
from scaling.contest import SETTLED, TOLD_APART, Contest, recipes
from scaling.errors import TableError
from scaling.findings import scientific
from scaling.next_battle import next_battles
from scaling.reference import bare
from scaling.study import StudyTables, values

MOST_SEEDS = 8
"""More than this to tell two recipes apart is too dear to be told: they are as good as equal."""
MOST_STEPS = 2
LEAST = 3
"""Sizes, and lengths of training, from which on ``mmdit recommend`` can tell a joint law's exponents from its floor."""


@dataclass(frozen=True)
class Names:
    """What commands call a study: its name or file, the folder of its tables, and the options after its name."""

    study: str
    folder: str
    options: str = ""

    def command(self, action: str) -> str:
        """``mmdit study ACTION STUDY``."""
        return f"mmdit study {action} {shlex.quote(self.study)} {self.options}".rstrip()

    @property
    def arena(self) -> str:
        """The command by which people vote."""
        return f"mmdit arena {shlex.quote(self.folder)}"


@dataclass(frozen=True)
class Step:
    """What to run next: why, and a command where there is one."""

    text: str
    command: str = ""


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


def next_steps(
    tables: StudyTables,
    analysis: Analysis,
    contests: Sequence[Contest],
    size: Contest | None,
    winner: str | None,
    decided: bool,
    names: Names,
) -> tuple[Step, ...]:
    """The most useful first."""
    found: list[Step] = []
    run = names.command("run")
    loss = next((c for c in [*contests, *([size] if size else [])] if c.measure == "validation loss"), None)
    if contests and winner is None:
        found.append(Step("Let people decide between them, blind.", names.arena))
    if loss is not None and not loss.settled:
        found.append(_seeds(loss, run))
    elif loss is not None and loss.seeds == 1:
        first, second = (bare(name) for name in loss.names[:2])
        found.append(
            Step(f"One more seed of {first} and {second} in the study file: one each does not tell luck.", run)
        )
    battle = _battle(tables, analysis, contests, names)
    found += [battle] if battle is not None else []
    edge = _edge(tables, size, winner, names)
    found += [edge] if edge is not None else []
    if decided and not found:
        found.append(_larger(tables, winner, names))
    seen = analysis.elo or any(contest.measure == "average rank" for contest in contests)
    if contests and not seen and len(found) < MOST_STEPS:
        found.append(Step("Battles: losses do not tell how images look.", names.arena))
    return tuple(found[:MOST_STEPS])


def _seeds(contest: Contest, run: str) -> Step:
    first, second = (bare(name) for name in contest.names[:2])
    if not contest.known:
        return Step(
            f"Two more seeds of {first} and {second} in the study file: from one run each, nothing tells them apart.",
            run,
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
    return Step(
        f"{seeds} of {first} and {second} in the study file: ±{100 * before:.1f} % would become ±{100 * arm:.1f} %.",
        run,
    )


def _battle(tables: StudyTables, analysis: Analysis, contests: Sequence[Contest], names: Names) -> Step | None:
    """The pair whose battle narrows ratings most, where ratings are not settled."""
    elo = next((contest for contest in contests if contest.measure == "Elo"), None)
    if elo is None or elo.settled or tables.battles.empty:
        return None
    try:
        left, right, _ = next_battles(tables.battles)[0]
    except TableError:
        return None
    return Step(f"More battles, {left} against {right} first: they narrow the ratings most.", names.arena)


def _edge(tables: StudyTables, size: Contest | None, winner: str | None, names: Names) -> Step | None:
    """A larger or smaller depth, where the best one is at an end of the grid."""
    if size is None:
        return None
    depths = sorted(set(values(tables.results, "depth").dropna()))
    best = float(size.names[0].removeprefix("depth "))
    if best not in (depths[0], depths[-1]) or len(depths) < 2:
        return None
    if best == depths[0]:
        return Step(f"Train longer, or below depth {best:g}: the smallest model tried is the best at this length.")
    return Step(
        f"Deeper than {best:g}: the largest model tried is the best, so the best may lie beyond.",
        _larger(tables, winner, names).command,
    )


def _larger(tables: StudyTables, winner: str | None, names: Names) -> Step:
    """What ten times the largest compute should be spent on; what a law of it would want first, where that lacks."""
    own = tables.results[recipes(tables.results) == winner]
    own = own if len(own) else tables.results
    sizes, lengths = (values(own, column).nunique() for column in ("params", "images"))
    flops = values(own, "train_flops").max()
    if not np.isfinite(flops) or min(sizes, lengths) < LEAST:
        lacking = [what for what, count in (("depths", sizes), ("lengths of training", lengths)) if count < LEAST]
        return Step(
            f"Other {' and '.join(lacking)}, before a larger budget is spent: its law needs {LEAST} of each.",
            names.command("plan"),
        )
    table = shlex.quote(f"{names.folder}/results.csv")
    options = [f"--study {shlex.quote(names.study)}", f"--flops {10 * flops:.1e}", *_depths(own), *_only(tables, own)]
    return Step(
        f"This grid is settled. Ask its law what {scientific(10 * flops)} FLOPs should be spent on.",
        f"mmdit recommend {table} {' '.join(options)}",
    )


def _depths(own: pd.DataFrame) -> list[str]:
    """Up to twice the deepest, where a width follows from its depth; else ``recommend`` takes the study's own."""
    depths = values(own, "depth")
    if (values(own, "width") / depths).nunique() != 1:
        return []
    return [f"--depths {int(depths.min())}-{int(np.ceil(2 * depths.max()))}"]


def _only(tables: StudyTables, own: pd.DataFrame) -> list[str]:
    """The conditions by which ``own`` are told among all rows of results.csv."""
    found = [f"dataset={tables.dataset}"] if len(tables.others) else []
    for column in ("formulation", *TOLD_APART):
        if column in own and own[column].nunique() == 1 and tables.results[column].nunique() > 1:
            found.append(f"{column}={own[column].iloc[0]}")
    found += ["val_loss>0"] if values(own, "val_loss").isna().any() else []
    return [f"--where {shlex.quote(condition)}" for condition in found]
