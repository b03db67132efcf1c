"""The report's ranking and efficiency: whole, with a run missing, with one seed, at several depths, without scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_rank_command import scores
from test_report import Page, study

from scaling import published
from scaling.complete import align_seeds, complete
from scaling.errors import TableError
from scaling.page import render
from scaling.rank_sections import efficiency_section, measured, rank_section, ranked
from scaling.ranking import rank
from scaling.report import write_report
from scaling.study import load_study

RANKING, EFFICIENCY = "ranking-over-sampler-settings", "sampling-efficiency"
NAMES = ["rf", "rf/lognorm(0.00,1.00)", "rf/mode(1.29)", "v/cos", "edm/rf"]


def two_seeds(names: list[str] = NAMES) -> pd.DataFrame:
    """Scores of every name in 24 settings, two trainings each, the second a little worse."""
    first = scores(names)
    return pd.concat([first.assign(seed=0), first.assign(seed=1, clip=first["clip"] - 0.001)], ignore_index=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return study(tmp_path / "s")


def page(folder: Path, table: pd.DataFrame | None) -> Page:
    """The two sections alone, which is faster than a report; None leaves the folder's tables as they are."""
    if table is not None:
        table.to_parquet(folder / "scores.parquet")
    tables, figures = load_study(folder), folder / "figures"
    ranking = rank_section(tables, ranked(tables, draws=40, seed=0), figures, seed=0)
    return Page(render("t", "", [*ranking, *efficiency_section(measured(tables, draws=40, seed=0), figures)]))


def test_whole_table(folder: Path) -> None:
    table = two_seeds()
    table.to_parquet(folder / "scores.parquet")
    found = Page(write_report(folder, title="t", draws=40).read_text(encoding="utf-8"))
    ranked = rank(table, bootstrap=40)
    lead, text = ranked.places[0], found.texts[RANKING]
    assert f"{lead.name} leads with an average rank of {lead.all.rank:.2f} (" in text and "over 24 settings" in text
    assert f"probability {ranked.pairs[0, 1]:.2f} it ranks better than {ranked.names[1]}" in text
    place = ranked.names.index("rf")
    assert place > 1 and f"with {ranked.pairs[0, place]:.2f} better than rf" in text
    ours = [next(p.all.rank for p in ranked.places if p.name == name) for name in NAMES]
    theirs = [published.TABLE_1[name][0] for name in NAMES]
    r = f"{stats.spearmanr(ours, theirs).statistic:+.2f}".replace("-", "−")
    assert f"Spearman {r}, " in text and "over the prompts and seeds; 5 names in common" in text
    assert "Scores at scenes/ema/euler-25-g5 and emoji/ema/euler-25-g5" in text and "50 steps" in text
    assert f"{lead.name} leads" in found.texts["in-short"]
    assert (
        "5/50 steps" in found.texts[EFFICIENCY] and "scenes, EMA weights, Euler, guidance 5" in found.texts[EFFICIENCY]
    )
    assert found.missing == 0 and not found.open
    made = {path.name for path in (folder / "figures").iterdir()}
    assert {f"{stem}.{kind}" for stem in ("ranks", "fronts", "efficiency") for kind in ("png", "pdf")} <= made
    order = list(found.texts)
    assert order.index("genEval-proxy".lower()) < order.index(RANKING) < order.index("elo-proxy")


def test_real_images_stand_beside(folder: Path) -> None:
    real = pd.DataFrame([{"dataset": "scenes", "images": 128, "clip": 0.41, "fid": 0.0512}])
    real.to_csv(folder / "real.csv", index=False)
    text = page(folder, two_seeds(NAMES[:3])).texts[RANKING]
    assert "128 held-out images of scenes, in place of generated ones, score a CLIP of 0.410 and" in text


def test_missing_runs_cost_only_their_names(folder: Path) -> None:
    table = two_seeds()
    lost = (table["name"] == "v/cos") & (table["dataset"] == "emoji") & (table["seed"] == 1)
    found = page(folder, table[~lost])
    assert "name v/cos left out: not scored everywhere that most are" in found.texts[RANKING]
    assert "among 4 names" in found.texts[RANKING] and "of the prompts and of 2 training seeds" in found.texts[RANKING]
    assert "v/cos" in found.texts[EFFICIENCY]  # whole on scenes
    begun = table[(table["seed"] == 0) | table["name"].isin(NAMES[:2])]
    found = page(folder, begun)
    assert "seed 1 left out: complete for half or less" in found.texts[RANKING] and "among 5" in found.texts[RANKING]
    homes = table["name"].map({"rf": "emoji", "v/cos": "scenes"})
    apart = table[table["dataset"] == homes]
    found = page(folder, apart)
    assert "0 names are complete; expected 2 or more to rank" in found.texts[RANKING] and found.missing == 1
    assert "v/cos" in found.texts[EFFICIENCY]


