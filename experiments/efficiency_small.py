"""Do larger models need fewer sampling steps? Table 6's question at four small depths, on scenes.

mmdit study run efficiency_small

Relative loss of CLIP score at 5, 10 and 20 of 50 steps, and the length of the sampling path. Expected, as in the paper:
both fall with depth.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.quickstart import model
from experiments.schedules_small import runs
from mmdit_jax.config import Study
from mmdit_jax.diffusion import SamplerConfig

DEPTHS = (1, 2, 3, 4)
SEEDS = (0, 1, 2, 3)
STEPS = (5, 10, 20, 50)


def study() -> Study:
    """Four depths × four seeds under `rf/lognorm(0.00,1.00)`."""
    base = runs(("rf/lognorm(0.00,1.00)",))[0]
    evaluation = replace(
        base.evaluation,
        settings=tuple(SamplerConfig(steps=steps, guidance=5.0) for steps in STEPS),
        settings_images=256,
    )
    return Study(
        "efficiency_small",
        tuple(
            replace(base, name=f"d{depth} s{seed}", model=model(depth), seed=seed, evaluation=evaluation)
            for seed in SEEDS
            for depth in DEPTHS
        ),
    )
