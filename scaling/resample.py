"""Bootstrap weights and intervals shared by laws, ELO and correlations. Everything is drawn from a given seed."""

from __future__ import annotations

import numpy as np
from scipy import stats


def group_index(groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Group labels ``[rows]`` of any type -> (index ``[rows]`` int64 from 0 in order of label, number of groups)."""
    unique, index = np.unique(np.asarray(groups), return_inverse=True)
    return index.reshape(-1).astype(np.int64), len(unique)


def group_counts(draws: int, groups: int, rng: np.random.Generator) -> np.ndarray:
    """How often each group comes up when ``groups`` groups are drawn with replacement: float64 ``[draws, groups]``."""
    return rng.multinomial(groups, np.full(groups, 1.0 / groups), size=draws).astype(np.float64)


def small_sample_factor(groups: int, parameters: int, level: float) -> float:
    """By how much a normal-theory interval must widen for few groups: Student's t over the normal quantile.

    Degrees of freedom are ``groups - parameters``, at least 1: with one left, a factor of 6.5 at 95 %, which is
    what an honest interval from so few runs looks like.
    """
    tail = (1 + level) / 2
    return float(stats.t.ppf(tail, max(groups - parameters, 1)) / stats.norm.ppf(tail))


def interval(
    samples: np.ndarray, level: float, *, centre: np.ndarray | float, widen: np.ndarray | float = 1.0
) -> np.ndarray:
    """Percentile interval of ``samples [draws, ...]`` -> ``[2, ...]``, its arms about ``centre`` times ``widen``.

    Source: Efron 1979 for the percentiles; the stretch is Hesterberg 2015's expanded percentile interval, applied
    to the arms instead of to the percentile, which few draws cannot resolve.
    """
    tail = (1 - level) / 2
    ends = np.quantile(samples, [tail, 1 - tail], axis=0)
    return centre + widen * (ends - centre)


def how_resampled(resampled: str, level: float, draws: int, seeds: int) -> str:
    """What a ranking's intervals are made of, and what is not in them, in words."""
    if resampled == "none":
        return "no intervals, since nothing was resampled"
    text = f"{level * 100:g} % intervals from {draws} resamples"
    if resampled == "settings":
        return f"{text} of the settings: of the order over settings, not over repeated measurement"
    if resampled == "prompts":
        return f"{text} of the prompts; one training each, whose luck is not in them"
    prompts = "the prompts and of " if resampled == "prompts and seeds" else ""
    return f"{text} of {prompts}{seeds} training seeds, whose spread is pooled over all that is compared"
