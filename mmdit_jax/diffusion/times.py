"""The times that a sampler steps through, and the resolution shift, applied once."""

from __future__ import annotations

import numpy as np

from mmdit_jax.diffusion.formulation import shifted
from mmdit_jax.errors import UserError

TRAINING_STEPS = 1000
"""Discrete times of the reference samplers, whose last one is the 1000th part and not 0."""


def timesteps(steps: int, shift: float = 1.0, *, applied: str = "once") -> np.ndarray:
    """Times from 1 (noise) to 0 (data), equidistant before the shift: float32 [steps + 1].

    Args:
        steps: 1 or more.
        shift: α of the resolution shift t_m = α t / (1 + (α − 1) t) (equation 23); 1 leaves t as it is.
        applied: "once", or "twice" as both public reference samplers do: they space their steps between 1 and the
            1000th part, both shifted already, and shift them again (diffusers issue 13243). For parity only.

    Raises:
        UserError: fewer than 1 step, or a shift that is not positive.
    """
    if steps < 1:
        raise UserError(f"steps={steps}: expected 1 or more")
    if not 0.0 < shift < np.inf:
        raise UserError(f"shift={shift}: expected a positive number (1 for none)")
    if applied == "twice":
        t = np.append(np.linspace(1.0, shifted(1.0 / TRAINING_STEPS, shift), steps), 0.0)
    else:
        t = np.linspace(1.0, 0.0, steps + 1)
    return np.asarray(shifted(t, shift), np.float32)
