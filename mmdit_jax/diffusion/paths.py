"""Forward paths z_t = a_t x0 + b_t ε from data (t = 0) to noise (t = 1): a, b, their slopes and the log-SNR.

Source: SD3 paper, section 2 (λ_t = log a²/b²) and the paragraphs on rectified flow, EDM, cosine and LDM-linear.
A path is a namespace of functions of (schedule, t). ``Schedule`` carries the numbers, which may be traced; only the EDM
path reads them. Every function that divides is evaluated at t within [T_MIN, 1 - T_MIN]; EDM's from T_MIN_EDM.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike

from mmdit_jax.diffusion.densities import T_MIN, clip_time

HALF_PI = 0.5 * np.pi
EDM_SCHEDULES = ("normal", "rf", "cos")
T_MIN_EDM = 1e-30
"""Where EDM's times are cut below. Its quantiles fall so slowly that with a deviation of 0.6 of log σ, t = 1e-5 is no
less than a thirteenth of the median σ; t = 1e-30 is a thousandth. Above 1 − 1e-5 float32 has no such room."""
LINEAR_STEPS, LINEAR_BETA_FIRST, LINEAR_BETA_LAST = 1000, 0.00085, 0.012


class Schedule(NamedTuple):
    """Numbers of a path: index into EDM_SCHEDULES, and mean and deviation of log σ under its ``normal`` schedule."""

    kind: ArrayLike
    mean: ArrayLike
    deviation: ArrayLike


class Path(Protocol):
    """What a path offers; t is float32 of any shape and so are the results."""

    def ab(self, schedule: Schedule, t: Array) -> tuple[Array, Array]:
        """(a, b)."""

    def slopes(self, schedule: Schedule, t: Array) -> tuple[Array, Array]:
        """(a', b'), derivatives by t."""

    def log_snr(self, schedule: Schedule, t: Array) -> Array:
        """λ = log(a²/b²)."""

    def log_snr_slope(self, schedule: Schedule, t: Array) -> Array:
        """λ', derivative by t; negative."""

    def time_at(self, schedule: Schedule, level: Array) -> Array:
        """The t at which b/(a + b) is ``level``, itself in (0, 1)."""


class RectifiedFlow:
    """a = 1 − t, b = t."""

    def ab(self, schedule: Schedule, t: Array) -> tuple[Array, Array]:
        return 1.0 - t, t

    def slopes(self, schedule: Schedule, t: Array) -> tuple[Array, Array]:
        return -jnp.ones_like(t), jnp.ones_like(t)

    def log_snr(self, schedule: Schedule, t: Array) -> Array:
        t = clip_time(t)
        return 2.0 * (jnp.log1p(-t) - jnp.log(t))

    def log_snr_slope(self, schedule: Schedule, t: Array) -> Array:
        t = clip_time(t)
        return -2.0 / (t * (1.0 - t))

    def time_at(self, schedule: Schedule, level: Array) -> Array:
        return level


class Cosine:
    """a = cos(πt/2), b = sin(πt/2); cosines are taken as sines of 1 − t, which is exact in float32 near t = 1."""

    def ab(self, schedule: Schedule, t: Array) -> tuple[Array, Array]:
        return jnp.sin(HALF_PI * (1.0 - t)), jnp.sin(HALF_PI * t)

    def slopes(self, schedule: Schedule, t: Array) -> tuple[Array, Array]:
        a, b = self.ab(schedule, t)
        return -HALF_PI * b, HALF_PI * a

    def log_snr(self, schedule: Schedule, t: Array) -> Array:
        a, b = self.ab(schedule, clip_time(t))
        return 2.0 * (jnp.log(a) - jnp.log(b))

    def log_snr_slope(self, schedule: Schedule, t: Array) -> Array:
        a, b = self.ab(schedule, clip_time(t))
        return -np.pi / (a * b)

    def time_at(self, schedule: Schedule, level: Array) -> Array:
        return jnp.arctan2(level, 1.0 - level) / HALF_PI


@lru_cache(maxsize=1)
def _linear_table() -> np.ndarray:
    """log a² of LDM's discrete schedule at t = 0, 1/T, ..., 1, float32 [T + 1]; summed in float64."""
    roots = np.linspace(LINEAR_BETA_FIRST**0.5, LINEAR_BETA_LAST**0.5, LINEAR_STEPS)
    return np.concatenate([[0.0], np.cumsum(np.log1p(-(roots**2)))]).astype(np.float32)


