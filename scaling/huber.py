"""Many small robust regressions at once: Levenberg–Marquardt over a batch of problems, in plain numpy.

A bootstrap of a scaling law is thousands of fits of three parameters to a few dozen points. One at a time they
take minutes; as a batch, seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""theta ``[P, k]`` -> (prediction ``[P, n]``, Jacobian ``[P, n, k]``)."""


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """Huber 1964: r²/2 up to ``delta``, delta·(|r| − delta/2) beyond; the shape of ``residual``."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def minimise(
    model: Model,
    start: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    *,
    delta: float,
    lower: np.ndarray,
    upper: np.ndarray,
    iterations: int = 200,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise Σ weight · huber(model(theta) − target) for P problems at once.

    Args: ``start [P, k]``; ``target`` and ``weight`` ``[P, n]`` or broadcastable; ``lower``, ``upper`` ``[k]``
    the box that theta stays in. Returns (theta ``[P, k]``, objective ``[P]``).

    With delta far below the residuals the objective is nearly a sum of absolute values, on which a plain
    reweighted step crawls. So delta comes down in stages, and every iteration tries two steps and keeps the
    better: the reweighted one (weights min(1, delta/|r|), always downhill) and Newton's on the points inside delta.
    """
    theta = np.clip(start, lower, upper)
    stages = [delta]
    while stages[-1] * 10 <= 0.1:
        stages.append(stages[-1] * 10)
    objective = np.full(len(theta), np.inf)
    for stage in reversed(stages):
        budget = iterations if stage == delta else 12
        theta, objective = _descend(model, theta, target, weight, stage, lower, upper, budget)
    return theta, objective


def _descend(
    model: Model,
    theta: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    delta: float,
    lower: np.ndarray,
    upper: np.ndarray,
    iterations: int,
) -> tuple[np.ndarray, np.ndarray]:
    def evaluate(at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        prediction, jacobian = model(at)
        residual = prediction - target
        return residual, jacobian, (weight * huber(residual, delta)).sum(-1)

    size = theta.shape[1]
    damping = np.full((len(theta), 2), 1e-4)
    residual, jacobian, objective = evaluate(theta)
    still = np.zeros(len(theta), dtype=int)
    for _ in range(iterations):
        absolute = np.abs(residual)
        shrink = np.minimum(1.0, delta / np.maximum(absolute, 1e-300))
        gradient = np.einsum("pnk,pn->pk", jacobian, weight * shrink * residual)
        best_theta, best = theta, (residual, jacobian, objective)
        for kind, curvature in enumerate((shrink, (absolute <= delta).astype(float))):
            scaled = jacobian * (weight * curvature)[..., None]
            hessian = np.einsum("pnk,pnl->pkl", scaled, jacobian)
            # Damping is relative to the larger of the two curvatures' diagonals, so that an empty inside still moves.
            diagonal = np.einsum("pnk,pn->pk", jacobian**2, weight * shrink) + 1e-12
            hessian = hessian + (damping[:, kind, None] * diagonal)[..., None] * np.eye(size)
            trial = np.clip(theta - np.linalg.solve(hessian, gradient[..., None])[..., 0], lower, upper)
            tried = evaluate(trial)
            better = tried[2] < objective
            damping[:, kind] = np.clip(damping[:, kind] * np.where(better, 0.2, 6.0), 1e-12, 1e6)
            ahead = tried[2] < best[2]
            best_theta = np.where(ahead[:, None], trial, best_theta)
            best = (
                np.where(ahead[:, None], tried[0], best[0]),
                np.where(ahead[:, None, None], tried[1], best[1]),
                np.where(ahead, tried[2], best[2]),
            )
        gain = objective - best[2]
        still = np.where(gain <= 1e-12 * (objective + 1e-30), still + 1, 0)
        theta, (residual, jacobian, objective) = best_theta, best
        if (still >= 8).all():
            break
    return theta, objective
