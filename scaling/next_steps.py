"""What to run next, from what a study has and has not shown: seeds, votes, battles, sizes; the most useful first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from scaling.analysis import by_question
from scaling.contest import SETTLED, Contest, Crossed
from scaling.errors import TableError
from scaling.findings import scientific
from scaling.next_battle import next_battles
from scaling.recipes import TOLD_APART, recipes
from scaling.reference import bare
from scaling.study import StudyTables, values

MOST_SEEDS = 8
"""More than this to tell two recipes apart is too dear to be advised."""
EQUAL = 0.01
"""Losses of which the whole interval is no farther apart are as good as equal."""
MOST_STEPS = 2
MOST_PAIRS = 10_000
"""Of a study's runs, that are looked through for one of the first two recipes."""
LEAST = 3
"""Sizes, and lengths of training, from which on ``mmdit recommend`` can tell a joint law's exponents from its floor."""
_COUNTS = {1: "One", 2: "Two"}
SIZES_OR_LUCK = "it tells luck from a lead that differs between sizes"


@dataclass(frozen=True)
class Names:
    """What commands call a study: its name or file, the folder of its tables, and the options after its name."""

    study: str
    folder: str
    options: str = ""
    file: str = ""
    """Where its grid is written."""
    own_seeds: bool = False
    """Whether the grid has runs that differ by seed alone: with another seed for all, these would be the same."""

    def command(self, action: str) -> str:
        """``mmdit study ACTION STUDY``."""
        return f"mmdit study {action} {shlex.quote(self.study)} {self.options}".rstrip()

    def with_seed(self, seed: int) -> str:
        """The command that trains the whole grid with this seed, to stand beside the others in its tables."""
        words = shlex.split(self.options)
        places = [
            i for i, word in enumerate(words) if word.partition("=")[0].strip() == "seed" and words[i - 1] == "--set"
        ]
        kept = [word for i, word in enumerate(words) if i not in places and i + 1 not in places]
        return shlex.join(["mmdit", "study", "run", self.study, *kept, "--set", f"seed={seed}"])

    @property
    def grid(self) -> str:
        """Where the grid is changed, in words."""
        return self.file or "the study file"

    @property
    def arena(self) -> str:
        """The command by which people vote."""
        return f"mmdit arena {shlex.quote(self.folder)}"


@dataclass(frozen=True)
class Step:
    """What to run next: why, and a command where there is one, of several one a line."""

    text: str
    command: str = ""


def seeds_wanted(contest: Contest) -> tuple[int, float] | None:
    """How many more seeds of the first two would tell a difference as large as is seen, and the arm of the interval
    (a share) then; None for more than MOST_SEEDS, or where a single run's noise is not known."""
    found = contest.blocks
    if found is None or not np.isfinite(found.within):
        return None
    gap = abs(np.log1p(-contest.margin))
    for more in range(1, MOST_SEEDS + 1):
        seeds = contest.seeds + more
        if found.varies > 0:  # between sizes, which seeds do not change
            square, freedom = found.varies**2 + found.within**2 / seeds, found.freedom
        else:
            square, freedom = found.noise**2 / seeds, found.freedom + contest.sizes * more
        arm = float(stats.t.ppf(SETTLED, freedom) * np.sqrt(2 * square / contest.sizes))
        if arm < gap:
            return more, arm
    return None


def next_steps(
    tables: StudyTables,
    contests: Sequence[Contest],
    size: Contest | None,
    winner: str | None,
    decided: bool,
    names: Names,
) -> tuple[Step, ...]:
    """The most useful first: of what the headline leaves open, then of what was measured least, then of sizes."""
    found: list[Step] = []
    crossed = sizes_disagree(contests, winner)
    if contests and winner is None:
        found.append(Step("Let people decide between them, blind.", names.arena))
    if crossed is not None:
        found.append(
            Step(
                f"A larger size than {crossed.size}: {bare(crossed.name)} is ahead there, {winner} on average. "
                f"Add it to {names.grid}, then:",
                names.command("run"),
            )
        )
    open_ones = [contest for contest in contests if not contest.settled]
    if winner is not None:
        found += [_settling(contest, tables, names) for contest in open_ones[:MOST_STEPS]]
    loss = next((c for c in contests if c.kind == "loss"), None)
    if loss is not None and loss.settled and loss.seeds == 1:
        found.append(_more_seeds(1, loss, "one each does not tell luck", tables, names))
    if size is not None and not contests and not size.settled:
        found.append(_seeds(size, tables, names))
    edge = _edge(tables, size, winner, names)
    found += [edge] if edge is not None else []
    if contests and not any(contest.kind in ("elo", "rank") for contest in contests) and len(found) < MOST_STEPS:
        found.append(Step("Battles: losses do not tell how images look.", names.arena))
    if not found or (decided and len(found) < MOST_STEPS and edge is None):
        found.insert(0, _larger(tables, winner, names))
    return tuple(dict.fromkeys(found))[:MOST_STEPS]


def sizes_disagree(contests: Sequence[Contest], winner: str | None) -> Crossed | None:
    """Who is shown to be ahead of the winner by loss at the largest size."""
    for contest in contests:
        crossed = contest.crossed
        if crossed is not None and bare(contest.names[0]) == winner and crossed.low > 0:
            return crossed
    return None


