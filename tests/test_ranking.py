"""Ranks against a hand-made peel of the paper's Table 2, simulations with a known truth, and what is refused."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from mmdit_jax.diffusion import STUDY_61, formulation
from scaling import published
from scaling.errors import TableError
from scaling.pareto import fronts
from scaling.ranking import RankTable, rank
from scaling.reference import agree


def simulate(
    up: np.ndarray,
    down: np.ndarray,
    rng: np.random.Generator,
    *,
    prompts: int = 200,
    seeds: int = 1,
    draws: int = 60,
    luck: float = 0.1,
) -> pd.DataFrame:
    """Scores of names with the true values ``up``, ``down`` ``[names, settings]``, on two data sets in turn.

    A score is a mean over prompts, whose difficulty all names share in part; a training's luck adds to all of its
    settings. Resample 1 … draws of a data set's prompts is the same for every name, seed and setting.
    """
    names, settings = up.shape
    uniform = np.full(prompts, 1 / prompts)
    counts = [np.vstack([uniform * prompts, rng.multinomial(prompts, uniform, size=draws)]) / prompts for _ in range(2)]
    columns = {}
    for column, truth in (("clip", up), ("fid", down)):
        scores = np.empty((names, settings, seeds, 1 + draws))
        chance = luck * rng.normal(size=(names, seeds))
        for setting in range(settings):
            images = rng.normal(size=prompts) + rng.normal(size=(names, seeds, prompts))
            scores[:, setting] = (truth[:, setting, None] + chance)[..., None] + images @ counts[setting % 2].T
        columns[column] = scores.ravel()
    name, setting, seed, draw = (axis.ravel() for axis in np.indices((names, settings, seeds, 1 + draws)))
    return pd.DataFrame(
        {"name": name, "setting": setting, "dataset": setting % 2, "seed": seed, "draw": draw, **columns}
    )


def ladder(apart: float, names: int = 6, settings: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True scores of names each better than the next, with some trading places; and their true average ranks."""
    rng = np.random.default_rng(1)
    base = apart * np.arange(names)[:, None]
    up, down = (sign * base + 0.3 * apart * rng.normal(size=(names, settings)) for sign in (-1, 1))
    return up, down, fronts(up.T, down.T).mean(axis=0)


def by_setting(table: RankTable) -> dict[str, dict[str, int]]:
    labels = list(table.settings["setting"])
    return {
        label: {name: int(front) for name, front in zip(table.names, table.front[:, place], strict=True)}
        for place, label in enumerate(labels)
    }


def test_published_names_are_ours() -> None:
    for name in (*published.TABLE_1, *published.TABLE_2):
        assert formulation(name).name == name and name in STUDY_61
    assert len(published.TABLE_1) == 16 and len(published.TABLE_2) == 10
    assert list(published.ranks()["rank"]) == sorted(published.ranks()["rank"])


def test_table_2_is_peeled_as_by_hand() -> None:
    found = by_setting(rank(published.scores()))
    # ImageNet. lognorm(.5,.6) has the highest CLIP score, mode(1.75) the lowest FID, and nothing lies between them in
    # FID with more CLIP than mode's .253 but lognorm(1,.6) (.254, 114.26), worse than lognorm(.5,.6) in both. Without
    # these, lognorm(1,.6) has the highest CLIP, lognorm(-.5,1) the lowest FID (45.64), lognorm(0,1) (.250, 45.78) is
    # between; rf (.247, 49.70) is worse than it in both. Then rf has the highest CLIP and eps/linear (.245, 48.42) the
    # lowest FID; v/linear (.246, 51.68) is worse than rf in both. v/linear and v/cos (.244, 50.74) trade; edm is worse
    # than either in both.
    assert found["ImageNet/euler-25"] == {
        "rf/lognorm(0.50,0.60)": 1,
        "rf/mode(1.75)": 1,
        "rf/lognorm(1.00,0.60)": 2,
        "rf/lognorm(-0.50,1.00)": 2,
        "rf/lognorm(0.00,1.00)": 2,
        "rf": 3,
        "eps/linear": 3,
        "v/linear": 4,
        "v/cos": 4,
        "edm(-1.20,1.20)": 5,
    }
    # CC12M. Down from the highest CLIP the FID falls with every one of lognorm(1,.6) (.234, 147.69), lognorm(.5,.6)
    # (.233, 120.84), lognorm(0,1) (.224, 89.91), lognorm(-.5,1) (.219, 89.70), the lowest of all. eps/linear
    # (.222, 90.34) is worse than lognorm(0,1) in both, and better in both than all that are left; so is then
    # mode(1.75) (.218, 94.06), and then rf (.217, 94.90): v/linear (.217, 100.76) has its CLIP, and a higher FID.
    # v/linear and v/cos (.209, 97.87) trade; edm is worse than both.
    assert found["CC12M/euler-25"] == {
        "rf/lognorm(1.00,0.60)": 1,
        "rf/lognorm(0.50,0.60)": 1,
        "rf/lognorm(0.00,1.00)": 1,
        "rf/lognorm(-0.50,1.00)": 1,
        "eps/linear": 2,
        "rf/mode(1.75)": 3,
        "rf": 4,
        "v/linear": 5,
        "v/cos": 5,
        "edm(-1.20,1.20)": 6,
    }
    table = rank(published.scores())
    assert {p.name: p.all.rank for p in table.places}["rf/mode(1.75)"] == 2.0
    assert table.names[0] == "rf/lognorm(0.50,0.60)" and table.places[0].firsts == 2
    assert table.resampled == "settings" and table.by is None and table.groups == ()


