"""What is fitted: published worths of a published table, sides, covariates and anchors beside scipy's optimum."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from elo_cases import battles, simulate
from scipy import optimize, stats

from scaling.davidson import ELO, PRIOR_SD, Design, fit, hessian
from scaling.elo import rate
from scaling.errors import TableError

PUDDING = np.array(
    [
        (1, 2, 19, 22, 16),
        (1, 3, 16, 19, 12),
        (1, 4, 18, 23, 13),
        (1, 5, 13, 19, 18),
        (1, 6, 18, 21, 12),
        (2, 3, 19, 19, 10),
        (2, 4, 23, 19, 9),
        (2, 5, 16, 20, 12),
        (2, 6, 22, 20, 12),
        (3, 4, 19, 20, 15),
        (3, 5, 16, 15, 17),
        (3, 6, 13, 18, 10),
        (4, 5, 17, 14, 16),
        (4, 6, 14, 19, 18),
        (5, 6, 11, 21, 12),
    ]
)
"""Six brands of chocolate pudding: i, j, i preferred, j preferred, no preference (Davidson 1970, example 2)."""
WORTH = [0.1388005, 0.1729985, 0.1617420, 0.1653930, 0.1586805, 0.2023855]
"""Davidson's worths of the brands (his iterations end there), as R's PlackettLuce gives them.

