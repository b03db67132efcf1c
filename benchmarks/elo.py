"""Ratings of ten models from 100,000 battles with 1,000 bootstraps, timed; and whether 95 % intervals hold the truth.

    python -m benchmarks.elo --rounds 3
    python -m benchmarks.elo --coverage --studies 1000

The floor is what any bootstrap over prompts does, with each prompt's counts at hand: drawing prompts and adding up
their counts. The rest is reading names, Newton's method 1,001 times, the sandwich, and ranks. The row "next" is one
question to ``next_pairs`` for 50 players with as many votes. The floor and "processor" are the processor time of all
threads, "measured" is what the clock on the wall showed; on a quiet machine it shows at most the processor time.

Coverage: each study draws its prompts' (and judges') own strengths anew. The truth is the fit to the expected counts
over 100,000 prompts, which is what studies of any size estimate. With 1,000 studies a share of 95 % is known within
1.4 points.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.markdown import table
from scaling.battle_counts import OUTCOMES, cluster_index, count_battles
from scaling.davidson import ELO, Design, chances, fit
from scaling.elo import rate
from scaling.next_battle import next_pairs

LIMIT = 10.0
"""Seconds that the ratings may take on two cores."""
SHAPES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "1,632 prompts": (10, 1632, {}),
    "33,333 prompts": (10, 33_333, {}),
    "100,000 prompts": (10, 100_000, {}),
    "33,333 prompts, side bias": (10, 33_333, {"side_bias": "all"}),
    "1,632 prompts, side bias a judge": (10, 1632, {"side_bias": "judge"}),
    "1,632 prompts, a covariate": (10, 1632, {"covariates": ("words",)}),
    "1,632 prompts, 50 models": (50, 1632, {}),
}
BATTLES, BOOTSTRAPS = 100_000, 1000


@dataclass(frozen=True)
class World:
    """Where battles come from: strengths (natural units), ties, sides, and how far prompts and judges differ."""

    strength: tuple[float, ...]
    prompts: int
    per_prompt: int
    ties: float = 0.5
    luck: float = 0.0
    """Spread of a player's strength from prompt to prompt."""
    side: float = 0.0
    """Log-odds of the left."""
    lopsided: bool = False
    """Whether the first players stand left nine times in ten."""
    judges: int = 0
    taste: float = 0.0
    """Spread of a player's strength from judge to judge."""
    zipf: float = 0.0
    """Judge k votes as k^(−zipf); 0: all alike."""
    fresh: int = 0
    """If not 0, so many battles, each on a prompt of its own, are all that the last player has."""

    def battles(self, rng: np.random.Generator) -> pd.DataFrame:
        """One study: columns prompt, left, right, outcome, judge."""
        players, count = len(self.strength), self.prompts * self.per_prompt
        prompt = np.repeat(np.arange(self.prompts), self.per_prompt)
        judge = rng.integers(max(self.judges, 1), size=count)
        if self.zipf:
            votes = np.arange(1, self.judges + 1) ** -self.zipf
            judge = rng.choice(self.judges, size=count, p=votes / votes.sum())
        left, right = self._seats(count, players - bool(self.fresh), rng)
        own = np.arange(self.fresh) * self.per_prompt
        left[own] = players - 1
        right[own] = rng.integers(players - 1, size=self.fresh)
        strength = np.array(self.strength)
        local = self.luck * rng.normal(size=(self.prompts, players))
        liked = self.taste * rng.normal(size=(max(self.judges, 1), players))
        gap = strength[left] - strength[right] + self.side
        gap += local[prompt, left] - local[prompt, right] + liked[judge, left] - liked[judge, right]
        return pd.DataFrame(
            {
                "prompt": prompt,
                "left": names(left),
                "right": names(right),
                "outcome": np.array(OUTCOMES)[drawn(gap, self.ties, rng)],
                "judge": [f"j{j}" for j in judge],
            }
        )

    def truth(self, rng: np.random.Generator, with_side: bool) -> np.ndarray:
        """Strengths (mean 0) and, with ``with_side``, the left's log-odds, as studies of any size estimate them."""
        players = len(self.strength)
        left, right = (part.ravel() for part in np.meshgrid(range(players), range(players), indexing="ij"))
        left, right = left[left != right], right[left != right]
        order = np.lexsort((np.maximum(left, right), np.minimum(left, right)))
        left, right = left[order], right[order]
        spread = np.hypot(self.luck, self.taste) * np.sqrt(2) * rng.normal(size=(100_000, 1))
        strength = np.array(self.strength)
        counts = np.stack(
            [
                np.mean(chances(strength[i] - strength[j] + self.side + spread, np.log(self.ties)), axis=(1, 2))
                for i, j in zip(left, right, strict=True)
            ]
        )
        if self.lopsided:
            counts = counts * np.where(left < right, 1.8, 0.2)[:, None]
        z = np.ones((len(left), int(with_side)))
        return fit(Design(left, right, z, players), 1e6 * counts[None])[0, :-1]

    def _seats(self, count: int, players: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        left = rng.integers(players, size=count)
        right = (left + rng.integers(1, players, size=count)) % players
        if not self.lopsided:
            return left, right
        swap = (left > right) == (rng.random(count) < 0.9)
        return np.where(swap, right, left), np.where(swap, left, right)


WORLDS: dict[str, tuple[World, dict[str, Any]]] = {
    "alike prompts": (World((0.8, 0.3, 0.3, -0.4, -1.0), 60, 10), {}),
    "prompts differ": (World((0.8, 0.3, 0.3, -0.4, -1.0), 60, 10, luck=0.8), {}),
    "prompts differ, sides uneven": (
        World((0.8, 0.3, 0.3, -0.4, -1.0), 60, 10, luck=0.8, side=0.3, lopsided=True),
        {"side_bias": "all"},
    ),
    "15 prompts that differ": (World((0.8, 0.3, 0.3, -0.4, -1.0), 15, 40, luck=0.8), {}),
    "300 prompts, 2 battles each": (World((0.8, 0.3, 0.3, -0.4, -1.0), 300, 2, luck=0.8, ties=0.2), {}),
    "prompts and 25 judges differ": (
        World((0.8, 0.3, 0.3, -0.4, -1.0), 60, 20, luck=0.6, judges=25, taste=0.4),
        {"cluster": ("prompt", "judge")},
    ),
    "12 judges, votes by Zipf": (
        World((0.6, 0.2, -0.2, -0.6), 60, 7, ties=0.4, judges=12, taste=1.0, zipf=1.0),
        {"cluster": ("prompt", "judge")},
    ),
    "25 judges, few have most votes": (
        World((0.6, 0.2, -0.2, -0.6), 60, 7, ties=0.4, judges=25, taste=1.0, zipf=1.5),
        {"cluster": ("prompt", "judge")},
    ),
    "ten equal models": (World((0.0,) * 10, 100, 10, luck=0.5), {}),
    "equal models, one with 3 battles": (World((0.0,) * 6, 100, 3, ties=1e-9, fresh=3), {}),
}


def names(index: np.ndarray) -> np.ndarray:
    """Players by number: m0, m1, …"""
    return np.array([f"m{i}" for i in range(int(index.max()) + 1)], dtype=object)[index]


def drawn(gap: np.ndarray, ties: float, rng: np.random.Generator) -> np.ndarray:
    """How battles of these log-odds end: index into OUTCOMES."""
    chance = np.stack(chances(gap, np.log(ties)), axis=-1)
    return (rng.random(len(gap))[:, None] > chance.cumsum(-1)[:, :2]).sum(-1)


def coverage(world: World, options: dict[str, Any], studies: int, bootstraps: int, seed: int = 0) -> dict[str, float]:
    """Shares of ``studies``: ratings in their intervals of both kinds, the left side in its, all ranks in theirs.

    Beside them how wide the sandwich's intervals are, in the bootstrap's width.
    """
    side = options.get("side_bias") == "all"
    truth = world.truth(np.random.default_rng(seed + 1), side)
    strength = np.array(world.strength)
    rank = {f"m{i}": 1 + int((strength > one).sum()) for i, one in enumerate(strength)}
    elo = {f"m{i}": 1000 + ELO * one for i, one in enumerate(truth[: len(strength)])}
    hits: dict[str, list[float]] = {"bootstrap": [], "sandwich": [], "side": [], "ranks": [], "width": []}
    for study in range(studies):
        found = rate(world.battles(np.random.default_rng((seed, study))), draws=bootstraps, seed=study, **options)
        hits["bootstrap"] += [row.low <= elo[row.name] <= row.high for row in found.ratings]
        hits["sandwich"] += [row.sandwich_low <= elo[row.name] <= row.sandwich_high for row in found.ratings]
        hits["side"] += [row.low <= ELO * truth[-1] <= row.high for row in found.effects]
        hits["ranks"].append(all(row.rank_low <= rank[row.name] <= row.rank_high for row in found.ratings))
        hits["width"] += [(row.sandwich_high - row.sandwich_low) / (row.high - row.low) for row in found.ratings]
        if found.intervals != "bootstrap":
            hits["bootstrap"] = []
    return {name: float(np.mean(values)) if values else float("nan") for name, values in hits.items()}


def timed(players: int, prompts: int, options: dict[str, Any], rounds: int) -> dict[str, float]:
    """Medians of seconds: processor time of the floor and of ``rate``, and the latter's time on the wall."""
    rng = np.random.default_rng(0)
    world = World(tuple(np.linspace(-1, 1, players)), BATTLES, 1, judges=3)
    battles = world.battles(rng)
    if prompts < BATTLES:
        battles["prompt"] = rng.integers(prompts, size=BATTLES)
    battles["words"] = rng.normal(size=BATTLES).round(3)
    counted = count_battles(battles)
    clusters = counted.clusters(*cluster_index(battles, "prompt"))
    floor, measured, worked = [], [], []
    for _ in range(rounds):
        work = time.process_time()
        for _ in clusters.resampled(BOOTSTRAPS, np.random.default_rng(0)):
            pass
        floor.append(time.process_time() - work)
        start, work = time.perf_counter(), time.process_time()
        rate(battles, draws=BOOTSTRAPS, **options)
        measured.append(time.perf_counter() - start)
        worked.append(time.process_time() - work)
    times = {"floor_s": floor, "processor_s": worked, "measured_s": measured}
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def next_timed(rounds: int) -> float:
    """Seconds of one ``next_pairs`` for 50 players and 100,000 votes, the median."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(41, [0.4, 0.4, 0.2], size=(50, 50)).astype(np.float64)
    counts[np.arange(50), np.arange(50)] = 0
    taken = []
    for _ in range(10 * rounds):
        start = time.perf_counter()
        next_pairs(counts)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time ratings, or count how often their intervals hold the truth.")
    parser.add_argument("--rounds", type=int, default=3, help="medians over so many (%(default)s)")
    parser.add_argument("--coverage", action="store_true", help="simulate studies instead")
    parser.add_argument("--studies", type=int, default=1000, help="of each kind (%(default)s)")
    parser.add_argument("--bootstraps", type=int, default=400, help="of each study (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args()
    if args.coverage:
        held = {
            name: coverage(world, options, args.studies, args.bootstraps) for name, (world, options) in WORLDS.items()
        }
        shown = [
            [
                name,
                *(f"{100 * row[key]:.1f} %" if row[key] == row[key] else "" for key in list(row)[:4]),
                f"{row['width']:.2f}",
            ]
            for name, row in held.items()
        ]
        columns = ["world", "bootstrap", "sandwich", "left side", "all ranks", "width, sandwich / bootstrap"]
        finite = {name: {key: x if x == x else None for key, x in row.items()} for name, row in held.items()}
        print(json.dumps(finite) if args.json else "\n".join(table(columns, shown)))
        return
    times: dict[str, Any] = {
        name: timed(players, prompts, options, args.rounds) for name, (players, prompts, options) in SHAPES.items()
    }
    following = next_timed(args.rounds)
    rows = [
        [f"{BATTLES:,} battles, {name}", *(f"{seconds:.2f} s" for seconds in row.values()), f"{LIMIT:.0f} s"]
        for name, row in times.items()
    ]
    rows.append(["next, 50 players", "", "", f"{1000 * following:.1f} ms", ""])
    times["next"] = {"measured_s": following}
    print(
        json.dumps(times)
        if args.json
        else "\n".join(table(["ratings", "floor", "processor", "measured", "limit"], rows))
    )


if __name__ == "__main__":
    main()
