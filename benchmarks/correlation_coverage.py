"""How often 95 % intervals of correlations hold the truth, where runs share a ladder and a seed: docs/correlations.md.

    python -m benchmarks.correlation_coverage                # 3 minutes on one core

Runs that stand alone, in worlds that are normal and in such that aren't: Fisher's z, the jackknife, and what
``correlate`` says, which is the wider of both from ten runs on.

Simulated studies of known correlation: loss and score are sums of what a ladder shares, what a seed shares and what is
each run's own, all normal. Three intervals of each coefficient: of runs that stand alone (what a table without groups
gets), percentiles of a bootstrap that resamples whole ladders, and those of ``correlate`` with groups.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks import command, markdown
from scaling.bins import compare_bins
from scaling.coefficients import KINDS, Control, Kind, coefficient
from scaling.correlation import correlate, fisher_error, spread_of, z_statistic
from scaling.dependence import Groups
from scaling.resample import group_counts

PERMUTATIONS = 199
DRAWS = 400


@dataclass(frozen=True)
class Design:
    """A study: how many ladders, budgets and seeds; correlations of what a ladder shares and of the rest; the shares of
    the variance that a ladder and a seed have."""

    ladders: int
    budgets: int
    seeds: int
    between: float
    within: float
    ladder: float
    seed: float = 0.0

    @property
    def truth(self) -> dict[str, float]:
        """Each coefficient's value over endlessly many ladders and seeds (Pearson 1907, Kendall 1948)."""
        r = self.between * self.ladder + self.within * (1 - self.ladder - self.seed)
        return {"pearson": r, "spearman": 6 / np.pi * np.arcsin(r / 2), "kendall": 2 / np.pi * np.arcsin(r)}

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Ladder and seed of each run."""
        ladder, _, seed = np.indices((self.ladders, self.budgets, self.seeds)).reshape(3, -1)
        return ladder, seed

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One study's losses and scores."""
        ladder, seed = self.labels()

        def normal(rows: int, r: float, share: float) -> np.ndarray:
            first, second = rng.normal(size=(2, rows))
            return np.sqrt(share) * np.stack([first, r * first + np.sqrt(1 - r * r) * second])

        x, y = (
            normal(self.ladders, self.between, self.ladder)[:, ladder]
            + normal(self.seeds, 0.0, self.seed)[:, seed]
            + normal(len(ladder), self.within, 1 - self.ladder - self.seed)
        )
        return x, y


