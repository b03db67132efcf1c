"""Rows that share something, such as a ladder or a seed: how sure a statistic is then, without a resample.

The jackknife leaves out whole groups, one at a time. It is held to Student's t with as many degrees of freedom as the
groups bear, so that few groups give wide intervals instead of false ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from scaling.errors import TableError
from scaling.resample import group_index

DRAWS = 20_000
"""Of the joint distribution of several statistics, for the largest of them."""

NOTHING = 1e-9
"""A standard error below is none: no group changes the value, as when all orders agree."""

FEWEST = 3
"""Groups that some factor must have: two are one difference, which may be small by luck."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""Weights ``[B, rows]`` (how often each row is there) -> values ``[B, k]``."""


@dataclass(frozen=True)
class Groups:
    """By factor, which group each row is in: an index ``[rows]`` from 0. Without a factor every row stands alone.

    Several factors are crossed: two rows depend on each other where they share a group of any.
    """

    rows: int
    index: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, rows: int, labels: Mapping[str, np.ndarray]) -> Groups:
        """From labels ``[rows]`` by factor. Raises TableError for a factor with one group only."""
        index = {}
        for name, column in labels.items():
            index[name], count = group_index(column)
            if count < 2:
                raise TableError(f"group={name!r}: {str(column[0])!r} in every row; expected 2 or more groups")
        return cls(rows, index)

    @property
    def counts(self) -> dict[str, int]:
        """How many groups each factor has."""
        return {name: int(index.max()) + 1 for name, index in self.index.items()}

    @property
    def factors(self) -> list[np.ndarray]:
        """Each factor's index; the rows themselves where there is none."""
        return list(self.index.values()) or [np.arange(self.rows)]

    @property
    def cells(self) -> np.ndarray:
        """Index ``[rows]`` of what rows share in all factors."""
        return _joint(self.factors)

    @property
    def few(self) -> bool:
        """Whether no factor has FEWEST groups, so that nothing is known of how they spread."""
        return max(int(factor.max()) + 1 for factor in self.factors) < FEWEST

    def equal(self) -> bool:
        """Whether every combination of the factors' groups has the same number of rows: what permuting groups needs."""
        cells = np.bincount(self.cells)
        return bool(len(cells) == np.prod([f.max() + 1 for f in self.factors]) and (cells == cells[0]).all())

    def permutations(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` orders ``[count, rows]`` of the rows: groups change places whole, and rows within a cell do.

        Under these a column keeps its dependence, and loses what it has to do with another. For ``equal`` groups.
        """
        factors, size = self.factors, int(np.bincount(self.cells)[0])
        shape = [int(factor.max()) + 1 for factor in factors]
        table = np.lexsort(list(reversed(factors))).reshape(*shape, size)
        moved = [rng.permuted(np.tile(np.arange(groups), (count, 1)), axis=1) for groups in shape]
        place = np.broadcast_to(np.arange(int(np.prod(shape))).reshape(shape), (count, *shape))
        for axis, order in enumerate(moved):
            wide = order.reshape(count, *(-1 if a == axis else 1 for a in range(len(shape))))
            place = np.take_along_axis(place, np.broadcast_to(wide, place.shape), axis=axis + 1)
        picked = table.reshape(-1, size)[place]
        picked = (rng.permuted(picked, axis=-1) if size > 1 else picked).reshape(count, -1)
        out = np.empty((count, self.rows), dtype=np.int64)
        out[:, table.reshape(-1)] = picked
        return out


@dataclass(frozen=True)
class Spread:
    """Jackknife of a statistic of k values: what they are, their covariance ``[k, k]``, degrees of freedom ``[k]``."""

    values: np.ndarray
    covariance: np.ndarray
    freedom: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """Standard errors ``[k]``."""
        return np.sqrt(np.diag(self.covariance))

    def part(self, first: int) -> Spread:
        """Of the values from the ``first`` on."""
        return Spread(self.values[first:], self.covariance[first:, first:], self.freedom[first:])

    def p_values(self) -> np.ndarray:
        """Two-sided, that each value is 0: Student's t. NaN without spread, which the values' size can't replace."""
        errors = np.where(self.errors < NOTHING, np.nan, self.errors)
        return np.asarray(2 * stats.t.sf(np.abs(self.values / errors), self.freedom))

    def p_of_largest(self, rng: np.random.Generator) -> np.ndarray:
        """The same for whoever picks the largest |t| of all k: from their joint t distribution, DRAWS draws.

        After Westfall and Young 1993's max-T, with the multivariate t in place of resamples, which few groups lack.
        Its degrees of freedom are the fewest of any value.
        """
        errors = self.errors
        known = np.isfinite(errors) & (errors >= NOTHING)
        out = np.full(len(errors), np.nan)
        if not known.any():
            return out
        scaled = self.covariance[np.ix_(known, known)] / np.outer(errors[known], errors[known])
        size, directions = np.linalg.eigh(scaled)
        factor = directions * np.sqrt(np.maximum(size, 0))
        freedom = float(self.freedom[known].min())
        normal = rng.normal(size=(DRAWS, len(size))) @ factor.T
        largest = np.abs(normal / np.sqrt(rng.chisquare(freedom, size=(DRAWS, 1)) / freedom)).max(axis=1)
        found = np.abs(self.values[known] / errors[known])
        out[known] = (1 + (largest[None] >= found[:, None]).sum(axis=1)) / (1 + DRAWS)
        return out


def jackknife(statistic: Statistic, groups: Groups, parameters: int = 0) -> Spread:
    """How a statistic spreads, by leaving out groups.

    One factor of G groups: variance (G−1)/G · Σ(value without g − mean of these)², and G − 1 − ``parameters`` degrees
    of freedom, at least 1. Crossed factors: the factors' variances added, and Satterthwaite 1946's degrees of freedom.
    That counts twice what is each row's own, so that intervals err on the long side; taking the double off (Cameron,
    Gelbach and Miller 2011) leaves them short where both factors matter and have ten groups each.

    NaN where a value isn't defined without some group, and all of it where groups are ``few``.
    """
    values = statistic(np.ones((1, groups.rows)))[0]
    found, freedom = [], []
    for index in groups.factors:
        count = int(index.max()) + 1
        left = statistic((index[None] != np.arange(count)[:, None]).astype(np.float64))
        around = left - left.mean(axis=0)
        found.append((count - 1) / count * around.T @ around)
        freedom.append(max(count - 1 - parameters, 1))
    variances = np.stack([np.diag(covariance) for covariance in found])
    with np.errstate(invalid="ignore", divide="ignore"):
        free = variances.sum(axis=0) ** 2 / (variances**2 / np.array(freedom)[:, None]).sum(axis=0)
    unknown = math.nan if groups.few else 0.0
    return Spread(values, np.sum(found, axis=0) + unknown, np.nan_to_num(free, nan=1.0))


def _joint(factors: list[np.ndarray]) -> np.ndarray:
    """Index ``[rows]`` from 0 of the combinations of several factors' groups that occur."""
    index = factors[0]
    for other in factors[1:]:
        index = np.unique(index * (int(other.max()) + 1) + other, return_inverse=True)[1].reshape(-1)
    return index
