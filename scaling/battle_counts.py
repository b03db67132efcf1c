"""A table of battles -> counts: which rows have equal chances, which battles are of one cluster, what is resampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from scaling.davidson import CHUNK, Design
from scaling.errors import TableError
from scaling.resample import group_index
from scaling.tables import labels, numbers, require

OUTCOMES = ("left", "right", "tie")
LEFT_SIDE = "left side"


@dataclass(frozen=True)
class Clusters:
    """How often each outcome of each row of a design came up in each cluster, equal clusters told once.

    ``patterns`` is sparse float64 ``[kinds, rows · 3]``, ``times [kinds]`` how many of the ``count`` clusters are so,
    ``kind [count]`` which one each is.
    """

    patterns: sparse.csr_array
    times: np.ndarray
    kind: np.ndarray
    count: int

    @property
    def effective(self) -> float:
        """As many clusters of one size would tell as much: (Σ n)² / Σ n² of their battles n (Kish 1965)."""
        sizes = self.patterns.sum(1)
        return float(self.times @ sizes) ** 2 / float(self.times @ sizes**2)

    def total(self) -> np.ndarray:
        """Counts over all clusters, ``[rows, 3]``."""
        return np.asarray(self.times @ self.patterns).reshape(-1, 3)

    def weights(self, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """How often clusters of each kind came up in ``draws`` bootstraps: chunks of ``[some, kinds]`` float64."""
        kinds, cells = self.patterns.shape
        some = max(1, 4 * CHUNK // max(self.count, cells))
        for start in range(0, draws, some):
            size = min(some, draws - start)
            if 8 * kinds < self.count:
                # As if each cluster were drawn, since equal ones are exchangeable; with few kinds, far faster.
                yield rng.multinomial(self.count, self.times / self.count, size=size).astype(np.float64)
            else:
                drawn = self.kind[rng.integers(0, self.count, size=(size, self.count))]
                yield np.stack([np.bincount(row, minlength=kinds) for row in drawn]).astype(np.float64)

    def resampled(self, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Counts of ``draws`` bootstrap tables, clusters drawn with replacement: chunks of ``[some, rows, 3]``."""
        transposed = self.patterns.T.tocsr()
        for weights in self.weights(draws, rng):
            yield np.ascontiguousarray((transposed @ weights.T).T).reshape(len(weights), -1, 3)


@dataclass(frozen=True)
class Battles:
    """A table of battles, counted. ``scale [q]`` is what a covariate was divided by (its root mean square)."""

    names: tuple[str, ...]
    design: Design
    effects: tuple[str, ...]
    scale: np.ndarray
    cell: np.ndarray
    """Of each battle: row of the design × 3 + (left wins, right wins, tie)."""
    left: np.ndarray
    right: np.ndarray

    def clusters(self, index: np.ndarray, count: int) -> Clusters:
        """Battles of one ``index [battles]`` (of ``count``) taken together."""
        cells = 3 * len(self.design.left)
        table = sparse.csr_array((np.ones(len(index)), (index, self.cell)), shape=(count, cells))
        table.sum_duplicates()
        seen: dict[bytes, int] = {}
        kind = np.empty(count, dtype=np.int64)
        ends = table.indptr
        for cluster in range(count):
            here = slice(ends[cluster], ends[cluster + 1])
            kind[cluster] = seen.setdefault(table.indices[here].tobytes() + table.data[here].tobytes(), len(seen))
        first = np.unique(kind, return_index=True)[1]
        return Clusters(table[first], np.bincount(kind).astype(np.float64), kind, count)