def bent(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The score falls with e^(x/2), and has a noise of its own."""
    return x, 0.3 * rng.normal(size=len(x)) - np.exp(x / 2)


def heavy(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Student's t with 5 degrees of freedom in both: some runs are far out."""
    far = np.sqrt(5 / rng.chisquare(5, len(x)))
    return x * far, y * far


def spreading(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The score's noise is as large as x is far from its mean."""
    return x, 0.8 * np.abs(x) * rng.normal(size=len(x)) - x


WORLDS = {
    "normal, −0.6": (-0.6, None),
    "normal, −0.9": (-0.9, None),
    "normal, −0.98": (-0.98, None),
    "curved": (0.0, bent),
    "heavy tails": (-0.9, heavy),
    "spread grows": (0.0, spreading),
}
ROWS = (8, 12, 20, 36)
MANY = 1_000_000
"""Rows whose coefficients are taken for the truth of a world."""

SHAPE, MORE = (6, 3, 2), (6, 6, 1)
"""Ladders, budgets and seeds of studies in which loss and score follow size."""

DESIGNS = (
    Design(6, 3, 2, 0.0, 0.0, 0.7),
    Design(6, 3, 2, -0.8, -0.8, 0.7),
    Design(6, 3, 2, -0.8, -0.3, 0.5, 0.05),
    Design(6, 3, 2, 0.0, 0.0, 0.5, 0.2),
    Design(6, 3, 2, -0.8, -0.8, 0.0),
    Design(3, 6, 2, -0.8, -0.3, 0.5),
    Design(4, 1, 5, -0.6, -0.6, 0.5),
    Design(10, 1, 10, 0.0, 0.0, 0.4, 0.4),
    Design(20, 3, 2, -0.6, -0.2, 0.5),
    Design(40, 3, 2, 0.0, 0.0, 0.6),
)


def coverage(design: Design, studies: int) -> dict[str, dict[str, float]]:
    """Shares of ``studies``: by coefficient, how often each interval holds the truth, and p falls below 0.05."""
    ladder, seed = design.labels()
    groups = Groups.of(len(ladder), {"ladder": ladder, "seed": seed})
    hits: dict[str, dict[str, float]] = {kind: defaultdict(float) for kind in KINDS}
    rng = np.random.default_rng(0)
    for study in range(studies):
        x, y = design.draw(rng)
        alone = correlate(x, y, permutations=PERMUTATIONS, seed=study)
        grouped = correlate(x, y, groups=groups, permutations=PERMUTATIONS, seed=study)
        counts = group_counts(DRAWS, design.ladders, rng)[:, ladder]
        for kind in KINDS:
            truth, nothing = design.truth[kind], Control.nothing(len(x))
            low, high = np.nanquantile(coefficient(kind, x, y, counts, nothing), [0.025, 0.975])
            found = hits[kind]
            for name, ends in (
                ("alone", (alone.of(kind).low, alone.of(kind).high)),
                ("bootstrap", (low, high)),
                ("groups", (grouped.of(kind).low, grouped.of(kind).high)),
            ):
                found[name] += (ends[0] <= truth <= ends[1]) / studies
            found["width"] += (grouped.of(kind).high - grouped.of(kind).low) / studies
            found["p alone"] += (alone.of(kind).p < 0.05) / studies
            found["p"] += (grouped.of(kind).p < 0.05) / studies
    return {kind: dict(found) for kind, found in hits.items()}


def standing_alone(world: str, rows: int, truth: dict[Kind, float], studies: int) -> dict[Kind, dict[str, float]]:
    """Of ``rows`` runs that share nothing: how often each interval holds the ``truth`` of a world."""
    hits: dict[Kind, dict[str, float]] = {kind: defaultdict(float) for kind in KINDS}
    rng, groups, nothing = np.random.default_rng(rows), Groups(rows, {}), Control.nothing(rows)
    for _ in range(studies):
        x, y = of_world(world, rows, rng)
        found = correlate(x, y, order=np.arange(rows)[None])
        for kind in KINDS:
            c = found.of(kind)
            spread = spread_of(z_statistic(kind, x, y, nothing), groups, nothing)
            away = abs(spread.values[0] - np.arctanh(truth[kind]))
            jackknife = stats.t.ppf(0.975, spread.freedom[0]) * spread.errors[0]
            hits[kind]["Fisher z"] += (away <= stats.norm.ppf(0.975) * fisher_error(kind, c.r, rows)) / studies
            hits[kind]["jackknife"] += (away <= jackknife) / studies
            hits[kind]["told"] += (c.low <= truth[kind] <= c.high) / studies
            hits[kind]["width"] += (c.high - c.low) / studies
    return {kind: dict(found) for kind, found in hits.items()}


def of_world(world: str, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Losses and scores of runs that share nothing."""
    r, change = WORLDS[world]
    x, noise = rng.normal(size=(2, rows))
    y = r * x + np.sqrt(1 - r * r) * noise
    return (x, y) if change is None else change(x, y, rng)


def truths(world: str) -> dict[Kind, float]:
    """Each coefficient over MANY runs."""
    x, y = of_world(world, MANY, np.random.default_rng(1))
    found = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    return {kind: float(found[kind](x, y).statistic) for kind in KINDS}


def given_size(studies: int, effect: float, degree: int, shape: tuple[int, int, int]) -> dict[str, float]:
    """Partial coefficients given log FLOPs of ladders × budgets × seeds: how often 0 lies outside the interval.

    Loss falls with log FLOPs, the score rises with them, curved where ``degree`` is 2; ``effect`` is what the rest of
    loss does to the rest of the score, both with a part that a ladder shares.
    """
    design = Design(*shape, -effect, -effect, 0.5)
    ladder, _ = design.labels()
    budget = np.indices(shape)[1].reshape(-1)
    size = np.log(24.0 * (ladder + 2)) * 3 + np.log(np.geomspace(200, 1000, shape[1]))[budget]
    size = (size - size.mean()) / size.std()
    groups = Groups.of(len(ladder), {"ladder": ladder})
    out: dict[str, float] = defaultdict(float)
    rng = np.random.default_rng(0)
    for _ in range(studies):
        loss, score = design.draw(rng)
        loss, score = loss - 4 * size, score + 4 * size + (1.5 * size**2 if degree == 2 else 0)
        for name, control in (("plain", None), ("given", Control(size[:, None], degree))):
            found = correlate(loss, score, groups=groups, control=control, permutations=PERMUTATIONS)
            for kind in KINDS:
                out[f"{name} {kind}"] += (not found.of(kind).low <= 0 <= found.of(kind).high) / studies
    return dict(out)


def best_bin(studies: int, better: float) -> dict[str, float]:
    """Eight losses of a study of 12 ladders × 3: how often some bin's p is below 0.05, alone and for the best picked.

    Bins are the mean and noise of their own; the score goes with the mean, and by ``better`` with the third bin.
    """
    ladder = np.repeat(np.arange(12), 3)
    groups = Groups.of(36, {"ladder": ladder})
    out: dict[str, float] = defaultdict(float)
    rng = np.random.default_rng(0)
    for study in range(studies):
        shared = rng.normal(size=12)[ladder] + rng.normal(size=36)
        bins = shared[:, None] + rng.normal(size=(36, 8))
        mean = bins.mean(axis=1)
        own = rng.normal(size=12)[ladder] + rng.normal(size=36)
        score = -(1 - better) * mean - better * bins[:, 2] + own
        rows = compare_bins(mean, bins, score, groups=groups, kinds=("pearson",), seed=study).rows["pearson"]
        better_bins = [row for row in rows if row.difference > 0]
        out["any alone"] += any(row.p < 0.05 for row in better_bins) / studies
        out["any picked"] += any(row.p_best < 0.05 for row in better_bins) / studies
        out["third picked"] += (rows[2].difference > 0 and rows[2].p_best < 0.05) / studies
    return dict(out)


def percent(share: float) -> str:
    """In a table."""
    return f"{100 * share:.1f} %"


def told(columns: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown, its columns parted by bars."""
    print("\n".join(markdown.table(columns.split("|"), rows)), end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500, help="simulated of each design (%(default)s)")
    args = parser.parse_args()
    rows = []
    for world in WORLDS:
        truth = truths(world)
        for count in ROWS:
            alone = standing_alone(world, count, truth, args.studies)
            for kind in KINDS:
                shares = [percent(alone[kind][name]) for name in ("Fisher z", "jackknife", "told")]
                rows.append([world, str(count), kind, f"{truth[kind]:+.2f}", *shares, f"{alone[kind]['width']:.2f}"])
    told("runs alone|rows|coefficient|truth|Fisher z|jackknife|correlate|mean width", rows)
    rows = []
    for design in DESIGNS:
        found = coverage(design, args.studies)
        for kind in KINDS:
            of, shared = found[kind], f"{design.ladder:g}, {design.seed:g}"
            size = f"{design.ladders} × {design.budgets} × {design.seeds}"
            rows.append([size, shared, kind, f"{design.truth[kind]:+.2f}"])
            rows[-1] += [percent(of[name]) for name in ("alone", "bootstrap", "groups")] + [f"{of['width']:.2f}"]
            null = not design.truth[kind]
            rows[-1] += [percent(of["p alone"]), percent(of["p"])] if null else ["–", "–"]
    told(
        "ladders × budgets × seeds|share of ladder, seed|coefficient|truth|runs alone|bootstrap of ladders|"
        "with groups|mean width|p < 0.05, alone|p < 0.05, groups",
        rows,
    )
    rows = []
    for effect, degree, shape in ((0.0, 1, SHAPE), (0.0, 1, MORE), (0.0, 2, SHAPE), (0.8, 1, SHAPE)):
        of = given_size(args.studies, effect, degree, shape)
        size = " × ".join(map(str, shape))
        for kind in KINDS:
            shares = [percent(of[f"{name} {kind}"]) for name in ("plain", "given")]
            rows.append([size, f"{-effect or 0:g}", str(degree), kind, *shares])
    told("ladders × budgets × seeds|effect given size|degree|coefficient|0 outside: plain|0 outside: given size", rows)
    rows = []
    for better in (0.0, 0.5, 1.0):
        of = best_bin(args.studies, better)
        rows.append([f"{better:g}", *(percent(of[name]) for name in ("any alone", "any picked", "third picked"))])
    told("weight of the third bin|some bin better, p alone|some bin better, p of the best|the third", rows)


if __name__ == "__main__":
    command.run(main)
