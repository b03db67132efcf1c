"""Which players have met, be it through others: those that have not can't be compared, and are rated apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from scaling.battle_counts import encoded


def linked(names: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """``names`` in groups that ``pairs`` of them link, also through others; in the order that ``names`` have."""
    place = {name: number for number, name in enumerate(names)}
    ends = np.array([(place[first], place[second]) for first, second in pairs], dtype=np.int64).reshape(-1, 2)
    graph = sparse.coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(place),) * 2)
    part = sparse.csgraph.connected_components(graph, directed=False)[1]
    groups: dict[int, list[str]] = {}
    for name in place:
        groups.setdefault(int(part[place[name]]), []).append(name)
    return list(groups.values())


def components(battles: pd.DataFrame) -> list[list[str]]:
    """Players of a battles table in groups that battles link, also through others; names and groups sorted.

    ``battles["left"].astype(str).isin(group)`` are a group's battles.

    Raises TableError for what ``battle_counts.encoded`` refuses.
    """
    names, left, right, _ = encoded(battles)
    met = np.unique(np.stack([left, right], axis=1), axis=0)
    return linked([str(name) for name in names], [(str(names[i]), str(names[j])) for i, j in met])
