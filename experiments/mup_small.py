"""Where the best learning rate lies at depths 1 to 4 and widths 24 to 192, standard and by muP, on scenes.

mmdit study run mup_small --replicas 2
mmdit optimum studies/mup_small/results.csv --by width --split parametrization --out studies/mup_small/figures
mmdit coordinates mup_small --widths 24 48 96 192 384 --depths 2 4 8 16 \
    --out studies/mup_small/figures

The width doubles with each block, so that four depths span a factor of eight. Patches have 27 numbers,
about as many as the narrowest model has channels. AdamW, since muP's rules are for it. At the
base's shape both are the same model: its rows should agree.

96 runs, 210 teraFLOP: an hour and a half on two idle cores, of which the widest model takes three quarters (kill it and
start it again as often as you like; every rate is compiled anew, some ten seconds for each pair of seeds).
"""

from __future__ import annotations

from dataclasses import replace

from mmdit_jax.config import DataConfig, EvaluationConfig, HardwareConfig, OptimizerConfig, Run, Study, text_widths
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.models import MMDiTConfig

WIDTHS = {1: 24, 2: 48, 3: 96, 4: 192}
"""By depth."""
BASE = 2
"""The depth whose model is the same under both: at depth 1 no text stream has branches."""
EXPONENTS = range(-9, -3)
"""Of 2, which the learning rates are."""
SEEDS = (0, 1)
STEPS = 250
DATA = DataConfig(name="scenes", resolution=24, validation_examples=256)


def model(depth: int, parametrization: str) -> MMDiTConfig:
    """An MMDiT with heads of 24."""
    context, pooled = text_widths(DATA.text_encoders)
    base = {"base_width": WIDTHS[BASE], "base_depth": BASE} if parametrization == "mup" else {}
    return MMDiTConfig.from_depth(
        depth,
        width=WIDTHS[depth],
        head_size=24,
        patch_size=3,
        in_channels=3,
        context_dim=context,
        pooled_dim=pooled,
        position_table=16,
        qk_norm=True,
        parametrization=parametrization,
        **base,
    )


def study() -> Study:
    """Each rate at each depth under both parametrizations, with each seed."""
    first = Run(
        name="base",
        model=model(BASE, "standard"),
        data=DATA,
        # Decay to zero: what is left at the end is where a rate leads, not its noise.
        optimizer=OptimizerConfig(warmup_steps=30, schedule="cosine", b2=0.99, ema_decay=0.99),
        formulation="rf/lognorm(0.00,1.00)",
        batch=32,
        steps=STEPS,
        validate_every=STEPS,
        evaluation=EvaluationConfig(prompts_per_task=1, sampler=SamplerConfig(steps=1)),
        hardware=HardwareConfig(onednn=True),
    )
    runs = [
        replace(
            first,
            name=f"{parametrization} d{depth} lr2^{exponent} s{seed}",
            model=model(depth, parametrization),
            optimizer=replace(first.optimizer, learning_rate=2.0**exponent),
            seed=seed,
        )
        for parametrization in ("standard", "mup")
        for depth in WIDTHS
        for exponent in EXPONENTS
        for seed in SEEDS
    ]
    return Study("mup_small", tuple(runs))