def test_one_seed_and_no_draws(folder: Path) -> None:
    table = scores(NAMES[:3], draws=0).drop(columns=["draw", "path_length"])
    table.to_csv(folder / "scores.csv", index=False)
    found = page(folder, None)
    assert "resamples of the settings" in found.texts[RANKING] and "Spearman" not in found.texts[RANKING]
    assert "no measurement was repeated" in found.texts[RANKING]
    assert "path length" not in found.texts[EFFICIENCY]
    found = page(folder, scores(NAMES[:3]))  # the parquet file goes before the other
    assert "one training each" in found.texts[RANKING] and "path length" in found.texts[EFFICIENCY]


def test_efficiency_by_depth(folder: Path) -> None:
    parts = []
    for depth, loss in ((15, 4.3), (30, 3.6), (38, 2.7)):
        part = scores(["rf", "v/cos"] if depth == 15 else ["rf"])
        part["clip"] = np.where(part["steps"] == 5, 0.3 * (1 - loss / 100), 0.3)
        parts.append(part.assign(name=f"d{depth} " + part["name"], depth=depth))
    found = page(folder, pd.concat(parts))
    text = found.texts[EFFICIENCY]
    assert "depth 15 loses 4.3 % of its CLIP score and depth 38 2.7 %, a difference of 1.6 (1.6 to 1.6) points." in text
    assert "rf only, which has most rows" in text and "v/cos" not in text
    assert "d15 rf" in found.texts[RANKING] and "Spearman" not in found.texts[RANKING]


def test_equal_ranks_cost_only_the_correlation(folder: Path) -> None:
    found = page(folder, scores(NAMES).assign(clip=0.3, fid=1.0))
    assert "they are not told apart" in found.texts[RANKING]
    assert "has no value over 5 names: all ranks are equal" in found.texts[RANKING] and found.missing == 0


def test_an_order_of_depths_needs_their_difference(folder: Path) -> None:
    """Scores that rise and fall together: the losses are unsure, and that one is less than the other is not."""
    rng = np.random.default_rng(0)
    common_noise = dict(enumerate([0.0, *rng.normal(size=40)]))
    for apart, told in ((0.5, " points."), (0.0, "no order is shown")):
        parts = []
        for depth in (1, 2, 3):
            part = scores(["rf"], draws=40)
            common = part["draw"].map(common_noise)
            own = np.where(part["draw"] == 0, 0.01 * depth, 0.02 * rng.normal(size=len(part)))
            loss = 4.0 - apart * depth + common + own
            part["clip"] = np.where(part["steps"] == 5, 0.3 * (1 - loss / 100), 0.3)
            parts.append(part.assign(name=f"d{depth} rf", depth=depth))
        text = page(folder, pd.concat(parts)).texts[EFFICIENCY]
        assert told in text and ("no order is shown" in text) == (apart == 0)
    names = page(folder, scores(NAMES)).texts[EFFICIENCY]  # picked after looking: no verdict
    assert "a difference of" not in names and "order" not in names


def test_without_scores_nothing_is_new(folder: Path) -> None:
    plain = page(folder, None)
    assert RANKING not in plain.texts and EFFICIENCY not in plain.texts and plain.missing == 0
    many = page(folder, scores([f"name {i}" for i in range(11)]))  # too many lines to tell apart
    assert RANKING in many.texts and EFFICIENCY not in many.texts
    one = scores(NAMES)
    assert EFFICIENCY not in page(folder, one[one["steps"] == 50]).texts


def test_what_is_complete() -> None:
    table = two_seeds()
    whole = complete(table)
    pd.testing.assert_frame_equal(whole.table, table)
    assert whole.left_out == ()
    emoji = table[(table["dataset"] == "scenes") | (table["name"] == "rf")]
    cut = complete(emoji)
    assert set(cut.table["dataset"]) == {"scenes"} and len(cut.table) == len(table) / 2
    assert len(cut.left_out) == 1 and cut.left_out[0].endswith("and 8 more left out: scored for half or less")
    with pytest.raises(TableError, match="name=blank"):
        complete(table.assign(name=table["name"].where(table.index != 1)))


def test_data_sets_may_have_seeds_of_their_own() -> None:
    table = two_seeds()
    own = table.assign(seed=table["seed"] + 5 * (table["dataset"] == "emoji"))
    pd.testing.assert_frame_equal(align_seeds(own), table)
    assert rank(own, bootstrap=20).to_json() == rank(table, bootstrap=20).to_json()
    uneven = table[(table["dataset"] == "scenes") | (table["seed"] == 0)]
    with pytest.raises(TableError, match=r"none for name=rf setting=emoji/ema/euler-50-g1 seed=1"):
        rank(uneven)
