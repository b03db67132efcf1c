"""Made-up studies of which the truth is known, and their first screen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scaling.analysis import Analysis
from scaling.elo import rate
from scaling.first_screen import FirstScreen, first_screen
from scaling.next_steps import Names
from scaling.study import StudyTables, load_study

KINDS = ("rf", "rf/lognorm(0.00,1.00)")


def losses(
    apart: float,
    *,
    noise: float = 0.01,
    depths: Sequence[int] = (1, 2, 3),
    seeds: int = 3,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
) -> pd.DataFrame:
    """Results in which each kind's loss is ``apart`` times lower than the one's before it; ``noise`` a run's own."""
    rng = np.random.default_rng(seed)
    rows = []
    for depth, number in itertools.product(depths, range(seeds)):
        luck = 0.05 * rng.normal()  # of data and noise that a seed's runs share
        for place, kind in enumerate(kinds):
            log_loss = -0.3 * np.log(depth) + place * np.log1p(-apart) + luck + noise * rng.normal()
            known = {"run_id": f"{depth} {kind} {number}", "name": f"d{depth} {kind} s{number}", "dataset": "scenes"}
            size = {"depth": depth, "seed": number, "steps": 400, "train_flops": 1e12 * depth**3}
            rows.append({**known, **size, "formulation": kind, "val_loss": float(np.exp(log_loss))})
    return pd.DataFrame(rows)


def battles(
    results: pd.DataFrame, points: dict[str, float], prompts: int = 60, own: dict[str, float] | None = None
) -> pd.DataFrame:
    """Every pair of runs once a prompt; formulations are ``points`` Elo points apart, or runs worth their ``own``."""
    rng = np.random.default_rng(1)
    strength = own or dict(zip(results["name"], results["formulation"].map(points), strict=True))
    rows = []
    for prompt in range(prompts):
        for left, right in itertools.combinations(strength, 2):
            wins = rng.random() < 1 / (1 + 10 ** ((strength[right] - strength[left]) / 400))
            rows.append({"prompt": prompt, "left": left, "right": right, "outcome": "left" if wins else "right"})
    return pd.DataFrame(rows)


def tables(folder: Path, results: pd.DataFrame, fights: pd.DataFrame | None = None) -> StudyTables:
    folder.mkdir()
    results.to_csv(folder / "results.csv", index=False)
    if fights is not None:
        fights.to_csv(folder / "battles.csv", index=False)
    return load_study(folder)


def screen(folder: Path, results: pd.DataFrame, fights: pd.DataFrame | None = None) -> FirstScreen:
    known = tables(folder, results, fights)
    analysis = Analysis(questions={"": rate(fights, draws=200)} if fights is not None else {})
    return first_screen(known, analysis, None, Names("mine", "studies/mine"))
