"""Budgets together: the vertices of many tables on one grid of runs, and the power laws through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling.allocation import line
from scaling.parabola import Parabola


@dataclass(frozen=True)
class Grid:
    """Budgets that take part: their rows, the log compute ``middles [B]``, and the ``weight [B]`` of each vertex."""

    parabolas: tuple[Parabola, ...]
    log_d: np.ndarray
    """Of all rows of the table."""
    middles: np.ndarray
    weight: np.ndarray

    @property
    def centre(self) -> float:
        """The weighted mean of log compute."""
        return float(np.average(self.middles, weights=self.weight))

    @property
    def rows(self) -> np.ndarray:
        """Indices of all rows of the budgets, one budget after another."""
        return np.concatenate([parabola.rows for parabola in self.parabolas])

    def data(self, number: int, log_n: np.ndarray) -> np.ndarray:
        """log D of a run of budget ``number`` with size ``log_n``: a parabola in log N through the budget's rows."""
        parabola = self.parabolas[number]
        return parabola.at(parabola.coefficients(self.log_d), log_n)

    def vertices(self, values: np.ndarray) -> np.ndarray:
        """log N ``[..., B]`` of each budget's least value, for values ``[..., all rows]``."""
        found = [parabola.vertices(parabola.coefficients(values)) for parabola in self.parabolas]
        return np.stack(found, axis=-1)

    def lines(self, vertices: np.ndarray) -> np.ndarray:
        """(value at ``centre``, slope) ``[..., 2, 2]`` of log N, log D over log compute; NaN vertices left out."""
        data = np.stack([self.data(k, vertices[..., k]) for k in range(len(self.parabolas))], axis=-1)
        weight = np.where(np.isfinite(vertices), self.weight, 0.0)
        u = self.middles - self.centre
        return np.stack([line(u, vertices, weight), line(u, data, weight)], axis=-2)

    def misfit(self, vertices: np.ndarray) -> float:
        """By what factor the vertices ``[B]`` lie farther from their line than their errors, 1/√weight; at least 1."""
        if len(self.middles) < 3:
            return 1.0
        level, slope = self.lines(vertices)[0]
        residual = vertices - level - slope * (self.middles - self.centre)
        return float(np.sqrt(max((self.weight * residual**2).sum() / (len(self.middles) - 2), 1.0)))

    def redrawn(self, values: np.ndarray, groups: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Values ``[draws, all rows]`` of tables like this one: the parabolas plus noise, elsewhere NaN.

        Rows swap residuals, freed of the parabola's pull; rows that share a group get one random sign and size together
        (Webb 2014).
        """
        fitted = np.full(len(values), np.nan)
        residual, pull = np.zeros(len(values)), np.zeros(len(values))
        for parabola in self.parabolas:
            fitted[parabola.rows] = parabola.at(parabola.coefficients(values), parabola.x)
            residual[parabola.rows], pull[parabola.rows] = parabola.residuals(values), parabola.leverage
        rows = self.rows
        free = np.maximum(1 - pull, 1e-9)
        # A parabola through three sizes leaves no residual there, which is no sign of little noise.
        known = rows[free[rows] > 1e-6]
        own = groups[rows]
        if len(np.unique(own)) == len(rows):
            pool = residual[known] / np.sqrt(free[known])
            noise = rng.choice(pool - pool.mean(), size=(draws, len(rows)))
        else:
            sizes = np.sqrt([0.5, 1.0, 1.5])
            _, member = np.unique(own, return_inverse=True)
            signs = rng.choice(np.concatenate([-sizes, sizes]), size=(draws, int(member.max()) + 1))
            noise = signs[:, member.reshape(-1)] * np.where(free[rows] > 1e-6, residual[rows] / free[rows], 0.0)
        found = np.full((draws, len(values)), np.nan)
        found[:, rows] = fitted[rows] + noise
        return found


def at_equal_compute(values: np.ndarray, log_c: np.ndarray, parabolas: Sequence[Parabola]) -> np.ndarray:
    """Values ``[..., all rows]``, those of each budget brought to its mean of ``log_c [all rows]``.

    By one slope for all budgets, of what the parabolas leave of both.
    """
    rows = np.concatenate([parabola.rows for parabola in parabolas])
    apart = np.concatenate([log_c[parabola.rows] - log_c[parabola.rows].mean() for parabola in parabolas])
    left = np.concatenate([parabola.residuals(log_c) for parabola in parabolas])
    if np.abs(left).max() < 1e-6:
        return values
    own = np.concatenate([parabola.residuals(values) for parabola in parabolas], axis=-1)
    slope = (own @ left) / (left @ left)
    found = np.array(values)
    found[..., rows] -= slope[..., None] * apart
    return found
