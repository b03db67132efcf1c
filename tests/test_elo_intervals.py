"""Intervals of ratings and ranks: brute-force jackknife, the bootstrap's moments, coverage of known truths."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from elo_cases import battles, simulate
from scipy import stats

from benchmarks.elo import WORLDS, coverage
from launch.elo_text import elo_text
from scaling import elo_estimate
from scaling.battle_counts import cluster_index, count_battles
from scaling.davidson import fit
from scaling.elo import rate
from scaling.errors import TableError
from scaling.rank_intervals import rank_intervals
from scaling.sandwich import jackknife, over_both


def test_sandwich_is_the_jackknife_over_prompts() -> None:
    table = simulate(np.array([0.8, 0.1, -0.2, -0.7]), 40, 12, 0.5, seed=3, luck=1.0)
    counted = count_battles(table)
    clusters = counted.clusters(*cluster_index(table, "prompt"))
    theta = fit(counted.design, clusters.total()[None])[0]
    found = jackknife(counted.design, theta, clusters)
    left_out = np.array(
        [fit(counted.design, (clusters.total() - one.toarray().reshape(-1, 3))[None])[0] for one in clusters.patterns]
    )[clusters.kind]
    expected = (left_out - theta).T @ (left_out - theta) * 39 / 40
    scale = np.sqrt(np.diag(expected)[:, None] * np.diag(expected))
    # Found without fitting anew: to first order, and θ up to a constant that ratings don't see.
    centre = np.eye(5)
    centre[:4, :4] -= 0.25
    assert np.abs(centre @ (found - expected) @ centre / scale).max() < 0.03


@pytest.mark.parametrize("prompts", [8, 400])
def test_resampled_counts_have_the_moments_of_drawn_prompts(prompts: int) -> None:
    """Many prompts of few kinds, and few prompts of a kind each, are drawn in different ways."""
    one = simulate(np.array([0.3, -0.3]), 400, 1, 0.5, seed=1)
    table = one.assign(prompt=np.arange(400) % prompts)
    counted = count_battles(table)
    clusters = counted.clusters(*cluster_index(table, "prompt"))
    assert (8 * len(clusters.times) < clusters.count) == (prompts == 400)
    draws = np.concatenate(list(clusters.resampled(20_000, np.random.default_rng(0)))).reshape(20_000, -1)
    assert (draws.sum(1) == 400).mean() == (1.0 if prompts == 400 else pytest.approx((draws.sum(1) == 400).mean()))
    whole = np.zeros((prompts, 3))
    np.add.at(whole, (table["prompt"].to_numpy(), counted.cell), 1)
    assert draws.mean(0) == pytest.approx(whole.sum(0), rel=0.01)
    around = whole - whole.mean(0)
    assert np.cov(draws.T) == pytest.approx(around.T @ around, abs=0.04 * np.abs(around.T @ around).max())


def test_one_step_of_newton_is_nearly_the_whole_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = simulate(np.array([0.8, 0.1, -0.2, -0.7]), 80, 12, 0.5, seed=3, luck=0.5)
    table["words"] = rng.normal(size=len(table))
    whole = rate(table, covariates=["words"], side_bias="all", draws=300)
    monkeypatch.setattr(elo_estimate, "MOST_ROWS", 10)
    fast = rate(table, covariates=["words"], side_bias="all", draws=300)
    for one, two in zip((*whole.ratings, *whole.effects), (*fast.ratings, *fast.effects), strict=True):
        assert one.elo == two.elo
        assert (two.low, two.high) == pytest.approx((one.low, one.high), abs=0.05 * (one.high - one.low))


def test_two_columns_to_cluster_by() -> None:
    table = simulate(np.array([0.6, 0.0, -0.6]), 30, 8, 0.5, seed=5, luck=0.8)
    alone = rate(table, draws=0)
    same = rate(table.assign(judge=table["prompt"]), draws=0, cluster=("prompt", "judge"))
    for one, two in zip(alone.ratings, same.ratings, strict=True):  # judges that are the prompts add nothing
        assert (one.sandwich_low, one.sandwich_high) == pytest.approx((two.sandwich_low, two.sandwich_high), abs=1e-6)
    table["judge"] = np.random.default_rng(0).integers(10, size=len(table))
    both = rate(table, draws=500, cluster=("prompt", "judge"))
    assert both.intervals == "sandwich" and both.clusters == {"prompt": 30, "judge": 10} and len(both.samples) == 500
    counted = count_battles(table)
    theta = fit(counted.design, counted.clusters(*cluster_index(table, "prompt")).total()[None])[0]
    parts = [
        jackknife(counted.design, theta, counted.clusters(*cluster_index(frame, "key")))
        for frame in (
            table.assign(key=table["prompt"]),
            table.assign(key=table["judge"]),
            table.assign(key=table["prompt"].astype(str) + "/" + table["judge"].astype(str)),
        )
    ]
    difference = parts[0] + parts[1] - parts[2]
    if np.linalg.eigvalsh(difference).min() > 0:
        assert over_both(*parts) == pytest.approx(difference)
    assert np.linalg.eigvalsh(over_both(np.eye(2) * 0.1, np.eye(2) * 0.1, np.eye(2))).min() == pytest.approx(1.0)
    with pytest.raises(TableError, match="expected one column or two"):
        rate(table, cluster=("prompt", "judge", "left"))


def test_degrees_of_freedom_are_those_of_clusters_of_one_size() -> None:
    """12 judges of whom the first has half of the votes are no 12 judges."""
    table = simulate(np.array([0.6, 0.0, -0.6]), 30, 8, 0.5, seed=5, luck=0.8)
    votes = np.array([120, *[11] * 10, 10])
    table["judge"] = np.random.default_rng(0).permutation(np.repeat(np.arange(12), votes))
    for cluster in (("judge",), ("prompt", "judge")):
        found = rate(table, draws=0, cluster=cluster)
        freedom = votes.sum() ** 2 / (votes**2).sum() - 1
        for place, rating in enumerate(found.ratings):
            arm = stats.t.ppf(0.975, freedom) * np.sqrt(found.covariance[place, place])
            assert (rating.low, rating.high) == pytest.approx((rating.elo - arm, rating.elo + arm))
    held = {"cluster": ("judge",), "draws": 0}
    free = {rating.name: rating for rating in rate(table, anchors={"m2": 1000.0}, **held).ratings}["m0"]
    size = (free.elo - 1060) / (free.high - free.elo) * stats.t.ppf(0.975, freedom)
    doubt = rate(table, anchors={"m0": 1060.0, "m2": 1000.0}, **held).anchors_p
    assert doubt == pytest.approx(2 * stats.t.sf(abs(size), freedom))


def test_few_prompts_give_wide_intervals_and_one_gives_none() -> None:
    table = simulate(np.array([0.4, -0.4]), 2, 60, 0.5, seed=0)
    two = rate(table, draws=200).ratings[0]
    assert two.sandwich_high - two.sandwich_low > 100  # Student's t with one degree of freedom
    one = rate(table.assign(prompt="p"), draws=200)
    assert one.intervals == "none" and len(one.samples) == 0
    assert all(np.isnan([r.low, r.high, r.sandwich_low]).all() for r in one.ratings)
    assert [(r.rank_low, r.rank_high) for r in one.ratings] == [(1, 2)] * 2
    assert all(row["low"] is None for row in one.to_json()["ratings"])  # type: ignore[attr-defined]


def test_without_a_bootstrap_intervals_are_the_sandwichs() -> None:
    table = rate(battles(30, 10, 5), draws=0)
    assert table.intervals == "sandwich" and table.samples.shape == (0, 2)
    assert [(r.low, r.high) for r in table.ratings] == [(r.sandwich_low, r.sandwich_high) for r in table.ratings]
    assert (table.ratings[0].rank_low, table.ratings[0].rank_high) == (1, 1)


def ranks_hold(strength: np.ndarray, seed: int, studies: int) -> float:
    """Share of normal studies with known error in which every true rank is in its interval."""
    rng = np.random.default_rng(seed)
    true = 1 + (strength[:, None] < strength).sum(1)
    held = 0
    for _ in range(studies):
        deviations = rng.normal(size=(500, len(strength)))
        low, high = rank_intervals(strength + rng.normal(size=len(strength)), deviations, 0.95)
        held += bool(((low <= true) & (true <= high)).all())
    return held / studies


def test_ranks_of_all_are_right_together() -> None:
    assert ranks_hold(np.zeros(6), 0, 1500) == pytest.approx(0.95, abs=0.013)  # any order claimed is an error
    assert ranks_hold(np.array([0.0, 0.0, 0.0, 9.0, 9.0]), 1, 600) >= 0.94
    assert ranks_hold(np.arange(6) * 2.0, 2, 600) >= 0.94
    far = rank_intervals(np.array([3.0, 50.0, 20.0]), np.random.default_rng(0).normal(size=(500, 3)), 0.95)
    assert [part.tolist() for part in far] == [[3, 1, 2], [3, 1, 2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "prompts differ, sides uneven",
        "15 prompts that differ",
        "prompts and 25 judges differ",
        "25 judges, few have most votes",
    ],
)
def test_intervals_hold_the_truth_in_95_of_100_studies(name: str) -> None:
    world, options = WORLDS[name]
    found = coverage(world, options, studies=200, bootstraps=200)
    for kind in ("bootstrap", "sandwich"):
        if np.isfinite(found[kind]):
            assert 0.925 <= found[kind] <= 0.975
    if options.get("side_bias"):
        assert 0.91 <= found["side"] <= 0.985
    assert found["ranks"] >= 0.93


def test_a_table_is_rated_the_same_with_the_same_seed_whatever_the_order_of_rows() -> None:
    table = simulate(np.array([0.6, 0.0, -0.6]), 30, 8, 0.5, seed=5)
    mixed = table.sample(frac=1, random_state=0)
    assert rate(table, draws=100, seed=3).to_json() == rate(mixed, draws=100, seed=3).to_json()
    assert isinstance(pd.DataFrame([vars(rating) for rating in rate(table, draws=0).ratings]), pd.DataFrame)


@pytest.mark.parametrize("prompts", [1, 3, 40])
def test_no_spread_no_interval(prompts: int) -> None:
    """Battles that end alike on every prompt: nothing is known of spread, and of ranks what a sign test says."""
    rows = [(f"p{i}", *pair, "left") for i in range(prompts) for pair in (("a", "b"), ("b", "a"), ("a", "b"))]
    table = rate(pd.DataFrame(rows, columns=["prompt", "left", "right", "outcome"]), draws=50)
    assert table.intervals == "none" and [rating.name for rating in table.ratings] == ["a", "b"]
    for rating in table.ratings:
        assert np.isnan([rating.low, rating.high, rating.sandwich_low, rating.sandwich_high]).all()
    ranks = [(rating.rank_low, rating.rank_high) for rating in table.ratings]
    assert ranks == ([(1, 1), (2, 2)] if prompts == 40 else [(1, 2), (1, 2)])  # 2^(1 − 3) is above 0.05
    assert ("alike" in elo_text({(): table}, (), {}, (), None)) == (prompts > 1)


def test_one_judge_is_told_as_one_and_not_as_alike() -> None:
    table = simulate(np.array([0.5, -0.5, 0.0]), 20, 3, 0.5, seed=0).assign(judge="ada")
    assert "no intervals from 20 prompts and 1 judge;" in elo_text(
        {(): rate(table, draws=10, cluster=("prompt", "judge"))}, (), {}, (), None
    )
