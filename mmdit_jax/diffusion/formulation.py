"""A formulation: path × prediction × density × weight (SD3 paper, section 2).

Every objective of the paper is L_w = −½ E_{t~U,ε}[w_t λ'_t ‖ε_Θ − ε‖²]. What the network outputs is, for every
prediction, a combination α x0 + β ε, so target, velocity and the weight of an output's error follow from a, b, α, β.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mmdit_jax.diffusion import densities
from mmdit_jax.diffusion.densities import clip_time
from mmdit_jax.diffusion.forms import find
from mmdit_jax.diffusion.paths import PATHS, Schedule

SIGMA_DATA = 0.5  # EDM's deviation of the data
LAST_TIME_EPS = 0.999  # where sampling starts if the network predicts ε, which says nothing of x0 once a is 0

# Weight of ‖output − target‖² under t ~ density: the constants that make the loss the paper's L_w.
_WEIGHTS = {
    ("rf", "velocity"): 1.0,
    ("cos", "eps"): math.pi,  # w = sech(λ/2)
    ("cos", "v"): 0.5 * math.pi,  # w = exp(−λ/2)
    ("linear", "eps"): 1.0,  # no w is printed for LDM-linear: plain mean squares, as LDM trains
    ("linear", "v"): 1.0,
    ("edm", "F"): 0.5 * SIGMA_DATA**2,  # w = N(λ)(exp(−λ) + σ_data²)
}


class Recovery(NamedTuple):
    """x0 = x0_z z + x0_out out and ε = eps_z z + eps_out out, out being the network's output; each of t's shape."""

    x0_z: Array
    x0_out: Array
    eps_z: Array
    eps_out: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Formulation:
    """How to noise, what to predict, which t to draw and how to weigh; ``formulation(name)`` makes one.

    A jax pytree. ``path`` and ``prediction`` are static; the numbers (``kind``, ``m``, ``s``) are leaves. So a jitted
    function that takes a Formulation compiles once for `rf` and every `rf/lognorm`, `rf/mode`, `rf/cosmap`, once for
    all of `edm`, and once for each of the four of `eps` and `v`. ``name`` is written from the leaves: read it on the
    host; while tracing there is no name.

    Times t are float32 in [0, 1], 0 for data, of any shape; beside images [B, ...] they have shape [B]. Results are
    float32. Whatever would divide by zero at an end is evaluated at t within [1e-5, 1 − 1e-5].

    Attributes:
        path: key of PATHS.
        prediction: "velocity" (ε − x0), "v" (a ε − b x0), "eps", or "F" (the network inside EDM's preconditioning).
        kind: int32, index of the density (rf: densities.KINDS) or of the schedule of σ (edm: paths.EDM_SCHEDULES).
        m: float32, mean of logit t (lognorm) or of log σ (edm).
        s: float32, deviation of logit t or log σ, or mode's s.
    """

    path: str = field(metadata={"static": True})
    prediction: str = field(metadata={"static": True})
    kind: Array | np.int32
    m: Array | np.float32
    s: Array | np.float32

    @property
    def name(self) -> str:
        """The paper's name, which ``formulation`` reads back. Host only."""
        form = find(self.path, self.prediction, int(self.kind))
        slots = {"m": float(self.m), "s": float(self.s)}
        return form.write([slots[number.slot] for number in form.numbers])

    # ---- the path -------------------------------------------------------------------------------------------------

    @property
    def _schedule(self) -> Schedule:
        return Schedule(self.kind, self.m, self.s)

    def a(self, t: ArrayLike) -> Array:
        """Coefficient of the data, of t's shape."""
        return self._ab(t)[0]

    def b(self, t: ArrayLike) -> Array:
        """Coefficient of the noise, of t's shape."""
        return self._ab(t)[1]

    def _ab(self, t: ArrayLike) -> tuple[Array, Array]:
        return PATHS[self.path].ab(self._schedule, jnp.asarray(t, jnp.float32))

    def log_snr(self, t: ArrayLike) -> Array:
        """λ = log(a²/b²), of t's shape."""
        return PATHS[self.path].log_snr(self._schedule, jnp.asarray(t, jnp.float32))

    def log_snr_slope(self, t: ArrayLike) -> Array:
        """λ', the derivative of ``log_snr`` by t in closed form; negative."""
        return PATHS[self.path].log_snr_slope(self._schedule, jnp.asarray(t, jnp.float32))

    def level(self, t: ArrayLike) -> Array:
        """b/(a + b): the time at which the straight path of `rf` has the log-SNR that this path has at t."""
        return jax.nn.sigmoid(-0.5 * self.log_snr(t))

    def time_at(self, level: ArrayLike) -> Array:
        """Inverse of ``level``, within [1e-5, 1 − 1e-5]: the nearest t where the path does not reach that level."""
        return clip_time(PATHS[self.path].time_at(self._schedule, clip_time(level)))

    def last_level(self) -> Array:
        """The noisiest level that sampling can start from: 1, or less where the path or the prediction ends earlier."""
        if self.prediction == "eps":
            return self.level(LAST_TIME_EPS)
        return self.level(1.0) if self.path == "linear" else jnp.float32(1.0)

    # ---- the density and the weight -------------------------------------------------------------------------------

    def density(self, t: ArrayLike) -> Array:
        """Probability density of the t that training draws; 1 for every path but rf."""
        if self.path != "rf":
            return jnp.ones_like(jnp.asarray(t, jnp.float32))
        return densities.pdf(self.kind, self.m, self.s, t)

    def sample_t(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Times drawn from ``density``: float32 of ``shape``, within [1e-5, 1 − 1e-5]."""
        u = jax.random.uniform(key, shape, jnp.float32)
        return densities.quantile(self.kind, self.m, self.s, u) if self.path == "rf" else clip_time(u)

    def weight(self, t: ArrayLike) -> Array:
        """Weight of the mean squared error of the network's output at t ~ density; constant for all of the paper's."""
        return jnp.full_like(jnp.asarray(t, jnp.float32), _WEIGHTS[self.path, self.prediction])

    def effective_weight(self, t: ArrayLike) -> Array:
        """−½ w_t λ'_t: what the loss gives ‖ε_Θ − ε‖² per unit of t, the density included (equation 8)."""
        t = clip_time(t)
        alpha, beta = self._target(t)
        a, b = self._ab(t)
        output_by_eps = (a * beta - b * alpha) / a  # change of the output with ε at a given z
        return self.density(t) * self.weight(t) * output_by_eps**2

    # ---- what goes into the network and comes out of it -----------------------------------------------------------

    def _target(self, t: Array) -> tuple[Array, Array]:
        """(α, β): the network is to output α x0 + β ε."""
        a, b = self._ab(t)
        if self.prediction == "velocity":
            return -jnp.ones_like(t), jnp.ones_like(t)
        if self.prediction == "v":
            return -b, a
        if self.prediction == "eps":
            return jnp.zeros_like(t), jnp.ones_like(t)
        total = jnp.sqrt(b**2 + SIGMA_DATA**2)  # F: (x0 − c_skip z) / c_out of EDM, written out
        return b / (SIGMA_DATA * total), -SIGMA_DATA / total

    def _recovery(self, t: ArrayLike) -> Recovery:
        """Solve z = a x0 + b ε, out = α x0 + β ε for x0 and ε."""
        t = clip_time(t)
        (a, b), (alpha, beta) = self._ab(t), self._target(t)
        determinant = a * beta - b * alpha
        return Recovery(beta / determinant, -b / determinant, -alpha / determinant, a / determinant)

    def mix(self, x0: Array, eps: Array, t: Array) -> Array:
        """z_t = a x0 + b ε; x0 and ε float32 [B, ...], t [B]."""
        a, b = self._ab(t)
        return expand(a, x0) * x0 + expand(b, x0) * eps

    def network_input(self, z: Array, t: Array) -> Array:
        """What the network sees of z [B, ...]: z, or c_in z = z / √(σ² + σ_data²) under EDM's preconditioning."""
        if self.prediction != "F":
            return z
        return z * expand(jax.lax.rsqrt(self.b(t) ** 2 + SIGMA_DATA**2), z)

    def target(self, x0: Array, eps: Array, t: Array) -> Array:
        """What the network should output, of x0's shape [B, ...]."""
        alpha, beta = self._target(jnp.asarray(t, jnp.float32))
        return expand(alpha, x0) * x0 + expand(beta, x0) * eps

    def recover(self, output: Array, z: Array, t: Array) -> tuple[Array, Array]:
        """(x0, ε) as the network's output at z [B, ...] implies them."""
        r = self._recovery(t)
        x0 = expand(r.x0_z, z) * z + expand(r.x0_out, z) * output
        return x0, expand(r.eps_z, z) * z + expand(r.eps_out, z) * output

    def velocity(self, output: Array, z: Array, t: Array) -> Array:
        """dz/dt = a' x0 + b' ε along this path, from the network's output at z [B, ...]."""
        r = self._recovery(t)
        a_slope, b_slope = PATHS[self.path].slopes(self._schedule, clip_time(t))
        by_z, by_output = a_slope * r.x0_z + b_slope * r.eps_z, a_slope * r.x0_out + b_slope * r.eps_out
        return expand(by_z, z) * z + expand(by_output, z) * output

    def straight_velocity(self, output: Array, z: Array, t: Array) -> Array:
        """ε − x0 from the network's output at z [B, ...]: the velocity at the same noise level of `rf`'s straight path.

        Comparable between formulations, and bounded where ``velocity`` is not (EDM's σ' is infinite at both ends). For
        every `rf` it is ``velocity`` itself.
        """
        r = self._recovery(t)
        return expand(r.eps_z - r.x0_z, z) * z + expand(r.eps_out - r.x0_out, z) * output


def expand(t: Array, like: Array) -> Array:
    """t of shape [B] (or a scalar) with trailing axes of 1, to broadcast against ``like`` [B, ...]."""
    return jnp.reshape(t, jnp.shape(t) + (1,) * (like.ndim - jnp.ndim(t))) if jnp.ndim(t) else t
