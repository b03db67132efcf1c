"""Elo: closed forms for two players, scipy's optimum, known ratings from simulated battles, interval coverage."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from elo_cases import battles, davidson, simulate
from scipy import optimize

from scaling.davidson import ELO, PRIOR_SD
from scaling.elo import rate
from scaling.errors import TableError


def test_two_players_have_a_closed_form() -> None:
    wins, losses, ties = 6000, 2000, 1000
    table = rate(battles(wins, losses, ties), draws=0)
    gap = table.ratings[0].elo - table.ratings[1].elo
    assert gap == pytest.approx(400 * np.log10(wins / losses), rel=1e-3)  # the weak prior pulls by less than this
    assert table.tie_strength == pytest.approx(ties / np.sqrt(wins * losses), rel=1e-3)
    assert np.mean([rating.elo for rating in table.ratings]) == pytest.approx(1000)
    expected = (wins + ties / 2) / (wins + losses + ties)
    assert table.win_rates().loc["a", "b"] == pytest.approx(expected, abs=1e-4)
    assert table.win_rates().loc["b", "a"] == pytest.approx(1 - expected, abs=1e-4)


def test_optimum_is_scipys() -> None:
    table = simulate(np.array([0.9, 0.1, -0.3, -0.7]), 40, 4, 0.6, seed=2)
    names = sorted(set(table["left"]))
    left, right = table["left"].map(names.index).to_numpy(), table["right"].map(names.index).to_numpy()
    kind = table["outcome"].map(["left", "right", "tie"].index).to_numpy()

    def negative(theta: np.ndarray) -> float:
        chance = davidson(theta[left], theta[right], np.exp(theta[-1]))
        return float(-np.log(chance[np.arange(len(kind)), kind]).sum() + (theta**2).sum() / (2 * PRIOR_SD**2))

    best = optimize.minimize(negative, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).x
    found = {rating.name: rating.elo for rating in rate(table, draws=0).ratings}
    for name, value in zip(names, best[:4] - best[:4].mean(), strict=True):
        assert found[name] == pytest.approx(1000 + ELO * value, abs=0.01)


def test_sides_do_not_matter_and_mirrored_battles_count() -> None:
    table = simulate(np.array([0.5, 0.0, -0.5]), 30, 6, 0.4, seed=0)
    swapped = table.rename(columns={"left": "right", "right": "left"})
    swapped["outcome"] = swapped["outcome"].map({"left": "right", "right": "left", "tie": "tie"})
    assert rate(table, draws=20).to_json() == rate(swapped, draws=20).to_json()


def test_known_ratings_are_inside_their_intervals() -> None:
    strength = np.array([0.8, 0.3, 0.0, -0.4, -0.7])
    hits = total = 0
    for seed in range(40):
        table = rate(simulate(strength, 120, 8, 0.5, seed), draws=200, seed=seed)
        for rating in table.ratings:
            truth = 1000 + ELO * (strength[int(rating.name[1:])] - strength.mean())
            hits += rating.low <= truth <= rating.high
            total += 1
    assert 0.90 <= hits / total <= 0.985


def test_battles_of_one_prompt_move_together() -> None:
    strength = np.array([0.4, 0.0, -0.4])
    table = simulate(strength, 60, 20, 0.3, seed=1, luck=1.5)
    alone = table.assign(prompt=range(len(table)))
    width = [np.mean([r.high - r.low for r in rate(frame, draws=300).ratings]) for frame in (table, alone)]
    assert width[0] > 1.3 * width[1]


def test_an_all_winning_run_stays_finite_and_first() -> None:
    table = rate(pd.concat([battles(50, 0, 0), battles(20, 20, 10, "b", "c")]), draws=100)
    assert table.ratings[0].name == "a" and 1000 < table.ratings[0].elo < 3000
    assert all(np.isfinite([rating.low, rating.high]).all() for rating in table.ratings)
    assert table.separated == (("a",), ("b", "c"))  # and it is said that no interval of a can be believed
    assert rate(pd.concat([battles(50, 0, 1), battles(20, 20, 10, "b", "c")]), draws=0).separated == ()
    assert rate(battles(2, 0, 0).assign(left="b", right="a"), draws=0).separated == (("a",), ("b",))


def test_a_single_pair_of_ties_is_even_and_a_repeated_table_is_rated_the_same() -> None:
    ties = rate(battles(0, 0, 30), draws=50)
    assert [rating.elo for rating in ties.ratings] == pytest.approx([1000, 1000])
    assert ties.win_rates().loc["a", "b"] == pytest.approx(0.5)
    assert [(rating.rank, rating.rank_low, rating.rank_high) for rating in ties.ratings] == [(1, 1, 2)] * 2
    table = simulate(np.array([0.5, 0.0, -0.5]), 30, 6, 0.4, seed=0)
    once, twice = rate(table, draws=0), rate(pd.concat([table, table]), draws=0)
    for one, two in zip(once.ratings, twice.ratings, strict=True):
        assert two.battles == 2 * one.battles
        assert two.elo == pytest.approx(one.elo, abs=1.0)  # twice the battles, so half the prior's pull
        # The same prompts again are no new prompts: nothing is known better.
        assert two.sandwich_high - two.sandwich_low == pytest.approx(one.sandwich_high - one.sandwich_low, rel=0.02)


def test_bad_battles_are_told_in_one_line() -> None:
    def complaint(frame: pd.DataFrame) -> str:
        with pytest.raises(TableError) as caught:
            rate(frame)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    good = battles(3, 2, 1)
    wrong = good.copy()
    wrong.loc[2, "outcome"] = "draw"
    assert complaint(wrong) == "outcome='draw' (row 3): expected one of left, right, tie"
    assert "did you mean 'outcomes'" in complaint(good.rename(columns={"outcome": "outcomes"}))
    assert complaint(good.assign(outcome=[*good["outcome"][:4], None, "tie"])) == (
        "outcome=blank (row 5): expected one of left, right, tie"
    )
    assert "against itself" in complaint(good.assign(right="a"))
    assert "never met" in complaint(pd.concat([good, battles(1, 1, 1, "c", "d")]))
