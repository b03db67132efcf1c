"""Relative losses against the paper's formula by hand, and intervals against simulations with a known truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scaling.efficiency import efficiency
from scaling.errors import TableError

STEPS = (50, 5, 10, 20)
LOSS = {"15": (4.30, 0.86, 0.21), "30": (3.59, 0.70, 0.24), "38": (2.71, 0.14, 0.08)}  # Table 6 of the paper, in %
PATH = {"15": 191.13, "30": 187.96, "38": 185.96}


def paper() -> pd.DataFrame:
    """CLIP scores that lose as Table 6 says, from 0.3 at 50 steps."""
    rows = []
    for depth, losses in LOSS.items():
        for steps, loss in zip(STEPS, (0.0, *losses), strict=True):
            # a path is only compared at most steps: elsewhere it is something else
            path = PATH[depth] if steps == 50 else 1.0
            rows.append({"depth": int(depth), "steps": steps, "clip": 0.3 * (1 - loss / 100), "path_length": path})
    return pd.DataFrame(rows)


def test_is_table_6() -> None:
    found = efficiency(paper().sample(frac=1, random_state=0))
    assert found.steps == (5, 10, 20, 50) and [row.group for row in found.rows] == ["15", "30", "38"]
    for row in found.rows:
        assert [loss.value for loss in row.losses] == pytest.approx(LOSS[row.group])
        assert row.path is not None and row.path.value == PATH[row.group]
        assert np.isnan(row.losses[0].low)
    told = found.to_json()
    assert told["resampled"] == "none" and told["rows"][0]["loss"]["5"]["low"] is None
    assert efficiency(paper(), path=None).rows[0].path is None


@pytest.mark.parametrize(("seeds", "draws"), [(1, 60), (3, 0), (3, 60)])
def test_intervals_hold_the_truth(seeds: int, draws: int) -> None:
    rng = np.random.default_rng(seeds + draws)
    table, truth = paper().drop(columns="path_length"), {}
    hits = []
    for _ in range(60):
        rows = []
        for depth, part in table.groupby("depth"):
            truth[str(depth)] = LOSS[str(depth)]
            prompts, counts = 300, rng.multinomial(300, np.full(300, 1 / 300), size=draws) / 300
            shared = 0.02 * rng.normal(size=prompts)  # a prompt's ease is the same at all steps
            for _, cell in part.iterrows():
                for seed in range(seeds):
                    luck = 0.001 * rng.normal() if seeds > 1 else 0.0
                    images = cell["clip"] + luck + shared + 0.02 * rng.normal(size=prompts)
                    # what is resampled is the noise: the truth stays the population's
                    scores = [images.mean(), *(counts @ images)]
                    rows += [{**cell, "seed": seed, "draw": draw, "clip": s} for draw, s in enumerate(scores)]
        found = efficiency(pd.DataFrame(rows), path=None, bootstrap=200)
        for row in found.rows:
            hits += [a.low <= b <= a.high for a, b in zip(row.losses, truth[row.group], strict=True)]
    assert np.mean(hits) >= 0.9


def test_what_cannot_be_compared_is_refused() -> None:
    def complaint(table: pd.DataFrame, **options: object) -> str:
        with pytest.raises(TableError) as caught:
            efficiency(table, **options)
        return str(caught.value)

    good = paper()
    line = complaint(pd.concat([good.assign(weights="ema"), good.assign(weights="raw")]))
    assert "2 for depth=15 steps=50; depth=15 steps=5" in line and "they differ in weights); expected one" in line
    assert "--where" in line
    assert "none for depth=15 steps=50" in complaint(good.iloc[1:])
    assert "steps=50 in every row: expected 2 or more" in complaint(good[good["steps"] == 50])
    assert "clip=0 for depth=15 at steps=50" in complaint(good.assign(clip=good["clip"].where(good.index != 0, 0.0)))
    assert "steps=2.5 (row 1)" in complaint(good.assign(steps=good["steps"] / 20))
    assert "did you mean 'clip'" in complaint(good, score="clips")
