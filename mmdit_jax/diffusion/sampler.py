"""Euler integration of the probability-flow ODE from noise to data, with guidance."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mmdit_jax.diffusion.formulation import Formulation
from mmdit_jax.errors import UserError

VelocityFn = Callable[[Array, Array], Array]


def timesteps(steps: int, shift: float = 1.0) -> np.ndarray:
    """Equidistant times from 1 (noise) to 0 (data): float32 [steps + 1].

    Args:
        steps: number of Euler steps, 1 or more.
        shift: α of the resolution shift t_m = α t / (1 + (α − 1) t) (equation 23), applied once; 1 leaves t as it is.

    Raises:
        UserError: for fewer than 1 steps, or a shift that is not positive.
    """
    if steps < 1:
        raise UserError(f"steps={steps}: expected 1 or more")
    if not 0.0 < shift < np.inf:
        raise UserError(f"shift={shift}: expected a positive number (1 for none)")
    t = np.linspace(1.0, 0.0, steps + 1)
    return (shift * t / (1.0 + (shift - 1.0) * t)).astype(np.float32)


def euler_sample(velocity_fn: VelocityFn, noise: Array, times: ArrayLike, steps: ArrayLike | None = None) -> Array:
    """Follow dz/dt = velocity from ``times[0]`` to the last time: z ← z + (t' − t) v(z, t) (pure; jit it).

    Args:
        velocity_fn: (z [B, ...], t [B] float32) -> dz/dt [B, ...].
        noise: float32 [B, ...], z at times[0].
        times: float32 [T + 1], falling.
        steps: take only this many steps (may be traced: one compiled loop then serves every number up to T).

    Returns:
        z at the last time taken, float32 [B, ...].
    """
    times = jnp.asarray(times, jnp.float32)

    def step(i: Array, z: Array) -> Array:
        t = jnp.broadcast_to(times[i], z.shape[:1])
        return z + (times[i + 1] - times[i]) * velocity_fn(z, t).astype(jnp.float32)

    return jax.lax.fori_loop(0, times.shape[0] - 1 if steps is None else steps, step, noise.astype(jnp.float32))


def sample(
    f: Formulation, network: VelocityFn, noise: Array, times: ArrayLike, steps: ArrayLike | None = None
) -> Array:
    """Samples of a network trained under any formulation.

    Integrates on the straight path that the formulation's own is a rescaling of: y = z / (a + b) moves by ε − x0 per
    unit of level s = b / (a + b). For `rf` that is its own path; for a = 1 it is EDM's Euler step in σ, for a
    variance-preserving path DDIM's step. All formulations then visit the same log-SNRs.

    Args:
        f: the formulation.
        network: (network input [B, ...], t [B]) -> raw output [B, ...].
        noise: float32 [B, ...], standard normal.
        times: float32 [T + 1] from 1 to 0, see ``timesteps``: levels, as shares of the path's noisiest one.
        steps: as in ``euler_sample``.
    """

    def velocity(y: Array, level: Array) -> Array:
        t = f.time_at(level)
        z = y * jnp.reshape(f.a(t) + f.b(t), (-1,) + (1,) * (y.ndim - 1))
        return f.straight_velocity(network(f.network_input(z, t), t).astype(jnp.float32), z, t)

    last = f.last_level()
    return euler_sample(velocity, last * noise, last * jnp.asarray(times, jnp.float32), steps)


def guided(conditional: Array, unconditional: Array, guidance: ArrayLike) -> Array:
    """Classifier-free guidance: unconditional + guidance · (conditional − unconditional); 1 means none.

    Being linear, it gives the same samples on velocities as on raw outputs of any prediction.
    """
    return unconditional + guidance * (conditional - unconditional)