def _settling(contest: Contest, tables: StudyTables, names: Names) -> Step:
    """What would tell the first two of a contest apart."""
    if contest.kind == "loss":
        return _seeds(contest, tables, names)
    if not contest.trained:
        return _more_seeds(1, contest, "of one training each, nothing tells luck", tables, names)
    if contest.kind == "elo":
        if not _luck_is_most(contest):
            return _battle(contest, tables, names)
        if contest.blocks is not None and contest.blocks.varies > 0:
            return _other_sizes(contest, names)
        alone = contest.blocks is not None and not np.isfinite(contest.blocks.within)
        why = SIZES_OR_LUCK if alone else "most of the interval is what trainings differ by, which no battle narrows"
        return _more_seeds(1, contest, why, tables, names)
    return _more_seeds(1, contest, "their ranks overlap (or more prompts, in the study file)", tables, names)


def _seeds(contest: Contest, tables: StudyTables, names: Names) -> Step:
    first, second = (bare(name) for name in contest.names[:2])
    blocks = contest.blocks
    if not contest.known or blocks is None:
        return _more_seeds(2, contest, "from one run each, nothing tells them apart", tables, names)
    ends = f"{100 * contest.low:.1f} to {100 * contest.high:.1f} %".replace("-", "−")
    if max(abs(contest.low), abs(contest.high)) <= EQUAL:
        return Step(f"{first} and {second} are as good as equal here ({ends}): take the cheaper.")
    if not np.isfinite(blocks.within):
        return _more_seeds(1, contest, SIZES_OR_LUCK, tables, names)
    wanted = seeds_wanted(contest)
    if wanted is not None:
        more, arm = wanted
        before = (contest.high - contest.low) / 2
        why = f"±{100 * before:.1f} % would become about ±{100 * arm:.1f} %"
        return _more_seeds(more, contest, why, tables, names)
    if blocks.varies > 0:
        return _other_sizes(contest, names)
    return Step(
        f"Other recipes or sizes: {MOST_SEEDS} more seeds each would not tell {first} from {second} ({ends}). "
        f"Add them to {names.grid}, then:",
        names.command("run"),
    )


def _other_sizes(contest: Contest, names: Names) -> Step:
    first, second = sorted(bare(name) for name in contest.names[:2])  # measures may ask for the same
    return Step(
        f"Other sizes of {first} and {second}: their difference varies between sizes, which more seeds do not tell. "
        f"Add them to {names.grid}, then:",
        names.command("run"),
    )


def _more_seeds(count: int, contest: Contest, why: str, tables: StudyTables, names: Names) -> Step:
    """So many seeds more of the first two: by ``--set``, or in the study file where its grid has seeds of its own."""
    first, second = sorted(bare(name) for name in contest.names[:2])  # measures may ask for the same
    text = f"{_COUNTS.get(count, count)} more seed{'s' * (count != 1)} of {first} and {second}: {why}."
    if names.own_seeds:
        return Step(f"{text} Add {'it' if count == 1 else 'them'} to {names.grid}, then:", names.command("run"))
    text += " With --only RUN, some runs alone." if len(contest.names) > 2 else ""
    last = max(
        (int(seed) for part in (tables.results, tables.others) for seed in values(part, "seed").dropna()), default=0
    )
    return Step(text, "\n".join(names.with_seed(seed) for seed in range(last + 1, last + 1 + count)))


def _luck_is_most(contest: Contest) -> bool:
    """Whether more than half of the variance of ratings' difference is of trainings: other prompts do not narrow it."""
    blocks, arm = contest.blocks, (contest.high - contest.low) / 2
    if blocks is None or not np.isfinite(blocks.noise):
        return False
    first, second = (blocks.names.index(name) for name in contest.names[:2])
    trainings = blocks.error(first, second, blocks.noise) * float(stats.t.ppf(SETTLED, blocks.freedom))
    return trainings**2 > 0.5 * arm**2


def _battle(contest: Contest, tables: StudyTables, names: Names) -> Step:
    """The pair of the first recipes' runs whose battle narrows ratings most."""
    first, second = contest.names[:2]
    kind = dict(zip(tables.results["name"], recipes(tables.results), strict=True))
    try:
        pairs = next_battles(by_question(tables.battles)[contest.question], k=MOST_PAIRS)
    except (TableError, KeyError):
        pairs = []
    for left, right, _ in pairs:
        if {kind.get(left), kind.get(right)} == {first, second}:
            return Step(f"More battles, {left} against {right} first: they narrow the ratings most.", names.arena)
    return Step(f"More battles of {bare(first)} against {bare(second)}.", names.arena)


def _edge(tables: StudyTables, size: Contest | None, winner: str | None, names: Names) -> Step | None:
    """A larger or smaller depth, where the best one is at an end of the grid."""
    if size is None or not size.margin > 0:
        return None
    depths = sorted(set(values(tables.results, "depth").dropna()))
    best = float(size.names[0].removeprefix("depth "))
    if best not in (depths[0], depths[-1]) or len(depths) < 2:
        return None
    if best == depths[0]:
        return Step(f"Train longer, or below depth {best:g}: the smallest model tried is the best at this length.")
    larger = _larger(tables, winner, names)
    if larger.command.startswith("mmdit recommend"):
        return larger
    return Step(
        f"Other lengths of training: at equal steps depth {best:g}, the largest, is best, as larger ones mostly are; "
        f"what it is at equal compute is open. Add them to {names.grid}, then:",
        larger.command,
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
            f"Other {' and '.join(lacking)}, before a larger budget is spent: its law needs {LEAST} of each. "
            f"Add them to {names.grid}, then:",
            names.command("run"),
        )
    table = shlex.quote(f"{names.folder}/results.csv")
    options = [f"--study {shlex.quote(names.study)}", f"--flops {10 * flops:.1e}", *_depths(own), *_only(tables, own)]
    return Step(
        f"Ask the law of these runs what {scientific(10 * flops)} FLOPs should be spent on.",
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
