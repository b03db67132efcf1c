"""Rows that share a ladder or a seed: the jackknife against closed forms, and intervals in simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.correlation_coverage import Design
from scaling.bins import compare_bins
from scaling.coefficients import Control
from scaling.correlation import correlate
from scaling.dependence import Groups, Spread, jackknife
from scaling.errors import TableError


def ladders(groups: int, rows: int) -> Groups:
    return Groups.of(groups * rows, {"ladder": np.repeat(np.arange(groups), rows)})


def test_jackknife_of_a_mean_is_the_t_interval_of_the_groups_means() -> None:
    values = np.random.default_rng(0).normal(size=(6, 4)).cumsum(axis=1)
    groups = ladders(6, 4)
    spread = jackknife(lambda w: (w @ values.reshape(-1) / w.sum(axis=1))[:, None], groups)
    means = values.mean(axis=1)
    assert spread.errors[0] == pytest.approx(stats.sem(means), rel=1e-9) and spread.freedom[0] == 5
    assert spread.p_values()[0] == pytest.approx(stats.ttest_1samp(means, 0).pvalue, rel=1e-9)


def test_crossed_factors_add_and_share_their_degrees_of_freedom() -> None:
    table = np.random.default_rng(1).normal(size=(5, 3))
    row, column = np.indices(table.shape).reshape(2, -1)
    groups = Groups.of(15, {"row": row, "column": column})
    spread = jackknife(lambda w: (w @ table.reshape(-1) / w.sum(axis=1))[:, None], groups)
    parts = [stats.sem(table.mean(axis=1)) ** 2, stats.sem(table.mean(axis=0)) ** 2]
    assert spread.covariance[0, 0] == pytest.approx(sum(parts), rel=1e-9)
    assert spread.freedom[0] == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 2), rel=1e-9)


def test_p_of_the_largest_of_independent_values_is_sidaks() -> None:
    t = np.array([2.0, 2.5, 0.1, 1.0])
    spread = Spread(t, np.eye(4), np.full(4, 1e6))
    alone = spread.p_values()
    assert alone == pytest.approx(2 * stats.norm.sf(t), abs=1e-6)
    assert spread.p_of_largest(np.random.default_rng(0)) == pytest.approx(1 - (1 - alone) ** 4, abs=0.012)
    same = Spread(t, np.ones((4, 4)), np.full(4, 1e6))
    assert same.p_of_largest(np.random.default_rng(0)) == pytest.approx(alone, abs=0.012)


def test_without_spread_there_is_no_p() -> None:
    """Groups of 2, 3 and 1 rows in full agreement: leaving one out changes no rank, and p = 0 it is not."""
    groups = Groups.of(6, {"depth": np.array([0, 0, 1, 1, 1, 2])})
    x, y = np.array([0.9, 0.8, 0.75, 0.7, 0.65, 0.6]), np.arange(6.0)
    found = correlate(x, y, groups=groups)
    for c in (found.spearman, found.kendall):
        assert c.r == pytest.approx(-1) and (c.low, c.high) == (-1, 1) and np.isnan(c.p) and c.p_method == "none"
        assert c.interval.startswith("none: fewer than") and c.interval.endswith("groups")
    assert 0 < found.pearson.p < 1
    # A bin that is the mean's loss over and over lies nowhere beyond it, with nothing to judge that by.
    bins = compare_bins(x, np.stack([x, x[::-1]], axis=1), y, groups=groups, kinds=("spearman",)).rows["spearman"]
    assert all(np.isnan([row.low, row.high, row.p, row.p_best]).all() for row in bins)


def test_permutations_move_groups_whole() -> None:
    row, column = (index.repeat(2) for index in np.indices((4, 3)).reshape(2, -1))
    shuffle = np.random.default_rng(0).permutation(24)
    row, column = row[shuffle], column[shuffle]
    groups = Groups.of(24, {"ladder": row, "seed": column})
    assert groups.equal() and groups.counts == {"ladder": 4, "seed": 3}
    orders = groups.permutations(50, np.random.default_rng(0))
    assert (np.sort(orders, axis=1) == np.arange(24)).all() and len(np.unique(orders, axis=0)) == 50
    for factor in (row, column):
        moved = factor[orders]
        for group in range(factor.max() + 1):
            assert all(len(set(order[factor == group])) == 1 for order in moved)
    assert not Groups.of(23, {"ladder": row[1:], "seed": column[1:]}).equal()


def test_p_of_groups_is_that_of_as_many_rows() -> None:
    """Where a ladder's runs are copies of each other there is no more to permute than ladders."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 7))
    alone = correlate(x, y)
    copies = correlate(np.repeat(x, 5), np.repeat(y, 5), groups=ladders(7, 5))
    assert copies.pearson.r == pytest.approx(alone.pearson.r)
    assert copies.pearson.p == pytest.approx(alone.pearson.p, abs=0.015)
    assert copies.spearman.p == pytest.approx(alone.spearman.p, abs=0.015)
    assert "permutation of ladder" in copies.pearson.p_method
    pretended = correlate(np.repeat(x, 5), np.repeat(y, 5))
    assert pretended.pearson.high - pretended.pearson.low < 0.6 * (copies.pearson.high - copies.pearson.low)