def test_intervals_hold_the_truth() -> None:
    """95 % intervals, where seeds are measured: well separated names and, harder, names whose noise makes them tie."""
    rng = np.random.default_rng(0)
    for apart, options in (
        (0.3, {"seeds": 1, "luck": 0.0}),
        (0.3, {"seeds": 3}),
        (0.3, {"seeds": 3, "draws": 0}),
        (0.15, {"seeds": 1, "luck": 0.0}),
        (0.15, {"seeds": 3}),
    ):
        up, down, truth = ladder(apart)
        hits = []
        for study in range(40):
            table = rank(simulate(up, down, rng, **options), bootstrap=150, seed=study)
            hits += [p.all.low - 1e-9 <= truth[int(p.name)] <= p.all.high + 1e-9 for p in table.places]
        assert np.mean(hits) >= 0.9, (apart, options)


def test_seeds_that_were_not_drawn_are_not_in_the_interval() -> None:
    """Why the text says so: with one training each, luck is invisible, and intervals are too narrow."""
    rng = np.random.default_rng(0)
    up, down, truth = ladder(0.15)
    hits = []
    for study in range(40):
        table = rank(simulate(up, down, rng, luck=0.3), bootstrap=100, seed=study)
        assert table.resampled == "prompts"
        hits += [p.all.low <= truth[int(p.name)] <= p.all.high for p in table.places]
    assert np.mean(hits) < 0.7


def test_pair_probabilities_are_calibrated() -> None:
    """Two names of which either may be the better, by as much as the noise is wide: how often does p come true?"""
    rng = np.random.default_rng(2)
    said, came = [], []
    for study in range(400):
        gap = 0.1 * rng.normal(size=(2, 1))
        table = rank(simulate(gap, -gap, rng, luck=0.0, draws=100), bootstrap=100, seed=study)
        first, second = table.names
        said.append(table.pairs[0, 1])
        came.append(gap[int(first), 0] > gap[int(second), 0])
    said, came = np.array(said), np.array(came)
    for low, high in ((0.5, 0.8), (0.8, 0.95), (0.95, 1.01)):
        inside = (said >= low) & (said < high)
        assert inside.sum() > 30
        # binomial noise, and room for a bootstrap of a rank that moves in steps
        assert abs(came[inside].mean() - said[inside].mean()) < 0.1 + 2 * np.sqrt(0.25 / inside.sum()), (low, high)


def test_pairs_and_best_add_up() -> None:
    up, down, _ = ladder(0.1)
    table = rank(simulate(up, down, np.random.default_rng(3), seeds=2), bootstrap=200)
    off = ~np.eye(6, dtype=bool)
    np.testing.assert_allclose((table.pairs + table.pairs.T)[off], 1)
    assert np.isnan(np.diag(table.pairs)).all()
    assert sum(p.p_best for p in table.places) == pytest.approx(1)
    averages = [p.all.rank for p in table.places]
    assert averages == sorted(averages)
    np.testing.assert_allclose(averages, table.front.mean(axis=1))
    assert all(p.all.low <= p.all.rank <= p.all.high for p in table.places)


def test_the_level_of_the_draws_does_not_matter() -> None:
    """A Fréchet distance is higher on any resample, and more so for some names: that is no sign of a worse rank."""
    up, down, _ = ladder(0.1)
    table = simulate(up, down, np.random.default_rng(3))
    shifted = table.assign(fid=table["fid"] + (table["draw"] > 0) * (1.0 + table["name"]))
    plain, biased = rank(table, bootstrap=100), rank(shifted, bootstrap=100)
    assert plain.to_json() == biased.to_json()
    np.testing.assert_allclose(plain.down_ends, biased.down_ends)


