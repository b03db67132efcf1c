"""Vertices of parabolas, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def fieller(slope: float, bend: float, spread: np.ndarray, t: float) -> tuple[float, float] | None:
    """The u at which slope + 2 bend u is not told from 0 (Fieller 1954); None where these are not an interval.

    ``spread [2, 2]`` is the covariance of both.
    """
    a = 4 * (bend**2 - t**2 * spread[1, 1])
    b = 4 * (slope * bend - t**2 * spread[0, 1])
    c = slope**2 - t**2 * spread[0, 0]
    if a <= 0:
        return None
    root = np.sqrt(max(b**2 - 4 * a * c, 0.0))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def vertex_error(slope: float, bend: float, spread: np.ndarray) -> float:
    """Standard error of the vertex −slope / (2 bend) by the delta method."""
    gradient = np.array([-1 / (2 * bend), slope / (2 * bend**2)])
    return float(np.sqrt(gradient @ spread @ gradient))


@dataclass(frozen=True)
class Parabola:
    """Rows of a table that a parabola over x goes through, for many columns of values at once (least squares)."""

    rows: np.ndarray
    x: np.ndarray
    """Of these rows, ``[m]``."""
    _project: np.ndarray
    """Values ``[m]`` to coefficients ``[3]`` of 1, u, u² with u = x − the middle of x."""

    @classmethod
    def of(cls, rows: np.ndarray, x: np.ndarray) -> Parabola:
        """Through ``rows`` (indices) of a table whose x is ``x [all rows]``; three different x or more."""
        own = x[rows]
        return cls(rows, own, np.linalg.pinv(np.vander(own - cls._middle_of(own), 3, increasing=True)))

    @staticmethod
    def _middle_of(x: np.ndarray) -> float:
        return float((x.min() + x.max()) / 2)

    @property
    def middle(self) -> float:
        """Between the least and the greatest x."""
        return self._middle_of(self.x)

    @property
    def spread(self) -> np.ndarray:
        """Covariance ``[3, 3]`` of the coefficients for values with independent noise of variance 1."""
        return self._project @ self._project.T

    @property
    def leverage(self) -> np.ndarray:
        """By how much each row's own value pulls the parabola there, 0 to 1, ``[m]``."""
        return np.einsum("mk,km->m", np.vander(self.x - self.middle, 3, increasing=True), self._project)

    def coefficients(self, values: np.ndarray) -> np.ndarray:
        """``[..., 3]`` of 1, u, u², for values ``[..., all rows]``."""
        found: np.ndarray = values[..., self.rows] @ self._project.T
        return found

    def at(self, coefficients: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Value of parabolas ``[..., 3]`` at ``x [...]``."""
        u = x - self.middle
        return coefficients[..., 0] + u * (coefficients[..., 1] + u * coefficients[..., 2])

    def residuals(self, values: np.ndarray) -> np.ndarray:
        """Values less the parabola, ``[..., m]``, for values ``[..., all rows]``."""
        found: np.ndarray = values[..., self.rows] - self.at(self.coefficients(values)[..., None, :], self.x)
        return found

    def vertices(self, coefficients: np.ndarray) -> np.ndarray:
        """The x of the least value, ``[...]``; NaN where a parabola bends down, or has it beyond its rows."""
        slope, bend = coefficients[..., 1], coefficients[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            u = np.where(bend > 0, -slope / (2 * bend), np.nan)
        half = np.ptp(self.x) / 2
        return np.where(np.abs(u) <= half * (1 + 1e-9), self.middle + u, np.nan)
