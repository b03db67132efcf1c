"""Luck of training on the first screen: equal recipes are rarely told apart, probabilities are what they say."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from first_screen_cases import KINDS, battles, losses, screen

from scaling.contest import by_elo, by_loss, by_rank
from scaling.elo import rate
from scaling.ranking import rank


@pytest.mark.parametrize(("depths", "seeds", "own"), [(1, 1, 0.005), (1, 3, 0.0), (3, 1, 0.005)])
def test_lengths_of_one_training_are_no_repetition(depths: int, seeds: int, own: float) -> None:
    """150 studies of equal recipes at three lengths, whose luck a training keeps: 5 % would be nominal."""
    settled = []
    for seed in range(150):
        rng = np.random.default_rng(1000 + seed)
        short = losses(0.0, noise=0.02, depths=range(1, depths + 1), seeds=seeds, seed=seed)
        longer = [short.assign(steps=steps, val_loss=short["val_loss"] * 0.8**k) for k, steps in enumerate((1, 2, 3))]
        results = pd.concat(longer, ignore_index=True)
        results["val_loss"] *= np.exp(own * rng.normal(size=len(results)))
        contest = by_loss(results)
        assert contest is not None and contest.sizes == depths and contest.seeds == seeds
        settled.append(contest.settled)
    assert np.mean(settled) < 0.12
    assert (np.mean(settled) == 0) == (depths * seeds == 1)  # of one training each nothing is known


def test_lengths_that_some_recipes_lack_cost_only_their_cells() -> None:
    """Without noise the truth is found, and the operator gives the effects that were found."""
    short = losses(0.1, noise=0.0, kinds=("rf", "v/cos", "eps/cos"))
    results = pd.concat([short, short.assign(steps=900, val_loss=short["val_loss"] * 0.7)], ignore_index=True)
    some = results[(results["formulation"] != "eps/cos") | (results["steps"] == 400) | (results["depth"] == 2)]
    contest = by_loss(some)
    assert contest is not None and contest.names == ("eps/cos", "v/cos", "rf")
    blocks = contest.blocks
    assert blocks is not None and np.ptp(blocks.effect) == pytest.approx(-2 * np.log(0.9))
    runs = some["val_loss"].reset_index(drop=True).set_axis(some.index).loc[list(blocks.runs)]
    np.testing.assert_allclose(blocks.operator @ np.log(runs.to_numpy()), blocks.effect, atol=1e-12)


@pytest.mark.parametrize(("kinds", "most"), [(3, 0.5), (8, 0.3), (24, 0.13)])
def test_the_first_of_many_equal_recipes_is_hardly_the_best(kinds: int, most: float) -> None:
    """The mean probability in 60 studies; the truth is one of so many."""
    names = tuple(f"k{number:02}" for number in range(kinds))
    found = [by_loss(losses(0.0, noise=0.02, depths=(1, 2), seeds=2, kinds=names, seed=seed)) for seed in range(60)]
    assert np.mean([contest.best for contest in found if contest is not None]) < most


def test_ties_share_the_probability(tmp_path: Path) -> None:
    """Losses that are equal to the last digit, and settings in which each of two is ahead by one of two measures."""
    contest = by_loss(losses(0.0, noise=0.0))
    assert contest is not None and contest.best == 0.5 and not contest.settled
    rows = [
        {"name": name, "setting": setting, "seed": seed, "clip": clip, "fid": fid}
        for name, clip, fid in (("a", 0.3, 9.0), ("b", 0.2, 5.0))
        for setting, seed in itertools.product("xyz", (0, 1))
    ]
    ranks = by_rank(rank(pd.DataFrame(rows), bootstrap=200))
    assert ranks is not None and ranks.best == 0.5 and ranks.ahead[1] == 0.5
    edge = losses(0.0, noise=0.0, kinds=("rf",))
    edge["val_loss"] = 0.5
    found = screen(tmp_path / "s", edge)
    assert not any("Deeper" in step.text or "smallest" in step.text for step in found.steps)


def test_one_training_each_settles_nothing(tmp_path: Path) -> None:
    """However surely its images or its sampler settings tell two runs apart."""
    results = losses(0.0, depths=(1,), seeds=1)
    found = screen(tmp_path / "s", results, battles(results, {KINDS[0]: 0.0, KINDS[1]: 200.0}))
    assert found.headline == f"Not decided: {KINDS[1]} is ahead by Elo, but nothing tells that from luck."
    assert "for these trainings alone, of others nothing is known: better with probability above" in found.surety[0]
    assert found.steps[0].text.startswith("One more seed of ") and "--set seed=1" in found.steps[0].command
    rows = [
        {"name": name, "setting": setting, "seed": 0, "clip": level, "fid": 1 - level}
        for name, level in (("a", 0.3), ("b", 0.2))
        for setting in "uvwxyz"
    ]
    contest = by_rank(rank(pd.DataFrame(rows), bootstrap=200))
    assert contest is not None and contest.ahead[1] > 0.99 and not contest.settled and contest.tied == ("a", "b")


def test_what_trainings_differ_by_asks_for_seeds_and_what_images_do_for_battles(tmp_path: Path) -> None:
    """Equal recipes: runs whose ratings differ by 200 points, or not, judged on 200 prompts or on 8."""
    results = losses(0.0, depths=(1, 2, 3), seeds=1)
    luck = dict(zip(results["name"], 200 * np.random.default_rng(3).normal(size=len(results)), strict=True))
    found = screen(tmp_path / "luck", results, battles(results, {}, 200, luck))
    assert found.steps[0].text.startswith("One more seed of rf and rf/lognorm(0.00,1.00): it tells luck from a lead")
    assert not any("battles" in step.text for step in found.steps)  # losses ask for the same seed, which is told once
    level = dict.fromkeys(results["name"], 0.0)
    assert "battles" in screen(tmp_path / "images", results, battles(results, {}, 8, level)).steps[0].text


@pytest.mark.parametrize("varies", [0.0, 0.01, 0.03])
def test_recipes_that_are_equal_on_average_are_rarely_told_apart(varies: float) -> None:
    """200 studies of 3 sizes and 2 seeds, whose recipes differ by size with a mean of nothing: 5 % would be nominal."""
    settled = []
    for seed in range(200):
        results = losses(0.0, noise=0.01, seeds=2, seed=seed)
        rng = np.random.default_rng(1000 + seed)
        shift = {(kind, depth): varies * rng.normal() for kind in KINDS for depth in (1, 2, 3)}
        keys = zip(results["formulation"], results["depth"], strict=True)
        results["val_loss"] *= np.exp([shift[key] for key in keys])
        contest = by_loss(results)
        settled.append(contest is not None and contest.settled)
    assert np.mean(settled) < 0.13


def test_ratings_of_equal_recipes_hold_the_luck_of_training() -> None:
    """40 studies of two equal recipes, 3 seeds, whose runs differ by 40 points: few are told apart."""
    results = losses(0.0, depths=(1,), seeds=3)
    settled = []
    for seed in range(40):
        luck = dict(zip(results["name"], 40 * np.random.default_rng(seed).normal(size=len(results)), strict=True))
        contest = by_elo(rate(battles(results, {}, 40, luck), draws=100), results)
        settled.append(contest is not None and contest.settled)
    assert np.mean(settled) < 0.2


def test_intervals_and_probabilities_hold_as_often_as_they_say() -> None:
    """300 studies of 2 recipes × 2 depths × 2 seeds; gaps are drawn widely, as the probability's prior is."""
    gaps = np.random.default_rng(7).normal(0, 0.08, 300)
    inside, chances, right = [], [], []
    for seed, gap in enumerate(gaps):
        found = by_loss(losses(gap, noise=0.03, depths=(1, 2), seeds=2, seed=seed))
        assert found is not None
        ours = found.names[0] == KINDS[1]
        truth = gap if ours else 1 - 1 / (1 - gap)
        inside.append(found.low <= truth <= found.high)
        chances.append(found.ahead[1])
        right.append(truth > 0)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.035)
    assert np.mean(right) == pytest.approx(np.mean(chances), abs=0.04)
