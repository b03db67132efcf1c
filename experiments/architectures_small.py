"""The architectures of SD3's figure 4, small: DiT, CrossDiT, UViT, MMDiT and MMDiT with three streams, on scenes.

mmdit study run architectures_small --replicas 4
mmdit compare studies/architectures_small/results.csv --by architecture --baseline mmdit

Held: the training FLOPs of a run (within 1 %), and with them nearly the FLOPs of an image and the number of steps. Not
held: parameters, since at equal FLOPs a network has the more of them the more sets of weights share its tokens (0.33M
for the UViT, 0.6M for the DiT, 1.4M for three streams). The text has SD3's layout: `tower` in the part of the CLIPs,
`words` behind it in that of T5. Twenty runs, about an hour on two idle cores (four replicas at once; kill it and
start it again as often as you like). The paper's order is DiT < UViT < CrossDiT < MMDiT, with little gained by a third
stream; expect the differences here to be small beside those of seeds.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.quickstart import OPTIMIZER, model
from mmdit_jax.config import (
    DataConfig,
    EvaluationConfig,
    HardwareConfig,
    Run,
    Study,
    text_widths,
)
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.models import MMDiTConfig

SEEDS = (0, 1, 2, 3)
STEPS = 1504
"""Of the MMDiT; the others get what its training FLOPs pay for."""
POINTS = 8
"""Validations of a run, at equal FLOPs in all."""
DATA = DataConfig(name="scenes", resolution=32, validation_examples=128, text_layout="sd3")
FIRST_TEXT = 16
"""Tokens of `tower`, which stand first."""


def models() -> dict[str, MMDiTConfig]:
    """The networks, 70 million FLOPs an image each within 13 %.

    All have 64 image tokens in their transformer: the UViT's patches are half as wide, and its grid is halved once. Its
    convolutions take most of its FLOPs, so it is narrower.
    """
    context, pooled = text_widths(DATA.text_encoders, DATA.text_layout)
    base = replace(model(3), context_dim=context, pooled_dim=pooled, text_split=FIRST_TEXT)
    found = {name: replace(base, architecture=name) for name in ("mmdit", "mmdit3", "dit", "crossdit")}
    return {**found, "uvit": replace(base, architecture="uvit", depth=2, heads=2, patch_size=2)}


def study() -> Study:
    """Each network with each seed, at the training FLOPs of the MMDiT's steps."""
    networks = models()
    base = Run(
        name="base",
        model=networks["mmdit"],
        data=DATA,
        # All decay to zero over the same budget, so that equal shares of it compare, and the end has little noise.
        optimizer=replace(OPTIMIZER, schedule="cosine"),
        formulation="rf/lognorm(0.00,1.00)",
        batch=32,
        steps=STEPS,
        evaluation=EvaluationConfig(prompts_per_task=40, sampler=SamplerConfig(steps=16, guidance=4.0)),
        hardware=HardwareConfig(onednn=True, checkpoint_every=250),
    )
    budget = base.train_flops()
    runs = []
    for name, network in networks.items():
        one = replace(base, model=network, steps=1).train_flops()
        every = round(budget / one / POINTS)
        fixed = replace(base, model=network, steps=POINTS * every, validate_every=every)
        runs += [replace(fixed, name=f"{name} s{seed}", seed=seed) for seed in SEEDS]
    return Study("architectures_small", tuple(runs))
