"""The paper's comparison of schedules (section 5.1): all 61 formulations on ImageNet and CC12M, for a pod.

mmdit study plan sd3_schedules                     needs no data
mmdit data encode imagenet:FOLDER --name imagenet-latents --bucket-aspect 1 --validation 5000 \\
    --vae SD3 --clip-l SD3 --clip-g SD3            and the same of CC12M's tar files as cc12m-latents; SD3 is its folder
mmdit study run sd3_schedules

Batch 1024, AdamW at 1e-4, 1000 warm-up steps, EMA 0.99 every 100 steps, validation at 8 levels of t, and the protocol's
six samplers at the step with the lowest validation loss, as printed. The paper does not print the size of the model,
its number of steps or its seeds: depth 15, 100,000 steps and one seed are ours. Both data sets are latents of SD3's
autoencoder (16 channels, 32×32 of 256² px) with CLIP-L's and CLIP-G's states, made beforehand. Scores are those of the
packaged judge, which was trained on small pictures: read the validation losses of photographs first.
"""

from __future__ import annotations

from dataclasses import replace

from mmdit_jax.config import (
    SD3_SETTINGS,
    DataConfig,
    EvaluationConfig,
    HardwareConfig,
    OptimizerConfig,
    Run,
    Study,
    text_widths,
)
from mmdit_jax.diffusion import STUDY_61, SamplerConfig
from mmdit_jax.models import MMDiTConfig

DATASETS = ("imagenet-latents", "cc12m-latents")
ENCODERS = ("clip_l", "clip_g")


def study() -> Study:
    """Sixty-one formulations × two data sets."""
    context, pooled = text_widths(ENCODERS)
    base = Run(
        name="base",
        model=MMDiTConfig.from_depth(15, context_dim=context, pooled_dim=pooled, dtype="bfloat16", qk_norm=True),
        data=DataConfig(name=DATASETS[0], resolution=32, validation_examples=4096, text_encoders=ENCODERS),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000, ema_decay=0.99, ema_every=100),
        batch=1024,
        steps=100_000,
        validate_every=5_000,
        evaluation=EvaluationConfig(
            sampler=SamplerConfig(steps=25, guidance=5.0), at="best", settings=SD3_SETTINGS, settings_images=5_000
        ),
        hardware=HardwareConfig(checkpoint_every=5_000),
    )
    return Study(
        "sd3_schedules",
        tuple(
            replace(base, name=f"{dataset} {name}", formulation=name, data=replace(base.data, name=dataset))
            for dataset in DATASETS
            for name in STUDY_61
        ),
    )
