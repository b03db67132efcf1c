"""What a table leaves open of a law: said in words, instead of a confident number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scaling.law_bootstrap import Problem
from scaling.law_kinds import Kind

MOST_CONDITION = 300.0
"""Of the scaled Jacobian; above, a direction is so flat that noise of a thousandth moves parameters by a third."""


@dataclass(frozen=True)
class Identification:
    """``condition``: of the derivatives of log loss by (log scales, exponents, log floor) at the centre of the data,
    each scaled to length one. ``flat``: the parameters that move together in the flattest direction, empty where none
    is flat. ``reasons``: what the data leave open, one short sentence each."""

    condition: float
    flat: str
    reasons: tuple[str, ...]


def identify(
    kind: Kind,
    problem: Problem,
    theta: np.ndarray,
    params: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    ends: np.ndarray,
    loss: np.ndarray,
) -> Identification:
    """``ends [starts, 1 + size]``: objective and theta of every descent, of which several may be equally good."""
    jacobian = problem.form.jacobian(theta[None], problem.u)[0]
    length = np.sqrt((jacobian**2).sum(axis=0))
    _, singular, directions = np.linalg.svd(jacobian / np.maximum(length, 1e-300))
    condition = float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf")
    flat = ""
    if condition > MOST_CONDITION:
        names = [*kind.scales, *kind.exponents, *([kind.floor] if problem.form.floor else [])]
        share = np.abs(directions[-1])
        flat = ", ".join(name for name, part in zip(names, share, strict=True) if part > 0.2)
    reasons = [
        *_thin(kind, problem),
        *_open(kind, problem, intervals, loss),
        *([f"{flat} move together at almost no cost (condition number {condition:.3g})"] if flat else []),
        *_several(kind, problem, params, intervals, ends),
    ]
    return Identification(condition, flat, tuple(reasons))


def _thin(kind: Kind, problem: Problem) -> list[str]:
    """Too few different values, or values of N and D that move together."""
    found = []
    names = ("compute",) if kind.name == "power" else kind.abscissae
    need = 2 + problem.form.floor
    for name, column in zip(names, problem.u.T, strict=True):
        distinct = len(np.unique(column))
        if distinct < need + 1 and len(names) == 1:
            found.append(f"{distinct} different values of {name} cannot check a law of {need} parameters")
        elif distinct < need:
            found.append(f"{distinct} different values of {name} cannot fix its exponent beside a floor")
    if not found and problem.groups < problem.form.size + 1:
        found.append(f"{problem.groups} groups of rows cannot check a law of {problem.form.size} parameters")
    if len(names) == 2:
        together = float(np.corrcoef(problem.u.T)[0, 1])
        if abs(together) > 0.98:
            found.append(f"{names[0]} and {names[1]} move together (correlation of their logs {together:.3f})")
    return found


def _open(kind: Kind, problem: Problem, intervals: Mapping[str, tuple[float, float]], loss: np.ndarray) -> list[str]:
    """Exponents that may be zero, floors that may be none."""
    found = []
    smallest = float(loss.min())
    for name in kind.exponents:
        low, high = intervals[name]
        if np.isnan(low) or np.isnan(high):  # no bootstrap was asked for
            return []
        if low <= 0 <= high or not np.isfinite(low):
            of = f"the interval [{low:.3g}, {_end(high)}] of {name}"
            shown = f"the exponent's interval [{_end(low)}, {_end(high)}]" if kind.name == "power" else of
            found.append(f"{shown} holds zero: no trend is shown")
        elif not np.isfinite(high):
            found.append(f"{name} is open above {low:.3g}: no larger value costs enough to be excluded")
    if problem.form.floor:
        low, high = intervals[kind.floor]
        called = "the floor" if kind.name == "power" else kind.floor
        if low < 0.01 * smallest:
            found.append(f"{called}'s interval [{low:.3g}, {_end(high)}] reaches zero: the data do not show a floor")
        elif high - low > 0.5 * smallest:
            found.append(f"{called}'s interval [{low:.3g}, {_end(high)}] is wider than half the smallest loss")
    return found


def _end(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "open"


def _several(
    kind: Kind,
    problem: Problem,
    params: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    ends: np.ndarray,
) -> list[str]:
    """Descents that end apart and equally low."""
    if not problem.form.floor or np.isnan(intervals[kind.exponents[0]][0]):
        return []
    near = ends[ends[:, 0] <= ends[:, 0].min() * (1 + 1e-3) + problem.delta * 1e-6]
    for j, name in enumerate(kind.exponents):
        if np.ptp(near[:, 1 + problem.form.terms + j]) > 0.1 * abs(params[name]):
            called = "the exponent" if kind.name == "power" else name
            return [f"fits that differ by more than a tenth in {called} are equally good"]
    return []
