"""Whether a law misses repeated settings by more than their repetitions differ."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from scaling.law_bootstrap import Problem, settings

LACKING = 0.05
"""A lower p counts as shown."""
_EXACT = 1e-10
"""Log losses that a law misses by less than this are met."""


@dataclass(frozen=True)
class Lack:
    """The classical test of lack of fit: mean square of the settings' mean residuals over that within settings."""

    f: float
    p: float
    setting: np.ndarray
    """Of each row, from 0."""
    luck_of_one: float
    """What one run has of luck beyond a setting's mean: √(1 − 1/m) of the standard deviation within settings of m."""


def lack_of_fit(u: np.ndarray, residual: np.ndarray, size: int) -> Lack | None:
    """Of residuals ``[n]`` of a law with ``size`` parameters, rows at the same ``u [n, K]`` being repetitions.

    None where nothing is repeated, or there are no more settings than parameters.
    """
    setting = settings(u)
    count = np.bincount(setting)
    between, within = len(count) - size, len(residual) - len(count)
    if between < 1 or within < 1:
        return None
    mean = np.bincount(setting, weights=residual) / count
    missed = float((count * mean**2).sum()) / between
    luck = float(((residual - mean[setting]) ** 2).sum()) / within
    if missed < _EXACT**2:
        return Lack(0.0, 1.0, setting, 0.0)
    f = missed / luck if luck > 0 else np.inf
    of_one = float(np.sqrt(luck * (1 - np.mean(1 / count))))
    return Lack(float(f), float(stats.f.sf(f, between, within)), setting, of_one)


def averaged(problem: Problem, lack: Lack) -> Problem:
    """The problem of each setting's mean log loss, one row a setting."""
    count = np.bincount(lack.setting)
    _, first = np.unique(lack.setting, return_index=True)
    mean = np.bincount(lack.setting, weights=problem.target) / count
    return replace(problem, u=problem.u[first], target=mean, member=np.arange(len(count)))
