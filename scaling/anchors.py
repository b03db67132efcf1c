"""Whether battles agree with several ratings that were given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import stats

from scaling.battle_counts import Battles, Clusters
from scaling.davidson import ELO, fit
from scaling.sandwich import jackknife


def agreement(counted: Battles, clusters: Clusters, given: Mapping[str, float]) -> float:
    """p-value of the Wald test that all are fitted as far apart as ``given`` says; NaN for one anchor or cluster.

    By the sandwich of a fit without anchors; F with (anchors − 1, clusters − 1) degrees of freedom, clusters counted
    as ``Clusters.effective`` does.
    """
    if len(given) < 2 or clusters.count < 2:
        return float("nan")
    design = dataclasses.replace(counted.design, pinned=None)
    theta = fit(design, clusters.total()[None])[0]
    first, *others = (counted.names.index(name) for name in given)
    gaps = np.zeros((len(others), design.size))
    gaps[np.arange(len(others)), others] = 1.0
    gaps[:, first] = -1.0
    elo = np.array(list(given.values()))
    off = gaps @ theta - (elo[1:] - elo[0]) / ELO
    spread = gaps @ jackknife(design, theta, clusters) @ gaps.T
    size = float(off @ np.linalg.pinv(spread, hermitian=True) @ off) / len(off)
    return float(stats.f.sf(size, len(off), max(clusters.effective - 1, 1.0)))
