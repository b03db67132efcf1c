"""Elo: closed forms for two players, scipy's optimum, known ratings from simulated battles, interval coverage."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from launch.elo import add_parsers
from scaling.davidson import ELO, PRIOR_SD
from scaling.elo import rate
from scaling.errors import TableError


def davidson(first: np.ndarray, second: np.ndarray, ties: float) -> np.ndarray:
    """Win, loss, tie probabilities written straight from Davidson 1970: [..., 3]."""
    p, q = np.exp(first), np.exp(second)
    raised = np.stack([p, q, ties * np.sqrt(p * q)], axis=-1)
    return raised / raised.sum(-1, keepdims=True)


def simulate(strength: np.ndarray, prompts: int, per_prompt: int, ties: float, seed: int, luck: float = 0.0):
    """Battles between random pairs; ``luck`` is the spread of strengths from prompt to prompt."""
    rng = np.random.default_rng(seed)
    count = prompts * per_prompt
    prompt = np.repeat(np.arange(prompts), per_prompt)
    left = rng.integers(len(strength), size=count)
    right = (left + rng.integers(1, len(strength), size=count)) % len(strength)
    local = strength + luck * rng.normal(size=(prompts, len(strength)))
    chance = davidson(local[prompt, left], local[prompt, right], ties)
    outcome = (rng.random(count)[:, None] > chance.cumsum(-1)).sum(-1)
    name = np.array([f"m{i}" for i in range(len(strength))])
    kinds = np.array(["left", "right", "tie"])
    return pd.DataFrame({"prompt": prompt, "left": name[left], "right": name[right], "outcome": kinds[outcome]})


def battles(wins: int, losses: int, ties: int, left: str = "a", right: str = "b") -> pd.DataFrame:
    outcome = ["left"] * wins + ["right"] * losses + ["tie"] * ties
    return pd.DataFrame({"prompt": range(len(outcome)), "left": left, "right": right, "outcome": outcome})


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
    assert "against itself" in complaint(good.assign(right="a"))
    assert "never met" in complaint(pd.concat([good, battles(1, 1, 1, "c", "d")]))


def test_elo_command_prints_one_object(tmp_path, capsys) -> None:
    battles(30, 10, 5).to_csv(tmp_path / "b.csv", index=False)
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers())
    for extra in (["--json"], []):
        args = parser.parse_args(["elo", str(tmp_path / "b.csv"), "--bootstrap", "50", *extra])
        assert args.run(args) == 0
        out = capsys.readouterr().out
        if extra:
            ratings = json.loads(out)["ratings"]
            assert all({"name", "elo", "low", "high", "battles", "rank"} <= set(row) for row in ratings)
            assert ratings[0]["name"] == "a" and ratings[0]["battles"] == 45
    assert "45 battles on 45 prompts" in out
