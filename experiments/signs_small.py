"""Does a small model spell? Signs with a word of two or three letters, with and without an encoder that spells it.

mmdit study run signs_small

Two seeds of each, depth 3 on 32 px, 1500 steps of 32 images, about six minutes a run on two cores; one word in seven is
held out and asked for all the same. Words stand in one size, place and colour (`signs_fixed`), letters on borders of
patches: where they wander (`signs`), 1,700 steps teach the place of letters, and not yet their shapes. Scores of
typography beside chance: typography.csv, docs/proxies.md.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.quickstart import OPTIMIZER
from mmdit_jax.config import DataConfig, EvaluationConfig, HardwareConfig, Run, Study, text_widths
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.models import MMDiTConfig

ENCODERS = {"letters": ("tower", "letters"), "words": ("words", "tower")}
SEEDS = (0, 1)


def model(encoders: tuple[str, ...], depth: int = 3) -> MMDiTConfig:
    """An MMDiT on 4x4 patches of pixels: a letter is two patches wide."""
    context, pooled = text_widths(encoders)
    return MMDiTConfig.from_depth(
        depth,
        head_size=32,
        patch_size=4,
        in_channels=3,
        context_dim=context,
        pooled_dim=pooled,
        position_table=16,
        qk_norm=True,
    )


def study() -> Study:
    """The run that is given letters first; one seed after the other, so that a part of it says something."""
    base = Run(
        name="letters",
        model=model(ENCODERS["letters"]),
        data=DataConfig(
            name="signs_fixed",
            resolution=32,
            examples=32_768,
            validation_examples=240,
            text_encoders=ENCODERS["letters"],
            text_drop=0.1,  # the paper's 0.464 would keep the letters from nearly half of the images
        ),
        optimizer=replace(OPTIMIZER, schedule="cosine"),
        formulation="rf/lognorm(0.00,1.00)",
        batch=32,
        steps=1500,
        validate_every=250,
        evaluation=EvaluationConfig(prompts_per_task=40, sampler=SamplerConfig(steps=16, guidance=4.0)),
        hardware=HardwareConfig(onednn=True),
    )
    return Study(
        "signs_small",
        tuple(
            replace(
                base,
                name=f"{name} s{seed}",
                model=model(encoders),
                data=replace(base.data, text_encoders=encoders),
                seed=seed,
            )
            for seed in SEEDS
            for name, encoders in ENCODERS.items()
        ),
    )
