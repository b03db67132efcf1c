"""The paper's comparison of schedules, small: Table 1's 16 formulations and four later ones, on scenes and emoji.

mmdit study run schedules_small

Equal steps and seeds for all; two data sets × {EMA, raw} × six samplers are the protocol's 24 settings. 80 runs of one
to two minutes on two cores: kill it and start it again as often as you like. Expected: within the first front of most
settings, formulations that put more weight on the middle of t.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.quickstart import OPTIMIZER, model
from mmdit_jax.config import (
    SD3_SETTINGS,
    DataConfig,
    EvaluationConfig,
    HardwareConfig,
    Run,
    Study,
)
from mmdit_jax.diffusion import SamplerConfig

TABLE_1 = (
    "rf/lognorm(0.00,1.00)",
    "rf/lognorm(1.00,0.60)",
    "rf/lognorm(0.50,0.60)",
    "rf/mode(1.29)",
    "rf/lognorm(0.50,1.00)",
    "eps/linear",
    "rf/mode(1.75)",
    "rf/cosmap",
    "edm(0.00,0.60)",
    "rf",
    "v/linear",
    "edm(0.60,1.20)",
    "v/cos",
    "edm/cos",
    "edm/rf",
    "edm(-1.20,1.20)",
)
"""Table 1 of the paper, best first."""
LATER = ("rf/adaptive(-1.00)", "rf/adaptive(1.00)", "rf/lognorm(1.90,1.00)", "v/cos/minsnr(5.00)")
SEEDS = (0, 1)
DATASETS = ("scenes", "emoji")


def runs(formulations: tuple[str, ...]) -> tuple[Run, ...]:
    """Every formulation on both data sets, one seed after the other, so that a part of it can be ranked."""
    base = Run(
        name="base",
        model=model(2),
        data=DataConfig(resolution=32, validation_examples=128),
        optimizer=OPTIMIZER,
        batch=32,
        steps=1000,
        validate_every=250,
        evaluation=EvaluationConfig(
            prompts_per_task=16,
            sampler=SamplerConfig(steps=25, guidance=5.0),
            at="best",
            settings=SD3_SETTINGS,
            settings_images=128,
        ),
        hardware=HardwareConfig(onednn=True),
    )
    return tuple(
        replace(
            base, name=f"{dataset} {name} s{seed}", formulation=name, data=replace(base.data, name=dataset), seed=seed
        )
        for seed in SEEDS
        for dataset in DATASETS
        for name in formulations
    )


def study() -> Study:
    """Twenty formulations × two data sets × two seeds."""
    return Study("schedules_small", runs((*TABLE_1, *LATER)))
