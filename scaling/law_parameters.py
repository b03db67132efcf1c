"""A law's parameters by name, from theta at the centre of the data: values, percentiles, profiles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scaling.law_bootstrap import Problem
from scaling.law_kinds import POWER, Kind
from scaling.profile import profiles
from scaling.resample import interval

Ends = tuple[float, float]


def logs_of(kind: Kind, problem: Problem, at: np.ndarray) -> dict[str, np.ndarray]:
    """Each parameter of ``at [..., size]``: exponents, and logs of scales (at 1, not the centre) and of the floor."""
    terms = problem.form.terms
    found = {}
    for j, (scale, exponent) in enumerate(zip(kind.scales, kind.exponents, strict=True)):
        found[scale] = at[..., j] + at[..., terms + j] * problem.centre[j]
        found[exponent] = at[..., terms + j]
    if problem.form.floor:
        found[kind.floor] = at[..., -1]
    return found


def values_of(kind: Kind, problem: Problem, theta: np.ndarray) -> dict[str, float]:
    """The parameters of one theta ``[size]``."""
    return {name: float(value) for name, value in _raised(kind, logs_of(kind, problem, theta)).items()}


def percentiles_of(
    kind: Kind, problem: Problem, theta: np.ndarray, samples: np.ndarray, level: float, widen: float
) -> dict[str, Ends]:
    """(low, high) of each by ``samples [draws, size]``; NaN without any.

    The arms are stretched where theta lives: on logs of scales and floor, on exponents themselves.
    """
    centre, spread = logs_of(kind, problem, theta), logs_of(kind, problem, samples)
    found = {name: np.full(2, np.nan) for name in centre}
    if len(samples):
        found = {name: interval(spread[name], level, centre=value, widen=widen) for name, value in centre.items()}
    return _ends(kind, found)


def profiled_of(kind: Kind, problem: Problem, theta: np.ndarray, ends: np.ndarray, level: float) -> dict[str, Ends]:
    """(low, high) of each by its profile; ``ends`` are other descents' (``profiles``).

    An exponent that has no sign but + is 0 at least. A scale is told at 1, far from the rows: where its exponent is
    open, so is it.
    """
    directions = logs_of(kind, problem, np.eye(problem.form.size))
    intervals = profiles(problem, theta, np.stack(list(directions.values())), level, ends)
    found = {}
    for name, (low, high) in zip(directions, intervals, strict=True):
        if name in kind.exponents and problem.lower[problem.form.exponents].min() >= 0:
            low = max(low, 0.0)
        found[name] = np.array([low, high])
    for centre, scale, exponent in zip(problem.centre, kind.scales, kind.exponents, strict=True):
        with np.errstate(invalid="ignore"):  # at a centre of 1 (log 0) the scale does not depend on the exponent
            carried = np.sort(found[exponent] * centre)
        found[scale] = np.where(np.isinf(carried), carried, found[scale])
    return _ends(kind, found)


def _ends(kind: Kind, found: Mapping[str, np.ndarray]) -> dict[str, Ends]:
    return {name: (float(low), float(high)) for name, (low, high) in _raised(kind, found).items()}


def _raised(kind: Kind, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scales and floor from their logs, in the order of the equation: a joint law's E first, a power law's floor last.

    A law without a floor has one of 0.
    """
    with np.errstate(over="ignore"):
        told = {name: value if name in kind.exponents else np.exp(value) for name, value in found.items()}
    floor = {kind.floor: told.pop(kind.floor, np.zeros_like(told[kind.exponents[0]]))}
    return {**told, **floor} if kind is POWER else {**floor, **told}
