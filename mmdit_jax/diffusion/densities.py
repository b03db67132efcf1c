"""Densities over t that a rectified flow is trained under: SD3 paper, section 3.1, and histograms over t.

Each density is a pair: its quantile function, which turns u ~ U(0,1) into a sample, and its probability density. Which
of them is meant is an index (``KINDS``) that may be traced: ``quantile`` and ``pdf`` dispatch with ``lax.switch``, so
one compiled program serves all of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri
from jax.typing import ArrayLike

KINDS = ("uniform", "lognorm", "mode", "cosmap", "histogram", "adaptive")
MODE_MIN, MODE_MAX = -1.0, 2.0 / (math.pi - 2.0)  # mode(s) is monotone, hence a density, only in this range

# t stays in [T_MIN, 1 - T_MIN], where every path is finite in float32. It costs 2e-5 of a uniform density's mass, which
# is drawn at the ends; of a density far out, as lognorm(10, 1), more.
T_MIN = 1e-5
_U_MIN = 2.0**-24  # jax.random.uniform can return 0, where a quantile may be infinite
MAX_BINS = 64  # of a histogram
_BISECTIONS = 26  # halvings of [0, 1] until the interval is below float32's resolution


def clip_time(t: ArrayLike) -> Array:
    """t as float32 within [T_MIN, 1 - T_MIN], where nothing divides by zero."""
    return jnp.clip(jnp.asarray(t, jnp.float32), T_MIN, 1.0 - T_MIN)


class Histogram(NamedTuple):
    """A density that is constant on each of ``bins`` equal parts of [0, 1]."""

    masses: ArrayLike
    """Relative masses, float32 [MAX_BINS]: those of the first ``bins`` count, the rest are 0."""
    bins: ArrayLike
    """int32, 1 to MAX_BINS."""

    def edges(self) -> Array:
        """Ends of the parts, float32 [MAX_BINS + 1]; 1 beyond the last."""
        return jnp.minimum(jnp.arange(MAX_BINS + 1, dtype=jnp.float32) / self.bins, 1.0)

    def shares(self) -> Array:
        """Masses that add up to 1, float32 [MAX_BINS]."""
        masses = jnp.asarray(self.masses, jnp.float32)
        masses = masses / jnp.max(masses)  # relative: their own sum may be too large or too small for float32
        return masses / jnp.sum(masses)


def quantile(kind: ArrayLike, m: ArrayLike, s: ArrayLike, histogram: Histogram, u: Array) -> Array:
    """Inverse of the distribution function, up to the direction of u: U(0,1) becomes the density's t.

    Args:
        kind: int scalar, index into KINDS.
        m: float scalar, the mean of logit t (``lognorm``; the others ignore it).
        s: float scalar, the scale (``lognorm``, ``mode``; the others ignore it).
        histogram: of ``histogram`` and ``adaptive``; the others ignore it.
        u: float32, any shape, in [0, 1].

    Returns:
        float32 of u's shape, within [T_MIN, 1 - T_MIN].
    """
    u = jnp.clip(u, _U_MIN, 1.0 - _U_MIN)
    by_histogram = lambda m, s, u: _histogram_quantile(histogram, u)  # noqa: E731
    branches = (_uniform_quantile, _lognorm_quantile, _mode_quantile, _cosmap_quantile, by_histogram, by_histogram)
    return clip_time(jax.lax.switch(kind, branches, m, s, u))


def pdf(kind: ArrayLike, m: ArrayLike, s: ArrayLike, histogram: Histogram, t: ArrayLike) -> Array:
    """Probability density at t; arguments and shapes as in ``quantile``."""
    by_histogram = lambda m, s, t: _histogram_pdf(histogram, t)  # noqa: E731
    branches = (_uniform_pdf, _lognorm_pdf, _mode_pdf, _cosmap_pdf, by_histogram, by_histogram)
    return jax.lax.switch(kind, branches, m, s, clip_time(t))


def _uniform_quantile(m: Array, s: Array, u: Array) -> Array:
    return u


def _uniform_pdf(m: Array, s: Array, t: Array) -> Array:
    return jnp.ones_like(t)


def _lognorm_quantile(m: Array, s: Array, u: Array) -> Array:
    """Equation 19: logit t ~ N(m, s²)."""
    return jax.nn.sigmoid(m + s * ndtri(u))


def _lognorm_pdf(m: Array, s: Array, t: Array) -> Array:
    x = (jnp.log(t) - jnp.log1p(-t) - m) / s
    return jnp.exp(-0.5 * x * x) / (s * math.sqrt(2.0 * math.pi) * t * (1.0 - t))


def _mode_quantile(m: Array, s: Array, u: Array) -> Array:
    """Equation 20: t = 1 − u − s (cos²(πu/2) − 1 + u); falls as u rises."""
    return 1.0 - u - s * (jnp.cos(0.5 * jnp.pi * u) ** 2 - 1.0 + u)


def _mode_pdf(m: Array, s: Array, t: Array) -> Array:
    """1 / |dt/du| at the u that gives t, which has no closed form and is found by bisection."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        above = _mode_quantile(m, s, middle) > t  # t falls with u, so the root lies further right
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(t), jnp.ones_like(t)))
    u = 0.5 * (low + high)
    slope = 1.0 + s - 0.5 * jnp.pi * s * jnp.sin(jnp.pi * u)
    return 1.0 / jnp.maximum(slope, 1e-6)  # the slope touches 0 only at the two extremes of s


def _cosmap_quantile(m: Array, s: Array, u: Array) -> Array:
    """Equation 21: the t whose log-SNR on the rf path is that of the cosine path at u."""
    return 1.0 - 1.0 / (jnp.tan(0.5 * jnp.pi * u) + 1.0)


def _cosmap_pdf(m: Array, s: Array, t: Array) -> Array:
    return 2.0 / (jnp.pi * (1.0 - 2.0 * t + 2.0 * t * t))


def _histogram_quantile(histogram: Histogram, u: Array) -> Array:
    below = jnp.concatenate([jnp.zeros(1), jnp.cumsum(histogram.shares())])
    return jnp.interp(u, below, histogram.edges())


def _histogram_pdf(histogram: Histogram, t: Array) -> Array:
    bins = jnp.asarray(histogram.bins)
    index = jnp.clip((t * bins).astype(jnp.int32), 0, bins - 1)
    return histogram.shares()[index] * bins
