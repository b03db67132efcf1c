"""Thousands of robust fits of sums of powers at once, in JAX: Levenberg–Marquardt on Huber's loss of log residuals.

A bootstrap of a law is thousands of fits of a few parameters to some hundred points. As one batch, with the problems
along the last axis, each is a handful of vector operations. Shapes are padded to few sizes, so that programs compile
once for many tables.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling.powers import Powers

_BATCH = 32
"""Problems of one program, for few or many: one compilation. Ten times as many are no faster a problem on two cores,
and all of a batch wait for its slowest."""


def huber(residual: Any, delta: float) -> Any:
    """Huber 1964: r²/2 up to ``delta``, delta·(|r| − delta/2) beyond; NumPy or JAX, the shape of ``residual``."""
    size = abs(residual)
    xp = jnp if isinstance(residual, jax.Array) else np
    return xp.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def descend(
    form: Powers,
    u: np.ndarray,
    start: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    *,
    delta: float,
    lower: np.ndarray,
    upper: np.ndarray,
    fixed: tuple[np.ndarray, np.ndarray] | None = None,
    iterations: int = 200,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise Σ weight · huber(log L(theta) − target) for P problems at once, from ``start [P, size]``.

    Args: ``u [n, K]``, ``target`` and ``weight`` ``[P or 1, n]``, ``lower``, ``upper`` ``[size]`` the box. ``fixed``
    (direction ``[size]``, ``value [P]``) holds direction · theta at value, for profiles; the box must have it.
    Returns (theta ``[P, size]``, objective ``[P]``), float64.

    With delta far below the residuals the objective is nearly a sum of absolute values, on which a plain reweighted
    step crawls. So delta comes down in stages, and every iteration tries two steps and keeps the better: the reweighted
    one (weights min(1, delta/|r|), always downhill) and Newton's on the points inside delta.
    """
    problems, rows = len(start), len(u)
    stages = [delta]
    while stages[-1] * 10 <= 0.1:
        stages.append(stages[-1] * 10)
    padded_rows = 16
    while padded_rows < rows:
        padded_rows *= 2
    u = np.pad(u, ((0, padded_rows - rows), (0, 0)))
    target = np.pad(np.broadcast_to(target, (len(target), rows)), ((0, 0), (0, padded_rows - rows)))
    weight = np.pad(np.broadcast_to(weight, (len(weight), rows)), ((0, 0), (0, padded_rows - rows)))
    direction = np.zeros(form.size) if fixed is None else np.asarray(fixed[0], dtype=np.float64)
    if fixed is not None:
        start = _held(np.clip(start, lower, upper), direction, fixed[1], lower, upper)
    theta, objective = np.empty((problems, form.size)), np.empty(problems)
    # What else the process does keeps its 32 bits and its accelerator: only what is in here has 64, on the host.
    with jax.enable_x64(True), jax.default_device(_host()):
        for first in range(0, problems, _BATCH):
            part = slice(first, min(first + _BATCH, problems))
            index = np.minimum(np.arange(first, first + _BATCH), problems - 1)
            found, value = _program(form)(
                u,
                start[index].T,
                _columns(target, index),
                _columns(weight, index),
                np.array(stages[::-1]),
                lower,
                upper,
                direction,
                iterations,
            )
            count = part.stop - part.start
            theta[part], objective[part] = np.asarray(found).T[:count], np.asarray(value)[:count]
    return theta, objective