def test_unequal_groups_have_p_by_t() -> None:
    rng = np.random.default_rng(0)
    groups = Groups.of(20, {"ladder": np.arange(20) ** 2 // 60})
    found = correlate(*rng.normal(size=(2, 20)), groups=groups)
    assert found.pearson.p_method == "t of the jackknife" and 0 < found.pearson.p <= 1
    holds = found.pearson.low <= 0 <= found.pearson.high
    assert holds == (found.pearson.p > 0.05)
    assert f"ladder ({groups.counts['ladder']})" in found.pearson.interval


@pytest.mark.parametrize("seed", [0.0, 0.2])
def test_intervals_hold_where_runs_share_ladders_and_seeds(seed: float) -> None:
    """Six depths, three budgets, two seeds: what runs that stand alone would say is false in one study of four."""
    design, studies = Design(6, 3, 2, -0.6, -0.6, 0.6, seed), 150
    ladder, label = design.labels()
    groups = Groups.of(36, {"ladder": ladder, "seed": label})
    alone, grouped = np.zeros(3), np.zeros(3)
    rng = np.random.default_rng(0)
    for study in range(studies):
        x, y = design.draw(rng)
        for hits, found in (
            (alone, correlate(x, y, permutations=9, seed=study)),
            (grouped, correlate(x, y, groups=groups, permutations=9)),
        ):
            ends = (found.pearson, found.spearman, found.kendall)
            hits += [c.low <= design.truth[k] <= c.high for c, k in zip(ends, design.truth, strict=True)]
    assert (grouped / studies >= 0.92).all()
    assert (alone / studies < 0.88).all()


def test_orders_that_agree_in_full_have_an_interval_of_the_groups() -> None:
    x = np.arange(12.0)
    found = correlate(x, x**3, groups=ladders(6, 2)).spearman
    known = correlate(np.arange(6.0), np.arange(6.0) ** 3).spearman
    assert found.interval == "Fisher z of the groups" and found.low == pytest.approx(known.low)
    few = correlate(np.array([0.0, 1, 0, 2, 0, 0]), np.arange(6.0), groups=ladders(3, 2)).pearson
    assert few.low >= -1 and few.high <= 1


@pytest.mark.parametrize("held", [False, True])
def test_two_groups_have_no_interval(held: bool) -> None:
    """What two ladders differ by may be small by luck: the same rows alone would look less sure than these."""
    rng, groups = np.random.default_rng(0), ladders(2, 18)
    x = rng.normal(size=36)
    y = 0.6 * rng.normal(size=36) - x
    found = correlate(x, y, groups=groups, control=Control(rng.normal(size=(36, 1))) if held else None)
    for c in (found.pearson, found.spearman, found.kendall):
        assert (c.low, c.high) == (-1, 1) and c.interval == "none: two groups are one difference"
        assert np.isnan(c.p) if held else c.p < 0.05  # they do go together in these two
    row = compare_bins(x, np.stack([x + rng.normal(size=36), x], axis=1), y, groups=groups).rows["pearson"][0]
    assert np.isnan([row.low, row.high, row.p, row.p_best]).all() and np.isfinite(row.difference)


def test_groups_are_never_surer_than_as_many_rows_alone() -> None:
    """Three ladders that happen to be much alike."""
    rng = np.random.default_rng(0)
    x, y = np.tile(rng.normal(size=(2, 12)), 3) + 0.01 * rng.normal(size=(2, 36))
    y = y - x
    found = correlate(x, y, groups=ladders(3, 12)).pearson
    known = stats.pearsonr(x, y).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.interval.startswith("Fisher z of the rows, wider than the jackknife over ladder (3)")


def test_one_group_is_refused() -> None:
    with pytest.raises(TableError, match="group='seed': '0' in every row"):
        Groups.of(4, {"seed": np.zeros(4, dtype=int)})
