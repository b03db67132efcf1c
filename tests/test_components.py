"""Players that never met, against a search of the graph by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scaling.components import components, linked
from scaling.errors import TableError


def by_search(names: list[str], pairs: list[tuple[str, str]]) -> set[frozenset[str]]:
    """Merge sets until no pair has its ends in two."""
    groups = [frozenset([name]) for name in names]
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in touched] + [frozenset().union(*touched)]
    return set(groups)


def test_groups_are_those_of_a_search() -> None:
    rng = np.random.default_rng(0)
    names = [f"run {number:02d}" for number in range(20)]
    sizes = set()
    for edges in (0, 5, 10, 15, 20, 30):
        pairs = [tuple(names[i] for i in rng.choice(20, size=2, replace=False)) for _ in range(edges)]
        found = linked(names, pairs)
        assert {frozenset(group) for group in found} == by_search(names, pairs)
        assert found == sorted(found) and all(group == sorted(group) for group in found)
        sizes.add(len(found))
    assert len(sizes) > 3  # not always all together, nor always apart


def test_a_table_of_two_data_sets() -> None:
    rows = [("x", "b", "a", "left"), ("y", "d", "c", "tie"), ("z", "e", "b", "right"), ("z", "e", "b", "right")]
    battles = pd.DataFrame(rows, columns=["prompt", "left", "right", "outcome"])
    assert components(battles) == [["a", "b", "e"], ["c", "d"]]
    assert components(battles.assign(left=[1, 3, 1, 1], right=[2, 4, 5, 5])) == [["1", "2", "5"], ["3", "4"]]
    with pytest.raises(TableError, match="a run against itself"):
        components(battles.assign(left="a", right="a"))
