"""What the SD3 paper prints of each formulation, in numpy float64 and from the name alone; no code of the package."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.stats

Floats = np.ndarray
SIGMA_DATA = 0.5


def _ldm_log_a2() -> Floats:
    """log ∏(1 − β) of LDM's 1000 steps, one more at the front for no step at all."""
    i = np.arange(1000)
    root = np.sqrt(0.00085) + i / 999 * (np.sqrt(0.012) - np.sqrt(0.00085))
    return np.log(np.cumprod(np.concatenate([[1.0], 1.0 - root**2])))


LDM_LOG_A2 = _ldm_log_a2()


def mode_map(u: Floats, s: float) -> Floats:
    """Equation 20."""
    return 1 - u - s * (np.cos(np.pi * u / 2) ** 2 - 1 + u)


@dataclass(frozen=True)
class Oracle:
    """A formulation of the paper by name; every function takes t in (0, 1), float64 [n]."""

    name: str

    @property
    def numbers(self) -> list[float]:
        inside = re.search(r"\((.*)\)", self.name)
        return [float(word) for word in inside.group(1).split(",")] if inside else []

    @property
    def stem(self) -> str:
        return self.name.split("(")[0]

    @property
    def path(self) -> str:
        first, _, last = self.stem.partition("/")
        return first if first in ("rf", "edm") else last

    @property
    def prediction(self) -> str:
        return {"rf": "velocity", "edm": "F"}.get(self.stem.split("/")[0], self.stem.split("/")[0])

    def a(self, t: Floats) -> Floats:
        if self.path == "rf":
            return 1 - t
        if self.path == "cos":
            return np.sin(np.pi / 2 * (1 - t))
        if self.path == "linear":
            return np.exp(np.interp(t * 1000, np.arange(1001), LDM_LOG_A2) / 2)
        return np.ones_like(t)

    def b(self, t: Floats) -> Floats:
        if self.path == "rf":
            return t
        if self.path == "cos":
            return np.sin(np.pi / 2 * t)
        if self.path == "linear":
            return np.sqrt(-np.expm1(np.interp(t * 1000, np.arange(1001), LDM_LOG_A2)))
        if self.stem == "edm":
            return scipy.stats.lognorm.ppf(t, self.numbers[1], scale=np.exp(self.numbers[0]))
        return t / (1 - t) if self.stem == "edm/rf" else np.tan(np.pi / 2 * t)

    def lam(self, t: Floats) -> Floats:
        return np.log(self.a(t) ** 2) - np.log(self.b(t) ** 2)

    def slopes(self, t: Floats) -> tuple[Floats, Floats]:
        """(a', b')."""
        if self.path == "rf":
            return -np.ones_like(t), np.ones_like(t)
        if self.path == "cos":
            return -np.pi / 2 * np.sin(np.pi / 2 * t), np.pi / 2 * np.sin(np.pi / 2 * (1 - t))
        if self.path == "linear":  # a² + b² = 1, log a² linear between the steps
            log_slope = np.diff(LDM_LOG_A2)[np.floor(t * 1000).astype(int)] * 1000
            a = self.a(t)
            return a * log_slope / 2, -(a**2) * log_slope / 2 / self.b(t)
        if self.stem == "edm":  # σ is the inverse of its distribution function
            sigma = self.b(t)
            density = scipy.stats.lognorm.pdf(sigma, self.numbers[1], scale=np.exp(self.numbers[0]))
            return np.zeros_like(t), 1 / density
        by_t = 1 / (1 - t) ** 2 if self.stem == "edm/rf" else np.pi / 2 / np.sin(np.pi / 2 * (1 - t)) ** 2
        return np.zeros_like(t), by_t

    def lam_slope(self, t: Floats) -> Floats:
        a_slope, b_slope = self.slopes(t)
        return 2 * (a_slope / self.a(t) - b_slope / self.b(t))

    def density(self, t: Floats) -> Floats:
        """Of the drawn t."""
        if self.stem == "rf/lognorm":
            m, s = self.numbers
            logit = np.log(t) - np.log1p(-t)
            return np.exp(-((logit - m) ** 2) / (2 * s**2)) / (s * np.sqrt(2 * np.pi) * t * (1 - t))
        if self.stem == "rf/mode":
            (s,) = self.numbers
            u = np.array([scipy.optimize.brentq(lambda u, x=x: mode_map(u, s) - x, 0, 1, xtol=1e-15) for x in t])
            return 1 / np.abs(-1 - s * (1 - np.pi / 2 * np.sin(np.pi * u)))
        return 2 / (np.pi - 2 * np.pi * t + 2 * np.pi * t**2) if self.stem == "rf/cosmap" else np.ones_like(t)

    def w(self, t: Floats) -> Floats:
        """The paper's w as a function of λ (and, of rf, of the density at λ's t)."""
        lam = self.lam(t)
        if self.path == "rf":
            return np.exp(-lam / 2) * self.density(t)
        if self.path == "cos":
            return 1 / np.cosh(lam / 2) if self.prediction == "eps" else np.exp(-lam / 2)
        if self.path == "linear":  # none is printed: plain mean squares of ε or of v
            return -2 / self.lam_slope(t) * (1 if self.prediction == "eps" else 1 + np.exp(-lam))
        if self.stem == "edm":
            density = scipy.stats.norm.pdf(lam, -2 * self.numbers[0], 2 * self.numbers[1])
        elif self.stem == "edm/rf":  # the λ that uniform t gives on the straight path is logistic
            density = scipy.stats.logistic.pdf(lam, scale=2)
        else:  # and on the cosine path a hyperbolic secant
            density = 1 / np.cosh(lam / 2) / (2 * np.pi)
        return density * (np.exp(-lam) + SIGMA_DATA**2)

    def effective_weight(self, t: Floats) -> Floats:
        """−½ w λ'."""
        return -0.5 * self.w(t) * self.lam_slope(t)

    def network_input(self, z: Floats, t: Floats) -> Floats:
        """c_in z of EDM's preconditioning; z itself elsewhere."""
        return z / np.sqrt(self.b(t) ** 2 + SIGMA_DATA**2)[:, None] if self.prediction == "F" else z

    def quantities(self, x0: Floats, eps: Floats, t: Floats) -> dict[str, Floats]:
        """All that a network may predict, of x0 and ε [n, d]."""
        a, b, a_slope, b_slope = (x[:, None] for x in (self.a(t), self.b(t), *self.slopes(t)))
        angle, sigma = np.arctan2(b, a), b / a
        c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
        c_out = sigma * SIGMA_DATA / np.sqrt(sigma**2 + SIGMA_DATA**2)
        return {
            "x0": x0,
            "eps": eps,
            "v": np.cos(angle) * eps - np.sin(angle) * x0,
            "F": (x0 - c_skip * (x0 + sigma * eps)) / c_out,
            "velocity": a_slope * x0 + b_slope * eps,
        }
