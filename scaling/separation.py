"""Groups of players between which wins go one way only, and what a sign test says of their order."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scaling.battle_counts import Battles, Clusters


def separated(counted: Battles) -> tuple[tuple[str, ...], ...]:
    """Groups of players between which wins go one way only, without ties; none where all hang together.

    Of such groups the likelihood says only that they are far apart (Ford 1957, Albert and Anderson 1984): how far is
    the prior's word, and neither a bootstrap nor a sandwich knows. Players whose ratings are given are of one group.
    """
    part = _parts(counted)
    order = np.unique(part, return_index=True)[1]
    if len(order) == 1:
        return ()
    return tuple(tuple(counted.names[i] for i in np.flatnonzero(part == part[first])) for first in np.sort(order))


def signs(counted: Battles, clusters: Clusters, elo: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different groups (see ``separated``), and those of them whose order a sign test is sure of.

    Both are bool ``[players, players]`` and symmetric. That a, of the higher ``elo [players]``, is above b is judged
    by the battles that a's group and those above it won against all others, and b's group and those below it lost, if
    the winner is rated no higher than a and the loser no lower than b. Were b as good as a, each of n clusters of such
    battles would have come out so by a chance of at most a half; of all pairs together (Bonferroni), in both
    directions, by pairs · 2^(1 − n).
    """
    part = _parts(counted)
    apart = part[:, None] != part
    sure = np.zeros_like(apart)
    total = clusters.total()
    left, right = counted.design.left, counted.design.right
    # Rows of one pair may differ by covariates, and one that no battle is left of tells nothing.
    rows = np.flatnonzero(apart[left, right] & (total.sum(-1) > 0))
    first = total[rows, 0] > 0
    winner, loser = np.where(first, left[rows], right[rows]), np.where(first, right[rows], left[rows])
    columns = clusters.patterns.tocsc()
    fought = sum((columns[:, 3 * rows + kind] for kind in (1, 2)), columns[:, 3 * rows])
    above = _reach(len(elo), loser, winner, part)
    by_row = clusters.times @ (fought > 0)
    needed = 1 + np.log2(len(elo) * (len(elo) - 1) / 2 / (1 - level))
    for a, b in np.argwhere(apart & (elo[:, None] > elo)):
        if above[a, b]:
            continue
        from_a = above[a, winner] & ~above[a, loser]
        to_b = above[loser, b] & ~above[winner, b]
        telling = (from_a | to_b) & (elo[winner] <= elo[a]) & (elo[loser] >= elo[b])
        # Clusters that one row shows are enough or, those of all together, too few, mostly: then that is told fast.
        if not telling.any() or by_row[telling].sum() < needed:
            continue
        n = by_row[telling].max()
        if n < needed:
            n = clusters.times[np.unique(fought[:, np.flatnonzero(telling)].indices)].sum()
        sure[a, b] = sure[b, a] = n >= needed
    return apart, sure


def _parts(counted: Battles) -> np.ndarray:
    """Index ``[players]`` of each player's group."""
    kind, row = counted.cell % 3, counted.cell // 3
    left, right = counted.design.left[row], counted.design.right[row]
    given = np.zeros(0, dtype=np.int64)
    if counted.design.pinned is not None:
        given = np.flatnonzero(~np.isnan(counted.design.pinned))
    beaten = np.concatenate([right[kind != 1], left[kind != 0], given])
    winner = np.concatenate([left[kind != 1], right[kind != 0], np.roll(given, 1)])
    size = len(counted.names)
    graph = sparse.csr_array((np.ones(len(beaten)), (beaten, winner)), shape=(size, size))
    return sparse.csgraph.connected_components(graph, directed=True, connection="strong")[1]


def _reach(size: int, beaten: np.ndarray, winner: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Bool ``[players, players]``: whether the second is of the first's group, or of one above it, also by others."""
    groups = int(part.max()) + 1
    step = np.eye(groups, dtype=bool)
    step[part[beaten], part[winner]] = True
    while not np.array_equal(further := (step.astype(np.int64) @ step) > 0, step):
        step = further
    return step[part[:, None], part]