def encoded(battles: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Names in order, who stood left and right (index ``[battles]``), and how it ended (index into OUTCOMES).

    Raises TableError for a missing column or cell, another outcome, or a player that fights itself.
    """
    require(battles, ["prompt", "left", "right", "outcome"])
    if battles.empty:
        raise TableError("battles=0: expected one row or more")
    ended = outcomes(battles)
    left, right = labels(battles, "left"), labels(battles, "right")
    itself = left == right
    if itself.any():
        row = int(np.argmax(itself))
        raise TableError(f"right={right[row]!r} (row {row + 1}): a run against itself; expected two different names")
    index, names = pd.factorize(np.concatenate([left, right]), sort=True)
    return np.asarray(names), index[: len(left)], index[len(left) :], ended


def outcomes(battles: pd.DataFrame) -> np.ndarray:
    """How each battle ended, index ``[battles]`` into OUTCOMES. Raises TableError naming the first row that is none."""
    require(battles, ["outcome"])
    index = pd.Index(OUTCOMES).get_indexer(battles["outcome"].astype(object))
    if (index < 0).any():
        row = int(np.argmax(index < 0))
        value = battles["outcome"].iloc[row]
        told = "blank" if pd.isna(value) else repr(str(value))
        raise TableError(f"outcome={told} (row {row + 1}): expected one of left, right, tie")
    return index


def count_battles(
    battles: pd.DataFrame,
    *,
    side_bias: str | None = None,
    covariates: Sequence[str] = (),
    pinned: Mapping[str, float] | None = None,
) -> Battles:
    """Count battles by who met and by what favoured the left.

    Args:
        side_bias: None; "all": one advantage of the left side; else a column, one for each of its values.
        covariates: columns with a number for each battle that may favour the left.
        pinned: strengths that are given, in natural units.

    Raises TableError for what ``encoded`` refuses, players that never met, a covariate that is no number, or one that
    can't be told from the strengths.
    """
    names, left, right, outcome = encoded(battles)
    given = np.full(len(names), np.nan)
    for name, strength in (pinned or {}).items():
        given[np.flatnonzero(names == name)] = strength
    _check_connected(names, left, right, np.flatnonzero(~np.isnan(given)))
    columns, effects = _covariates(battles, side_bias, covariates)
    scale = np.sqrt(np.array([(column**2).mean() for column in columns], dtype=np.float64))
    scale[scale == 0] = 1.0
    if not columns:  # then it doesn't matter who stood left, and half as many rows will do
        swap = left > right
        left, right = np.where(swap, right, left), np.where(swap, left, right)
        outcome = np.where(swap & (outcome < 2), 1 - outcome, outcome)
    low, high = np.minimum(left, right), np.maximum(left, right)
    key = (low * len(names) + high) * 2 + (left != low)
    for column in columns:
        code, values = pd.factorize(column, sort=True)
        key = np.unique(key * len(values) + code, return_inverse=True)[1].reshape(-1)
    _, first, row = np.unique(key, return_index=True, return_inverse=True)
    z = np.stack([column[first] for column in columns], axis=1) / scale if columns else np.zeros((len(first), 0))
    design = Design(left[first], right[first], z, len(names), given if pinned else None)
    _check_effects(design, effects)
    cell = row.reshape(-1) * 3 + outcome
    return Battles(tuple(map(str, names)), design, effects, scale, cell, left, right)


def cluster_index(battles: pd.DataFrame, column: str) -> tuple[np.ndarray, int]:
    """Which battles are of one cluster: index ``[battles]``, and how many clusters there are."""
    return group_index(pd.factorize(labels(battles, column), sort=True)[0])


def _covariates(
    battles: pd.DataFrame, side_bias: str | None, covariates: Sequence[str]
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    columns, effects = [], []
    if side_bias == "all":
        columns.append(np.ones(len(battles)))
        effects.append(LEFT_SIDE)
    elif side_bias is not None:
        value = labels(battles, side_bias)
        for one in sorted(set(value)):
            columns.append((value == one).astype(np.float64))
            effects.append(f"{LEFT_SIDE}, {side_bias}={one}")
    for name in covariates:
        columns.append(numbers(battles, name))
        effects.append(name)
    return columns, tuple(effects)


def _check_effects(design: Design, effects: Sequence[str]) -> None:
    """Whether battles tell each covariate from strengths and from the covariates before it."""
    rows = np.zeros((len(design.left), design.players))
    place = np.arange(len(design.left))
    rows[place, design.left] = 1.0
    rows[place, design.right] -= 1.0
    known = rows[:, design.free[design.free < design.players]]
    gram = known.T @ known
    rank = np.linalg.matrix_rank(gram, hermitian=True)
    for k, effect in enumerate(effects):
        known = np.concatenate([known, design.covariates[:, k : k + 1]], axis=1)
        now = np.linalg.matrix_rank(known.T @ known, hermitian=True, tol=1e-9 * len(known))
        if now <= rank:
            raise TableError(
                f"{effect}: these battles can't tell it from the ratings; expected pairs shown both ways round, or "
                "with different values"
            )
        rank = now


def _check_connected(names: np.ndarray, first: np.ndarray, second: np.ndarray, pinned: np.ndarray) -> None:
    """Whether all have a common zero: through battles, or through strengths that are given."""
    edges = np.unique(np.stack([first, second], axis=1), axis=0)
    if len(pinned) > 1:
        edges = np.concatenate([edges, np.stack([pinned[:-1], pinned[1:]], axis=1)])
    graph = sparse.coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(names),) * 2)
    _, part = sparse.csgraph.connected_components(graph, directed=False)
    apart = np.flatnonzero(part != part[0])
    if len(apart):
        raise TableError(
            f"left/right={names[apart[0]]!r}: never met {names[0]!r}, not even through others; "
            "expected battles that connect all runs"
        )
