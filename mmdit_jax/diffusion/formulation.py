"""A formulation: path × prediction × density × weight (SD3 paper, section 2).

Every objective of the paper is L_w = −½ E_{t~U,ε}[w_t λ'_t ‖ε_Θ − ε‖²]. Whatever a network may predict is a
combination α x0 + β ε, so targets, velocities, conversions and weights all follow from a, b, α, β.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mmdit_jax.diffusion import densities
from mmdit_jax.diffusion.densities import KINDS, T_MIN, Histogram, clip_time
from mmdit_jax.diffusion.forms import MODIFIERS, find
from mmdit_jax.diffusion.paths import PATHS, T_MIN_EDM, Schedule
from mmdit_jax.errors import unknown

SIGMA_DATA = 0.5  # EDM's deviation of the data
QUANTITIES = ("x0", "eps", "v", "F", "velocity")
"""What a network may predict, and what ``Formulation.convert`` converts."""
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

    A jax pytree. ``path`` and ``prediction`` are static; the numbers are leaves. So a jitted function that takes a
    Formulation compiles once for all of `rf`, once for all of `edm`, and once for each of the four of `eps` and `v`.
    ``name`` is written from the leaves: read it on the host; while tracing there is no name.

    Times t are float32 in [0, 1], 0 for data, of any shape; beside images [B, ...] they have shape [B]. Results are
    float32. Whatever would divide by zero at an end is evaluated at t within [1e-5, 1 − 1e-5], which training draws
    from; on EDM's path within [1e-30, 1 − 1e-5], so that validation and sampling find low noise levels there too.

    Attributes:
        path: key of PATHS.
        prediction: one of QUANTITIES; "velocity" on the rf path only, where it is ε − x0.
        kind: int32, index of the density (rf: densities.KINDS) or of the schedule of σ (edm: paths.EDM_SCHEDULES).
        m: float32, mean of logit t (lognorm) or of log σ (edm).
        s: float32, deviation of logit t or log σ, mode's s, or the power of an adaptive density.
        shift: float32, α of the resolution shift of the drawn times; 1 is none.
        snr_cap: float32, γ of min-SNR weighting; 0 is none.
        masses: float32 [64], relative masses of a histogram (or adaptive) density.
        bins: int32, how many of them count.
    """

    path: str = field(metadata={"static": True})
    prediction: str = field(metadata={"static": True})
    kind: Array | np.int32
    m: Array | np.float32
    s: Array | np.float32
    shift: Array | np.float32
    snr_cap: Array | np.float32
    masses: Array | np.ndarray
    bins: Array | np.int32

    @property
    def name(self) -> str:
        """The paper's name, which ``formulation`` reads back. Host only."""
        form = find(self.path, self.prediction, int(self.kind))
        slots = {name: float(vars(self)[name]) for name in ("m", "s", "shift", "snr_cap")}
        values = [slots[number.slot] for number in form.numbers if number.slot in slots]
        if form.most:
            values = [float(mass) for mass in np.asarray(self.masses)[: int(self.bins)]]
        return form.write(values) + "".join(item.write(slots[item.number.slot]) for item in MODIFIERS)

    @property
    def adaptive(self) -> Array | bool:
        """Whether the density is one that training learns: a bool scalar, traced if ``kind`` is."""
        return self.path == "rf" and self.kind == KINDS.index("adaptive")

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

    def slopes(self, t: ArrayLike) -> tuple[Array, Array]:
        """(a', b'), derivatives by t, in closed form."""
        return PATHS[self.path].slopes(self._schedule, jnp.asarray(t, jnp.float32))

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
        """Inverse of ``level``, within the path's ends: the nearest t where it does not reach that level.

        EDM's normal schedule reaches levels that training all but never draws, at t down to 1e-30; a network's features
        of such t are those of t = 0.
        """
        return self.inside(PATHS[self.path].time_at(self._schedule, clip_time(level)))

    def inside(self, t: ArrayLike) -> Array:
        """t as float32 between the ends, where nothing divides by zero: from 1e-5 (EDM: 1e-30) to 1 − 1e-5."""
        low = T_MIN_EDM if self.path == "edm" else T_MIN
        return jnp.clip(jnp.asarray(t, jnp.float32), low, 1.0 - T_MIN)

    def last_level(self) -> Array:
        """The noisiest level that sampling can start from: 1, or less where the path or the prediction ends earlier.

        EDM's σ ends at its quantile 1 − 1e-5, the largest that training meets. Pure noise there lacks a x0, which costs
        some of the data's mean (docs/formulations.md, "Where a path ends").
        """
        if self.prediction == "eps":
            return self.level(LAST_TIME_EPS)
        return self.level(1.0) if self.path in ("linear", "edm") else jnp.float32(1.0)

    # ---- the density and the weight -------------------------------------------------------------------------------

    @property
    def _histogram(self) -> Histogram:
        return Histogram(self.masses, self.bins)

    def density(self, t: ArrayLike) -> Array:
        """Probability density of the t that training draws; 1 for every path but rf, before a resolution shift."""
        t = clip_time(t)  # there are no draws beyond
        before = self.shifted_time(t, 1.0 / self.shift)
        # A shift moves λ by a constant, so that dt' / dt is λ'(t) / λ'(t').
        stretch = jnp.where(self.shift == 1.0, 1.0, self.log_snr_slope(t) / self.log_snr_slope(before))
        if self.path != "rf":
            return jnp.ones_like(t) * stretch
        return densities.pdf(self.kind, self.m, self.s, self._histogram, before) * stretch

    def sample_t(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Times drawn from ``density``: float32 of ``shape``, within [1e-5, 1 − 1e-5]."""
        u = jax.random.uniform(key, shape, jnp.float32)
        t = densities.quantile(self.kind, self.m, self.s, self._histogram, u) if self.path == "rf" else clip_time(u)
        return self.shifted_time(t, self.shift)

    def shifted_time(self, t: ArrayLike, shift: ArrayLike) -> Array:
        """The time whose log-SNR is lower by 2 log(shift) (equation 23, which it is on the rf path).

        Within [1e-5, 1 − 1e-5] on every path, as all times that are drawn.
        """
        return jnp.where(jnp.equal(shift, 1.0), t, clip_time(self.time_at(shifted(self.level(t), shift))))

    def weight(self, t: ArrayLike) -> Array:
        """Weight of the mean squared error of the network's output at t ~ density.

        Constant for all of the paper's. Under min-SNR it is what makes that error min(SNR, γ) ‖x0_Θ − x0‖² (Hang et al.
        2023, arXiv 2303.09556), whatever the network predicts.
        """
        t = jnp.asarray(t, jnp.float32)
        capped = jnp.minimum(jnp.exp(self.log_snr(t)), self.snr_cap) * self._recovery(t).x0_out ** 2
        return jnp.where(self.snr_cap > 0, capped, _WEIGHTS[self.path, self.prediction])

    def effective_weight(self, t: ArrayLike) -> Array:
        """−½ w_t λ'_t: what the loss gives ‖ε_Θ − ε‖² per unit of t, the density included (equation 8)."""
        t = clip_time(t)
        alpha, beta = self._target(t)
        a, b = self._ab(t)
        output_by_eps = (a * beta - b * alpha) / a  # change of the output with ε at a given z
        return self.density(t) * self.weight(t) * output_by_eps**2

    # ---- what goes into the network and comes out of it -----------------------------------------------------------

    def _combination(self, quantity: str, t: Array) -> tuple[Array, Array]:
        """(α, β): ``quantity``, one of QUANTITIES, is α x0 + β ε."""
        if quantity == "x0":
            return jnp.ones_like(t), jnp.zeros_like(t)
        if quantity == "eps":
            return jnp.zeros_like(t), jnp.ones_like(t)
        if quantity == "velocity":
            return self.slopes(t)
        a, b = self._ab(t)
        if quantity == "v":  # of z scaled to unit variance, which the cosine and linear paths have already
            size = jnp.sqrt(a**2 + b**2)
            return -b / size, a / size
        total = jnp.sqrt(b**2 + (a * SIGMA_DATA) ** 2)  # F: (x0 − c_skip z/a) / c_out of EDM at σ = b/a, written out
        return b / (SIGMA_DATA * total), -a * SIGMA_DATA / total

    def _target(self, t: Array) -> tuple[Array, Array]:
        return self._combination(self.prediction, t)

    def _recovery(self, t: ArrayLike, quantity: str | None = None) -> Recovery:
        """Solve z = a x0 + b ε, out = α x0 + β ε for x0 and ε; out is the network's output, or ``quantity``."""
        t = self.inside(t)
        (a, b), (alpha, beta) = self._ab(t), self._combination(quantity or self.prediction, t)
        determinant = a * beta - b * alpha
        return Recovery(beta / determinant, -b / determinant, -alpha / determinant, a / determinant)

    def convert(self, value: Array, z: Array, t: Array, source: str, target: str) -> Array:
        """``target`` as ``source`` implies it at z_t: both among x0, eps, v, F, velocity; value and z [B, ...], t [B].

        "eps" and "velocity" are as printed, the latter dz/dt along this path; "v" is (a ε − b x0)/√(a² + b²) (Salimans
        and Ho 2022); "F" is the network inside EDM's preconditioning at σ = b/a (Karras et al. 2022).

        Raises:
            UserError: another name.
        """
        for field_name, name in (("source", source), ("target", target)):
            if name not in QUANTITIES:
                unknown(field_name, name, QUANTITIES)
        r = self._recovery(t, source)
        alpha, beta = self._combination(target, self.inside(t))
        by_z, by_value = alpha * r.x0_z + beta * r.eps_z, alpha * r.x0_out + beta * r.eps_out
        return expand(by_z, z) * z + expand(by_value, z) * value

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
        return self.convert(output, z, t, self.prediction, "velocity")

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


def shifted(level: Any, shift: Any) -> Any:
    """Resolution shift of levels b/(a + b): α x / (1 + (α − 1) x) (equation 23); numpy or jax, as ``level`` is."""
    return shift * level / (1.0 + (shift - 1.0) * level)
