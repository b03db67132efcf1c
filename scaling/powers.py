"""The form that all laws here share, L = E + Σ_j c_j·x_j^(−p_j), on logarithms, and its derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Powers:
    """``terms`` powers, with an irreducible loss E below them where ``floor``.

    The parameters theta ``[size]`` are (log c_1 … log c_K, p_1 … p_K[, log E]), with u_j = log x_j − centre_j for
    abscissae: at the centre of the data a scale and its exponent are nearly independent.
    """

    terms: int
    floor: bool

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return 2 * self.terms + self.floor

    @property
    def exponents(self) -> slice:
        """Where theta holds p_1 … p_K."""
        return slice(self.terms, 2 * self.terms)

    def log_loss(self, theta: np.ndarray, u: np.ndarray) -> np.ndarray:
        """log L ``[P, n]`` of theta ``[P, size]`` at ``u [n, K]``."""
        parts = theta[:, None, : self.terms] - theta[:, None, self.exponents] * u
        if self.floor:
            last = np.broadcast_to(theta[:, None, -1:], (*parts.shape[:2], 1))
            parts = np.concatenate([parts, last], axis=-1)
        peak = parts.max(axis=-1, keepdims=True)
        total: np.ndarray = peak[..., 0] + np.log(np.exp(parts - peak).sum(axis=-1))
        return total

    def jacobian(self, theta: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Derivatives of log L by theta, ``[P, n, size]``."""
        total = self.log_loss(theta, u)
        share = np.exp(theta[:, None, : self.terms] - theta[:, None, self.exponents] * u - total[..., None])
        parts = [share, -u * share]
        if self.floor:
            parts.append(np.exp(theta[:, None, -1:] - total[..., None]))
        return np.concatenate(parts, axis=-1)

    def lifted(self, theta: np.ndarray, least: float) -> np.ndarray:
        """theta ``[P, size]`` with E at half of ``least``, a log loss, and scales as much lower at the centre.

        A descent sees no slope of log E where E is next to nothing: it has to be put where it matters to leave.
        """
        found = theta.copy()
        at = self.log_loss(theta, np.zeros((1, self.terms)))[:, 0]
        found[:, -1] = least + np.log(0.5)
        powers = np.maximum(np.exp(at) - np.exp(theta[:, -1]), 1e-300)
        wanted = np.maximum(np.exp(at) - np.exp(found[:, -1]), 0.1 * np.exp(at))
        found[:, : self.terms] += np.log(wanted / powers)[:, None]
        return found

    def box(self, u: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) ``[size]``: where theta is looked for, far beyond what data of this range can tell.

        A lone power may rise; of several, or over a floor, one that rises could not be told from the others.
        """
        steepest = 20.0 / np.maximum(np.ptp(u, axis=0), 1e-9) + 1.0
        gentlest = -steepest if self.terms == 1 and not self.floor else np.zeros(self.terms)
        lower = np.concatenate([np.full(self.terms, target.min() - 30), gentlest])
        upper = np.concatenate([np.full(self.terms, target.max() + 30), steepest])
        if self.floor:
            lower, upper = np.append(lower, target.min() - 12), np.append(upper, target.max())
        return lower, upper


def exponent_grid(terms: int, starts: int) -> np.ndarray:
    """``starts`` or a few more vectors of exponents ``[G, terms]``: all combinations of a ladder from 0.03 to 2.

    Exponents of losses that were ever published lie between 0.03 and 1.
    """
    each = max(2, int(np.ceil(starts ** (1 / terms) - 1e-9)))
    ladder = np.geomspace(0.03, 2.0, each)
    return np.stack(np.meshgrid(*[ladder] * terms, indexing="ij"), axis=-1).reshape(-1, terms)