Below: ν, and standard errors of the log-worths of brands 2 to 6 against brand 1."""
TIES = 0.7468147
ERRORS = [0.1872168, 0.1935181, 0.1882110, 0.1927043, 0.1924059]


def test_davidsons_own_example() -> None:
    design = Design(PUDDING[:, 0] - 1, PUDDING[:, 1] - 1, np.zeros((15, 0)), 6)
    counts = PUDDING[None, :, 2:].astype(np.float64)
    theta = fit(design, counts, prior_sd=1e6)
    worth = np.exp(theta[0, :6])
    assert worth / worth.sum() == pytest.approx(WORTH, abs=3e-5)
    # ν of the paper has p_i + p_j + ν√(p_i p_j) below the line, as ours.
    assert np.exp(theta[0, 6]) == pytest.approx(TIES, abs=1e-4)
    known = np.linalg.inv(hessian(design, theta, counts.sum(-1))[0])
    errors = [np.sqrt(known[0, 0] + known[i, i] - 2 * known[0, i]) for i in range(1, 6)]
    assert errors == pytest.approx(ERRORS, rel=1e-3)

    rows = [
        {"left": f"b{i}", "right": f"b{j}", "outcome": kind}
        for i, j, *counted in PUDDING
        for kind, count in zip(("left", "right", "tie"), counted, strict=True)
        for _ in range(count)
    ]
    table = rate(pd.DataFrame(rows).assign(prompt=range(len(rows))), anchors={"b1": 0.0})
    found = {rating.name: rating for rating in table.ratings}
    for i in range(2, 7):
        assert found[f"b{i}"].elo == pytest.approx(ELO * np.log(WORTH[i - 1] / WORTH[0]), abs=0.2)
        # A battle a prompt, and a model that fits: the sandwich and the bootstrap agree with the likelihood.
        for low, high in (
            (found[f"b{i}"].low, found[f"b{i}"].high),
            (found[f"b{i}"].sandwich_low, found[f"b{i}"].sandwich_high),
        ):
            assert (high - low) / (2 * 1.96 * ELO) == pytest.approx(ERRORS[i - 2], rel=0.08)


def lean(table: pd.DataFrame, seed: int, side: dict[str, float], words: float) -> pd.DataFrame:
    """The same battles, the outcome drawn anew with an advantage of the left by judge, and by a number ``words``."""
    rng = np.random.default_rng(seed)
    strength = table["left"].str[1:].astype(int) - table["right"].str[1:].astype(int)
    judge = rng.choice(list(side), len(table))
    count = rng.normal(size=len(table)) * 30
    gap = -0.3 * strength.to_numpy() + np.array([side[one] for one in judge]) + words * count
    raised = np.exp(np.stack([gap / 2, -gap / 2, np.full(len(gap), np.log(0.5))], axis=1))
    chance = (raised / raised.sum(1, keepdims=True)).cumsum(1)
    kind = (rng.random(len(gap))[:, None] > chance[:, :2]).sum(1)
    return table.assign(outcome=np.array(["left", "right", "tie"])[kind], judge=judge, words=count)


def test_sides_and_covariates_are_scipys_optimum() -> None:
    table = lean(simulate(np.zeros(4), 60, 10, 0.5, seed=1), 2, {"ada": 0.5, "bob": -0.2}, 0.01)
    left = table["left"].str[1:].astype(int).to_numpy()
    right = table["right"].str[1:].astype(int).to_numpy()
    kind = table["outcome"].map(["left", "right", "tie"].index).to_numpy()
    z = np.stack([table["judge"] == "ada", table["judge"] == "bob", table["words"]], axis=1).astype(np.float64)
    scale = np.sqrt((z**2).mean(0))

    def negative(at: np.ndarray) -> float:
        gap = at[left] - at[right] + z @ (at[4:7] / scale)
        logits = np.stack([gap / 2, -gap / 2, np.full(len(gap), at[7])])
        chosen = logits[kind, np.arange(len(kind))] - np.log(np.exp(logits).sum(0))
        return float(-chosen.sum() + (at**2).sum() / (2 * PRIOR_SD**2))

    best = optimize.minimize(negative, np.zeros(8), method="BFGS", options={"gtol": 1e-8}).x
    found = rate(table, draws=0, side_bias="judge", covariates=["words"])
    for rating in found.ratings:
        own = best[int(rating.name[1:])] - best[:4].mean()
        assert rating.elo == pytest.approx(1000 + ELO * own, abs=0.01)
    assert [effect.name for effect in found.effects] == ["left side, judge=ada", "left side, judge=bob", "words"]
    for effect, value in zip(found.effects, best[4:7] / scale, strict=True):
        assert effect.elo == pytest.approx(ELO * value, abs=0.01)
    assert found.tie_strength == pytest.approx(np.exp(best[7]), rel=1e-4)
    # The unit of a covariate doesn't matter.
    metres = rate(table.assign(words=table["words"] / 1000), draws=0, side_bias="judge", covariates=["words"])
    assert metres.effects[2].elo == pytest.approx(1000 * found.effects[2].elo, rel=1e-6)


def test_ratings_stay_right_where_one_stands_left_more_often() -> None:
    rng = np.random.default_rng(0)
    first_left = rng.random(20_000) < 0.9
    won = rng.choice(["left", "right", "tie"], 20_000, p=[0.5, 0.3, 0.2])  # both are equal; who stands left wins more
    table = pd.DataFrame(
        {
            "prompt": range(20_000),
            "left": np.where(first_left, "a", "b"),
            "right": np.where(first_left, "b", "a"),
            "outcome": won,
        }
    )

    def gap(**options: str) -> float:
        found = {rating.name: rating.elo for rating in rate(table, draws=0, **options).ratings}
        return found["a"] - found["b"]

    assert gap() > 50  # 0.8 of the left's advantage of 89 points
    assert abs(gap(side_bias="all")) < 15
    (effect,) = rate(table, draws=0, side_bias="all").effects
    assert effect.low < 400 * np.log10(5 / 3) < effect.high
    assert effect.high - effect.low < 20


def test_a_side_that_cannot_be_told_from_strength_is_refused() -> None:
    with pytest.raises(TableError, match="left side: these battles can't tell it from the ratings"):
        rate(battles(5, 3, 2), side_bias="all")
    both = pd.concat([battles(5, 3, 2), battles(4, 4, 2, "b", "a")]).assign(words=0.0)
    assert len(rate(both, side_bias="all", draws=0).effects) == 1
    with pytest.raises(TableError, match="words: these battles can't tell"):
        rate(both, covariates=["words"])
    with pytest.raises(TableError, match=r"words=blank \(row 1, and 19 more\)"):
        rate(both.assign(words=None), covariates=["words"])


def test_one_anchor_shifts_the_scale_and_its_interval_is_a_difference() -> None:
    table = simulate(np.array([0.9, 0.1, -0.3, -0.7]), 60, 8, 0.6, seed=2)
    free, held = rate(table, draws=200), rate(table, draws=200, anchors={"m2": 1500.0})
    by_name = {rating.name: rating for rating in held.ratings}
    anchor = by_name["m2"]
    assert (anchor.elo, anchor.low, anchor.high) == pytest.approx((1500, 1500, 1500))
    assert held.scale == "m2 is 1500" and free.scale == "the runs' mean is 1000"
    names = [rating.name for rating in free.ratings]
    assert [rating.name for rating in held.ratings] == names
    for rating in free.ratings:
        free_anchor = next(one for one in free.ratings if one.name == "m2")
        assert by_name[rating.name].elo - 1500 == pytest.approx(rating.elo - free_anchor.elo)
        assert by_name[rating.name].rank_low == rating.rank_low  # differences, hence ranks, are as before
    i, j = names.index("m0"), names.index("m2")
    samples = free.samples[:, i] - free.samples[:, j]
    assert by_name["m0"].high - by_name["m0"].low == pytest.approx(
        np.ptp(np.quantile(samples, [0.025, 0.975])), rel=0.05
    )


def test_several_anchors_are_kept_and_the_others_fitted_given_these() -> None:
    table = simulate(np.array([0.9, 0.1, -0.3, -0.7]), 60, 8, 0.6, seed=2)
    given = {"m0": 1200.0, "m3": 920.0}
    found = rate(table, draws=100, anchors=given)
    for rating in found.ratings:
        if rating.name in given:
            assert (rating.elo, rating.low, rating.high) == pytest.approx((given[rating.name],) * 3)
    left = table["left"].str[1:].astype(int).to_numpy()
    right = table["right"].str[1:].astype(int).to_numpy()
    kind = table["outcome"].map(["left", "right", "tie"].index).to_numpy()

    def negative(at: np.ndarray) -> float:
        theta = np.array([140 / ELO, at[0], at[1], -140 / ELO])
        gap = theta[left] - theta[right]
        logits = np.stack([gap / 2, -gap / 2, np.full(len(gap), at[2])])
        chosen = logits[kind, np.arange(len(kind))] - np.log(np.exp(logits).sum(0))
        return float(-chosen.sum() + (at**2).sum() / (2 * PRIOR_SD**2))

    best = optimize.minimize(negative, np.zeros(3), method="BFGS", options={"gtol": 1e-8}).x
    by_name = {rating.name: rating for rating in found.ratings}
    for place, name in enumerate(("m1", "m2")):
        assert by_name[name].elo == pytest.approx(1060 + ELO * best[place], abs=0.01)
        assert by_name[name].sandwich_low < by_name[name].elo < by_name[name].sandwich_high
    assert found.anchors_p > 0.05 and np.isnan(rate(table, draws=0, anchors={"m0": 1300.0}).anchors_p)
    assert rate(table, draws=0, anchors={"m0": 1300.0, "m3": 1250.0}).anchors_p < 1e-4  # some 280 points apart
    # With two anchors and many clusters the test is that of one difference.
    free = {rating.name: rating for rating in rate(table, draws=0, anchors={"m3": 920.0}).ratings}["m0"]
    error = (free.sandwich_high - free.elo) / stats.t.ppf(0.975, 59)
    size = abs(free.elo - 1200) / error
    assert found.anchors_p == pytest.approx(2 * stats.t.sf(size, 59), rel=1e-6)
    apart = pd.concat([battles(9, 6, 2, "a", "b"), battles(3, 7, 2, "c", "d")])
    joined = rate(apart, draws=0, anchors={"b": 1000.0, "c": 1000.0})  # known ratings connect what never met
    assert joined.ratings[0].name == "d"
    with pytest.raises(TableError, match=r"anchor='z': no battle of it; expected one of a, b"):
        rate(battles(5, 3, 2), anchors={"z": 1000.0})