def test_seeds_are_averaged_before_peeling() -> None:
    rows = [
        {"name": name, "setting": "s", "seed": seed, "clip": clip, "fid": 1.0}
        for name, clips in {"a": (1.0, 6.0), "b": (3.0, 3.0)}.items()
        for seed, clip in enumerate(clips)
    ]
    table = rank(pd.DataFrame(rows))
    assert table.names == ["a", "b"] and table.up[:, 0].tolist() == [3.5, 3.0] and table.seeds == 2
    assert table.resampled == "seeds"
    # one of two seeds at a time: a is ahead with seed 1 only
    assert table.pairs[0, 1] == pytest.approx(0.5, abs=0.06)


def test_groups_are_ranks_of_their_settings() -> None:
    up, down, _ = ladder(0.2, settings=6)
    table = simulate(up, down, np.random.default_rng(0), draws=20)
    table["steps"] = table["setting"].map({0: 50, 1: 5, 2: 50, 3: 5, 4: 10, 5: 10})
    whole = rank(table, bootstrap=50)
    assert whole.by == "steps" and whole.groups == ("5", "10", "50")
    part = rank(table[table["steps"] == 5], bootstrap=50)
    alone = {p.name: p.all.rank for p in part.places}
    assert {p.name: p.groups["5"].rank for p in whole.places} == pytest.approx(alone)
    assert rank(table, by="dataset", bootstrap=0).groups == ("0", "1")
    plain = rank(table, bootstrap=0)
    assert plain.resampled == "none" and np.isnan(plain.places[0].all.low)
    assert plain.to_json()["rows"][0]["low"] is None


def test_agreement_with_the_paper() -> None:
    table = published.scores()
    found = agree(rank(table), published.ranks(), "sd3")
    assert len(found.names) == 9 and found.spearman.r > 0.8  # lognorm(-.5,1) is in Table 2 only
    assert found.low <= found.spearman.r <= found.high <= 1
    deep = table.assign(name="d2 " + table["name"])
    assert agree(rank(deep), published.ranks(), "sd3").spearman.r == found.spearman.r
    with pytest.raises(TableError, match="at several depths"):
        agree(rank(pd.concat([table, deep])), published.ranks(), "sd3")
    with pytest.raises(TableError, match="0 names in common"):
        agree(rank(table.assign(name="x" + table["name"])), published.ranks(), "sd3")
    with pytest.raises(TableError, match="comes twice"):
        agree(rank(table), pd.concat([published.ranks()] * 2), "mine")


def test_bad_tables_are_refused_in_one_line() -> None:
    good = simulate(*ladder(0.2)[:2], np.random.default_rng(0), seeds=2, draws=3)

    def complaint(table: pd.DataFrame, **options: object) -> str:
        with pytest.raises(TableError) as caught:
            rank(table, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    line = complaint(good.drop(index=[5, 6, 7, 8, 9]))
    assert line.startswith("rows=187: none for name=0 setting=0 seed=1 draw=1; ") and "and 2 more" in line
    assert "expected one for every name, setting, seed and draw" in line
    assert "rows=193: 2 for name=0 setting=0 seed=0 (the same row again); expected one" in complaint(
        pd.concat([good, good.iloc[:1]])
    )
    assert "clip=blank (row 4): expected a finite number" in complaint(
        good.assign(clip=good["clip"].where(good.index != 3))
    )
    assert "name='0' in every row: expected 2 or more to rank" in complaint(good[good["name"] == 0])
    assert "did you mean 'clip'" in complaint(good, up="clp")
    assert "column='step'" in complaint(good, by="step")
    assert "draw=1 is the lowest: expected rows with draw=0" in complaint(good[good["draw"] > 0])
    assert "draw=1 is the only resample" in complaint(good[good["draw"] < 2])
    assert "draw=0.5 (row 2)" in complaint(good.assign(draw=good["draw"].replace(1, 0.5)))
    wrong = good.assign(dataset=good["name"])
    assert "expected one dataset for each setting" in complaint(wrong)


def test_the_papers_size_takes_seconds() -> None:
    name, setting, seed, draw = (axis.ravel() for axis in np.indices((61, 24, 3, 101)))
    noise = np.random.default_rng(0).normal(size=(2, len(name)))
    table = pd.DataFrame(
        {"name": name, "setting": setting, "seed": seed, "draw": draw, "clip": noise[0], "fid": noise[1]}
    )
    start = time.process_time()
    rank(table, bootstrap=1000)
    assert time.process_time() - start < 15
