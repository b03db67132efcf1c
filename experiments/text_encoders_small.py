"""What an image loses when a text encoder is removed at inference, small (SD3's Figure 9: 50, 46 and 38 % without T5).

mmdit study run text_encoders_small --replicas 3

`tower` has the part of SD3's CLIPs (contrastive, with a pooled state), `words` that of T5 (token states alone, behind
the others along the sequence). Each is dropped in 46.4 % of training, independently, as in the paper. Three seeds of
about a quarter of an hour on two cores. Expected: the model draws without either, worse; without both at chance.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.quickstart import OPTIMIZER, model
from mmdit_jax.config import DataConfig, EvaluationConfig, HardwareConfig, Run, Study, text_widths
from mmdit_jax.diffusion import SamplerConfig

SEEDS = (0, 1, 2)
DATA = DataConfig(name="scenes", resolution=32, validation_examples=128, text_layout="sd3")


def study() -> Study:
    """One model, its seeds."""
    context, pooled = text_widths(DATA.text_encoders, DATA.text_layout)
    base = Run(
        name="base",
        model=replace(model(4), context_dim=context, pooled_dim=pooled),
        data=DATA,
        optimizer=replace(OPTIMIZER, schedule="cosine"),
        formulation="rf/lognorm(0.00,1.00)",
        batch=32,
        steps=2000,
        validate_every=250,
        evaluation=EvaluationConfig(
            prompts_per_task=80,
            sampler=SamplerConfig(steps=24, guidance=4.0),
            without=(("words",), ("tower",), ("tower", "words")),
        ),
        hardware=HardwareConfig(onednn=True),
    )
    return Study("text_encoders_small", tuple(replace(base, name=f"d4 s{seed}", seed=seed) for seed in SEEDS))