class Linear:
    """LDM-linear, variance preserving: a² = ∏(1 − β) at t = n/T, log a² linear between; a(1) is 0.068, not 0."""

    def _log_a2(self, t: Array) -> tuple[Array, Array]:
        """(log a², its slope by t)."""
        table = jnp.asarray(_linear_table())
        steps = jnp.diff(table)
        position = t * LINEAR_STEPS
        index = jnp.clip(position.astype(jnp.int32), 0, LINEAR_STEPS - 1)
        return table[index] + (position - index) * steps[index], LINEAR_STEPS * steps[index]

    def ab(self, schedule: Schedule, t: Array) -> tuple[Array, Array]:
        log_a2, _ = self._log_a2(t)
        return jnp.exp(0.5 * log_a2), jnp.sqrt(-jnp.expm1(log_a2))

    def slopes(self, schedule: Schedule, t: Array) -> tuple[Array, Array]:
        t = clip_time(t)
        a, b = self.ab(schedule, t)
        a_slope = 0.5 * a * self._log_a2(t)[1]
        return a_slope, -a * a_slope / b

    def log_snr(self, schedule: Schedule, t: Array) -> Array:
        log_a2, _ = self._log_a2(clip_time(t))
        return log_a2 - jnp.log(-jnp.expm1(log_a2))

    def log_snr_slope(self, schedule: Schedule, t: Array) -> Array:
        log_a2, slope = self._log_a2(clip_time(t))
        return slope / -jnp.expm1(log_a2)

    def time_at(self, schedule: Schedule, level: Array) -> Array:
        # b/a = r gives log a² = −log(1 + r²); the table falls, interpolation wants it rising
        table = jnp.asarray(_linear_table())
        grid = jnp.arange(LINEAR_STEPS + 1, dtype=jnp.float32) / LINEAR_STEPS
        return jnp.interp(jnp.log1p((level / (1.0 - level)) ** 2), -table, grid)


class EDM:
    """a = 1, b = σ(t). Schedule ``normal``: log σ = Pm + Ps Φ⁻¹(t); ``rf``, ``cos``: σ is b/a of that path.

    The last two draw the log-SNRs that `rf` and `v/cos` draw, at EDM's own weight for each of them.
    """

    def _clip(self, t: Array) -> Array:
        return jnp.clip(t, T_MIN_EDM, 1.0 - T_MIN)  # the other two schedules' functions clip at T_MIN themselves

    def _log_sigma(self, schedule: Schedule, t: Array) -> Array:
        branches = (
            lambda t: schedule.mean + schedule.deviation * ndtri(t),
            lambda t: -0.5 * PATHS["rf"].log_snr(schedule, t),
            lambda t: -0.5 * PATHS["cos"].log_snr(schedule, t),
        )
        return jax.lax.switch(schedule.kind, branches, self._clip(t))

    def ab(self, schedule: Schedule, t: Array) -> tuple[Array, Array]:
        sigma = jnp.exp(self._log_sigma(schedule, t))
        return jnp.ones_like(sigma), sigma

    def slopes(self, schedule: Schedule, t: Array) -> tuple[Array, Array]:
        _, sigma = self.ab(schedule, t)
        return jnp.zeros_like(sigma), -0.5 * sigma * self.log_snr_slope(schedule, t)

    def log_snr(self, schedule: Schedule, t: Array) -> Array:
        return -2.0 * self._log_sigma(schedule, t)

    def log_snr_slope(self, schedule: Schedule, t: Array) -> Array:
        branches = (
            # Φ⁻¹ has slope 1/φ(Φ⁻¹(t)), φ the standard normal density
            lambda t: -2.0 * schedule.deviation * np.sqrt(2.0 * np.pi) * jnp.exp(0.5 * ndtri(t) ** 2),
            lambda t: PATHS["rf"].log_snr_slope(schedule, t),
            lambda t: PATHS["cos"].log_snr_slope(schedule, t),
        )
        return jax.lax.switch(schedule.kind, branches, self._clip(t))

    def time_at(self, schedule: Schedule, level: Array) -> Array:
        branches = (
            lambda x: ndtr((jnp.log(x) - jnp.log1p(-x) - schedule.mean) / schedule.deviation),
            lambda x: PATHS["rf"].time_at(schedule, x),
            lambda x: PATHS["cos"].time_at(schedule, x),
        )
        return jax.lax.switch(schedule.kind, branches, level)


PATHS: dict[str, Path] = {"rf": RectifiedFlow(), "cos": Cosine(), "linear": Linear(), "edm": EDM()}
