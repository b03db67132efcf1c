"""Who meets whom: all pairs of few runs, of many a fair and connected choice, and what ratings make of that."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.meetings import every_pair, meetings
from scaling.elo import rate

NAMES = [f"run {number:02d}" for number in range(40)]
IMAGES = [("prompt", number, 0) for number in range(50)]


def test_few_runs_all_meet_on_all_images() -> None:
    shown = {image: NAMES[:5] for image in IMAGES}
    found = meetings(shown, most=500)
    assert list(found) == list(itertools.combinations(NAMES[:5], 2)) and every_pair(shown) == 500
    assert all(images == IMAGES for images in found.values())
    assert sum(map(len, meetings(shown, most=499).values())) == 250  # a ring of 5 is the next smaller
    with pytest.raises(UserError, match="most=0"):
        meetings(shown, most=0)


@pytest.mark.parametrize("most", [1, 2000, 6000, 38_000])
def test_of_many_runs_each_meets_as_many_and_all_hang_together_on_each_image(most: int) -> None:
    found = meetings({image: NAMES for image in IMAGES}, most)
    reach = max(1, most // (len(NAMES) * len(IMAGES)))
    for image in IMAGES:
        pairs = [pair for pair, images in found.items() if image in images]
        assert len(pairs) == reach * len(NAMES)
        assert set(Counter(itertools.chain(*pairs)).values()) == {2 * reach}
        index = np.array([[NAMES.index(name) for name in pair] for pair in pairs]).T
        graph = sparse.coo_array((np.ones(len(pairs)), tuple(index)), shape=(len(NAMES),) * 2)
        assert sparse.csgraph.connected_components(graph, directed=False)[0] == 1
    assert all(one < two and len(set(images)) == len(images) for (one, two), images in found.items())


def test_over_images_pairs_come_up_alike() -> None:
    """As often as a binomial says: 1,000 images, each pair on 2 in 39 of them."""
    found = meetings({number: NAMES for number in range(1000)}, 40_000)
    counts = np.array([len(found.get(pair, [])) for pair in itertools.combinations(NAMES, 2)])
    chance = 2 / 39
    assert counts.mean() == pytest.approx(1000 * chance)
    assert 0.85 < counts.var() / (1000 * chance * (1 - chance)) < 1.15  # 780 pairs: within three standard errors
    assert counts.min() > 20 and counts.max() < 90


def test_runs_that_drew_other_images_meet_where_they_can_and_another_run_moves_few() -> None:
    shown = {image: NAMES if image[1] % 2 else NAMES[:2] for image in IMAGES}
    found = meetings(shown, most=1)
    assert found["run 00", "run 01"][::1] and set(IMAGES[::2]) <= set(found["run 00", "run 01"])
    ring = meetings({image: NAMES for image in IMAGES}, most=1)
    one_more = meetings({image: [*NAMES, "zz"] for image in IMAGES}, most=1)
    gone = {(pair, image) for pair, images in ring.items() for image in images} - {
        (pair, image) for pair, images in one_more.items() for image in images
    }
    assert len(gone) == len(IMAGES)  # on each image the two that stand beside the new one now


def test_ratings_of_some_meetings_agree_with_those_of_all() -> None:
    rng = np.random.default_rng(0)
    quality = rng.normal(0, 1, len(NAMES))
    scores = {image: quality + rng.normal(0, 1.5, len(NAMES)) for image in IMAGES}

    def rated(most: int) -> pd.DataFrame:
        rows = [
            (
                image[1],
                one,
                two,
                "left" if scores[image][NAMES.index(one)] > scores[image][NAMES.index(two)] else "right",
            )
            for (one, two), images in meetings({image: NAMES for image in IMAGES}, most).items()
            for image in images
        ]
        table = rate(pd.DataFrame(rows, columns=["prompt", "left", "right", "outcome"]), draws=200)
        return pd.DataFrame([vars(row) for row in table.ratings]).set_index("name").loc[NAMES]

    every, some = rated(10**9), rated(6000)
    off = (some["elo"] - every["elo"]).to_numpy()
    assert np.corrcoef(some["elo"], every["elo"])[0, 1] > 0.97
    assert np.sqrt((off**2).mean()) < 0.35 * np.sqrt(np.var(every["elo"]))
    # Fewer battles, wider intervals, and these tell it: the ratings of all lie in them.
    inside = (some["low"] < every["elo"]) & (every["elo"] < some["high"])
    assert inside.mean() > 0.9 and (some["high"] - some["low"]).mean() > (every["high"] - every["low"]).mean()
