"""Three sizes of MMDiT under two timestep densities on scenes, and one on emoji: a scaling study in minutes.

make study            or: mmdit study run quickstart
"""

from __future__ import annotations

from dataclasses import replace

from mmdit_jax.config import DataConfig, EvaluationConfig, HardwareConfig, OptimizerConfig, Run, Study, text_widths
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.models import MMDiTConfig

DEPTHS = (1, 2, 3)
FORMULATIONS = {"rf": "rf", "lognorm": "rf/lognorm(0.00,1.00)"}
DATA = DataConfig(name="scenes", resolution=32, examples=32_768, validation_examples=128)
OPTIMIZER = OptimizerConfig(
    name="muon", learning_rate=2e-2, adam_learning_rate=4e-3, warmup_steps=20, b2=0.99, ema_decay=0.99
)
"""Of all small studies: Muon learns more from a minute of CPU than AdamW does."""


def model(depth: int) -> MMDiTConfig:
    """An MMDiT on 4x4 patches of pixels, with heads of 32 rather than the paper's 64, so that minutes suffice.

    Depth 1 gets two heads: a token narrower than the 48 numbers of a patch could not carry its noise.
    """
    context, pooled = text_widths(DATA.text_encoders)
    return MMDiTConfig.from_depth(
        depth,
        head_size=32,
        heads=max(2, depth),
        patch_size=4,
        in_channels=3,
        context_dim=context,
        pooled_dim=pooled,
        position_table=16,
        qk_norm=True,
        scan=False,
    )


def study() -> Study:
    """Six runs on scenes, one on emoji."""
    first = Run(
        name="d1-rf",
        model=model(1),
        data=DATA,
        # A constant rate keeps every point of a curve comparable: the law is fitted to the runs' common lower envelope.
        optimizer=OPTIMIZER,
        batch=32,
        steps=600,
        validate_every=75,
        evaluation=EvaluationConfig(prompts_per_task=40, sampler=SamplerConfig(steps=16, guidance=4.0)),
        # Blocks unrolled and products by oneDNN: 1.2 times the steps a second, for some seconds of compilation.
        hardware=HardwareConfig(onednn=True),
    )
    scenes = [
        replace(first, name=f"d{depth}-{label}", model=model(depth), formulation=name)
        for depth in DEPTHS
        for label, name in FORMULATIONS.items()
    ]
    emoji = replace(
        first,
        name="emoji-d2",
        model=model(2),
        formulation=FORMULATIONS["lognorm"],
        data=replace(DATA, name="emoji"),
        evaluation=replace(first.evaluation, prompts_per_task=10),
    )
    return Study("quickstart", (*scenes, emoji))
