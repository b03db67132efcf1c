"""A ladder of six depths × three token budgets × two seeds on scenes, whose top is predicted before it is trained.

mmdit study run ladder_small --replicas 2 --only …      or in several sittings, as docs/results/ladder_small.md tells
mmdit predict ladder_small --run "d7 1000 steps s0" --run "d7 1000 steps s1"    before they start, from what is done
mmdit predict ladder_small                              when they are: what was foretold, and what came

Depths 2 to 7 with 24 channels a block (48 to 168), each trained for 200, 450 and 1000 steps of 32 images: a factor of
180 in FLOPs from the smallest run to the largest. Every budget has a cosine to zero of its own, so that a run's last
loss is that of a run of its length and nothing else. Muon, whose best rate hardly moves with the width.

36 runs, 3.0e14 FLOPs: an hour and a half on two idle cores; kill it and start it again as often as you like.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.quickstart import OPTIMIZER
from mmdit_jax.config import DataConfig, EvaluationConfig, HardwareConfig, Run, Study, text_widths
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.models import MMDiTConfig

DEPTHS = (2, 3, 4, 5, 6, 7)
STEPS = (200, 450, 1000)
SEEDS = (0, 1)
HEAD_SIZE = 24
"""Rather than the paper's 64; a token of the smallest model has 48 numbers, as many as a patch."""
DATA = DataConfig(name="scenes", resolution=32, examples=65_536, validation_examples=256)


def model(depth: int) -> MMDiTConfig:
    """An MMDiT on 4x4 patches of pixels, 24 channels wide a block."""
    context, pooled = text_widths(DATA.text_encoders)
    return MMDiTConfig.from_depth(
        depth,
        head_size=HEAD_SIZE,
        patch_size=4,
        in_channels=3,
        context_dim=context,
        pooled_dim=pooled,
        position_table=16,
        qk_norm=True,
    )


def study() -> Study:
    """From the shallowest on: within a depth the longest training comes last."""
    base = Run(
        name="base",
        model=model(DEPTHS[0]),
        data=DATA,
        optimizer=replace(OPTIMIZER, schedule="cosine"),
        formulation="rf/lognorm(0.00,1.00)",
        batch=32,
        steps=STEPS[0],
        validate_every=STEPS[0] // 2,
        evaluation=EvaluationConfig(prompts_per_task=40, sampler=SamplerConfig(steps=16, guidance=4.0)),
        hardware=HardwareConfig(onednn=True, checkpoint_every=150),
    )
    return Study(
        "ladder_small",
        tuple(
            replace(
                base,
                name=f"d{depth} {steps} steps s{seed}",
                model=model(depth),
                steps=steps,
                validate_every=steps // 2,
                seed=seed,
            )
            for depth in DEPTHS
            for steps in STEPS
            for seed in SEEDS
        ),
    )
