"""The strengths that battles speak for, how far they may be off, and what other battles might have given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling.battle_counts import Battles, Clusters
from scaling.davidson import Design, fit
from scaling.resample import group_index
from scaling.sandwich import jackknife, one_step_bootstrap, over_both

MOST_ROWS = 10_000
"""Beyond so many different (pair, covariates) a bootstrap is a Newton step from the optimum, not a whole fit."""


@dataclass(frozen=True)
class Estimate:
    """Parameters, their sandwich, the clusters to resample (of two kinds, that with fewer), clusters of each."""

    theta: np.ndarray
    covariance: np.ndarray
    clusters: Clusters
    sizes: tuple[int, ...]

    @property
    def freedom(self) -> float:
        """Of Student's t: as many as clusters of one size would leave, 1 at least (0 for one cluster)."""
        return max(self.clusters.effective - 1, min(self.clusters.count - 1.0, 1.0))


def estimated(counted: Battles, indices: Sequence[tuple[np.ndarray, int]]) -> Estimate:
    """The fit, with the sandwich over one kind of clusters or over two (see ``cluster_index``)."""
    clusters = [counted.clusters(index, count) for index, count in indices]
    theta = fit(counted.design, clusters[0].total()[None])[0]
    covariances = [jackknife(counted.design, theta, part) for part in clusters]
    covariance = covariances[0]
    fewest = min(clusters, key=lambda part: part.effective)
    if len(clusters) == 2 and fewest.count > 1:
        crossed = group_index(indices[0][0] * indices[1][1] + indices[1][0])
        both = jackknife(counted.design, theta, counted.clusters(*crossed))
        covariance = over_both(covariances[0], covariances[1], both)
    return Estimate(theta, covariance, fewest, tuple(part.count for part in clusters))


def bootstrap(design: Design, found: Estimate, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Parameters of resampled tables: ``[draws, parameters]``."""
    if len(design.left) > MOST_ROWS:
        return one_step_bootstrap(design, found.theta, found.clusters, draws, rng)
    resampled = found.clusters.resampled(draws, rng)
    return np.concatenate([fit(design, part, start=found.theta) for part in resampled])