def _held(
    start: np.ndarray, direction: np.ndarray, value: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """``start`` moved in the box to where direction · theta is value: one parameter after another, as far as it can."""
    found = start.copy()
    for j in np.flatnonzero(direction):
        moved = found[:, j] + (value - found @ direction) / direction[j]
        found[:, j] = np.clip(moved, lower[j], upper[j])
    return found


def _columns(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """``[rows, problems]``, shared rows as often as they are shared: one program for all."""
    return np.ascontiguousarray(values[index].T) if len(values) > 1 else np.tile(values.T, len(index))


@functools.cache
def _host() -> Any:
    """The processor; None, whatever JAX takes, where the process has been told to do without it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@functools.cache
def _program(form: Powers) -> Any:
    return jax.jit(functools.partial(_descend, form))


def _descend(
    form: Powers,
    u: Any,
    theta: Any,
    target: Any,
    weight: Any,
    stages: Any,
    lower: Any,
    upper: Any,
    direction: Any,
    iterations: Any,
) -> tuple[Any, Any]:
    """Everything has the problems last: theta ``[size, P]``, target and weight ``[n, P]``."""
    lower, upper = lower[:, None], upper[:, None]
    theta = jnp.clip(theta, lower, upper)

    def one_stage(carry: tuple[Any, Any], stage: tuple[Any, Any]) -> tuple[tuple[Any, Any], None]:
        (theta, _), (delta, budget) = carry, stage
        return _stage(form, u, theta, target, weight, delta, lower, upper, direction, budget), None

    last = len(stages) - 1
    budgets = jnp.where(jnp.arange(len(stages)) == last, iterations, 12)
    (theta, objective), _ = jax.lax.scan(one_stage, (theta, jnp.zeros(theta.shape[1])), (stages, budgets))
    return theta, objective


def _stage(
    form: Powers,
    u: Any,
    theta: Any,
    target: Any,
    weight: Any,
    delta: Any,
    lower: Any,
    upper: Any,
    direction: Any,
    budget: Any,
) -> tuple[Any, Any]:
    size = form.size

    def residuals(at: Any) -> tuple[Any, list[Any]]:
        """(residual ``[n, P]``, each parameter's derivative ``[n, P]``)."""
        parts = [at[j] - at[form.terms + j] * u[:, j, None] for j in range(form.terms)]
        parts += [jnp.broadcast_to(at[-1], parts[0].shape)] if form.floor else []
        peak = functools.reduce(jnp.maximum, parts)
        raised = [jnp.exp(part - peak) for part in parts]
        total = functools.reduce(jnp.add, raised)
        share = [part / total for part in raised]
        slopes = [*share[: form.terms], *(-u[:, j, None] * share[j] for j in range(form.terms)), *share[form.terms :]]
        return peak + jnp.log(total) - target, slopes

    def objective_of(at: Any) -> Any:
        return (weight * huber(residuals(at)[0], delta)).sum(0)

    def step(theta: Any, damping: Any) -> Any:
        """Where the two steps lead ``[2, size, P]``."""
        residual, slopes = residuals(theta)
        absolute = jnp.abs(residual)
        shrink = jnp.minimum(1.0, delta / jnp.maximum(absolute, 1e-300)) * weight
        inside = (absolute <= delta) * weight
        gradient = jnp.stack([(slope * shrink * residual).sum(0) for slope in slopes])
        diagonal = jnp.stack([(slope * slope * shrink).sum(0) + 1e-12 for slope in slopes])

        def one(kind: tuple[Any, Any]) -> Any:
            curvature, damped = kind
            # Damping is relative to the larger of the two curvatures' diagonals, so that an empty inside still moves.
            hessian = [
                [
                    (slopes[a] * slopes[b] * curvature).sum(0) + (damped * diagonal[a] if a == b else 0.0)
                    for b in range(a + 1)
                ]
                for a in range(size)
            ]
            return _bounded(theta, hessian, gradient, diagonal, direction, lower, upper)

        trials: Any = jax.lax.map(one, (jnp.stack([shrink, inside]), damping))
        return trials

    def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
        theta, objective, damping, still, count = state
        best, least = theta, objective
        dampings = []
        for kind, trial in enumerate(step(theta, damping)):
            value = objective_of(trial)
            better = value < objective
            dampings.append(jnp.clip(damping[kind] * jnp.where(better, 0.2, 6.0), 1e-12, 1e6))
            ahead = value < least
            best, least = jnp.where(ahead, trial, best), jnp.where(ahead, value, least)
        still = jnp.where(objective - least <= 1e-12 * (objective + 1e-30), still + 1, 0)
        return best, least, jnp.stack(dampings), still, count + 1

    def goes_on(state: tuple[Any, ...]) -> Any:
        return (state[4] < budget) & (state[3] < 8).any()

    problems = theta.shape[1]
    first = (theta, objective_of(theta), jnp.full((2, problems), 1e-4), jnp.zeros(problems, jnp.int32), 0)
    theta, objective, *_ = jax.lax.while_loop(goes_on, body, first)
    return theta, objective


def _bounded(
    theta: Any, hessian: list[list[Any]], gradient: Any, diagonal: Any, direction: Any, lower: Any, upper: Any
) -> Any:
    """Where a step leads within the box ``[size, P]``: what is at an end of it and would leave stays there.

    Others then step as if it were given, which is why a step is solved for more than once. Where a direction is held a
    step ends at the first side that it meets, as going on along the side would let go of the direction.
    """
    margin = 1e-9 * (upper - lower)

    def again(_: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
        free, _ = state
        move = -_solve(hessian, gradient, direction, diagonal, free)
        leaves = ((theta <= lower + margin) & (move < 0)) | ((theta >= upper - margin) & (move > 0))
        return jnp.where(leaves, 0.0, free), move

    free, _ = jax.lax.fori_loop(0, 3, again, (jnp.ones_like(theta), jnp.zeros_like(theta)))
    move = -_solve(hessian, gradient, direction, diagonal, free) * free
    room = jnp.where(move > 0, upper - theta, lower - theta) / jnp.where(move == 0, 1.0, move)
    share = jnp.where(move == 0, 1.0, jnp.clip(room, 0.0, 1.0)).min(0)
    held = direction @ direction > 0
    return jnp.clip(theta + jnp.where(held, share, 1.0) * move, lower, upper)


def _solve(hessian: list[list[Any]], gradient: Any, direction: Any, diagonal: Any, free: Any) -> Any:
    """hessian⁻¹·gradient of the ``free [size, P]`` (1, else 0) by Cholesky, written out, ``[size, P]``.

    Where a direction is held, the step along it is taken out: with H⁻¹g = s and H⁻¹d = q it is s − q (d·s)/(d·q).
    """
    size = len(gradient)
    lower: list[list[Any]] = [[None] * size for _ in range(size)]
    for a in range(size):
        for b in range(a + 1):
            entry = hessian[a][b] * free[a] * free[b] + ((1.0 - free[a]) * diagonal[a] if a == b else 0.0)
            left = entry - sum(lower[a][k] * lower[b][k] for k in range(b))
            lower[a][b] = jnp.sqrt(jnp.maximum(left, 1e-14 * diagonal[a])) if a == b else left / lower[b][b]

    def solved(right: Any) -> Any:
        forward: list[Any] = []
        for a in range(size):
            forward.append((right[a] - sum(lower[a][k] * forward[k] for k in range(a))) / lower[a][a])
        back: list[Any] = [None] * size
        for a in reversed(range(size)):
            back[a] = (forward[a] - sum(lower[k][a] * back[k] for k in range(a + 1, size))) / lower[a][a]
        return jnp.stack(back)

    along = direction[:, None] * free
    step, towards = solved(gradient * free), solved(along)
    reach = (along * towards).sum(0)
    ratio = jnp.where(reach > 0, (along * step).sum(0) / jnp.where(reach > 0, reach, 1.0), 0.0)
    return step - towards * ratio
