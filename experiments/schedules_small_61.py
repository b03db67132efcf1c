"""All 61 formulations of the paper on scenes and emoji, otherwise as schedules_small: 244 runs, for a device.

mmdit study run schedules_small_61 --replicas 32
"""

from __future__ import annotations

from experiments.schedules_small import runs
from mmdit_jax.config import Study
from mmdit_jax.diffusion import STUDY_61


def study() -> Study:
    """Sixty-one formulations × two data sets × two seeds."""
    return Study("schedules_small_61", runs(STUDY_61))
