"""The run that a plan is of: a training run of the paper's scaling study, or the drawing of images by such a model."""

from __future__ import annotations

from collections.abc import Sequence

from mmdit_jax.config import DataConfig, OptimizerConfig, Run
from mmdit_jax.config_values import overridden
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig

ENCODERS = {"clip_l": (77, 768, 768), "clip_g": (77, 1280, 1280)}
"""SD3's text encoders beside T5: length, width, pooled width."""
CLIP_TOKENS, T5_WIDTH = 77, 4096
T5_PARAMETERS = 4_762_310_656
"""Of T5 v1.1 XXL's encoder: 32128 x 4096 + 24 (4 x 4096^2 + 3 x 4096 x 10240 + 2 x 4096) + 32 x 64 + 4096."""


def planned_run(
    depth: int,
    *,
    resolution: int = 256,
    batch: int | None = None,
    steps: int | None = None,
    factor: int = 8,
    text_tokens: int = 154,
    sampling: bool = False,
    overrides: Sequence[str] = (),
) -> Run:
    """The run of the paper's scaling study (bfloat16, QK-norm, AdamW, encoded data) at a depth.

    Args:
      resolution: side of an image, in pixels; a pixel of its latent is ``factor`` of them.
      batch: images a step; by default 4096, or 1 where images are drawn.
      steps: of training, by default 500,000, or of ``sampling``, 50.
      text_tokens: CLIP's 77 and T5's.
      overrides: any other field, as FIELD=VALUE.

    Raises:
      UserError: a size that does not divide, or an override of no field.
    """
    if resolution % factor:
        raise UserError(f"resolution={resolution}: expected a multiple of {factor} (--factor)")
    t5 = text_tokens - CLIP_TOKENS
    if t5 < 0:
        raise UserError(f"text-tokens={text_tokens}: expected {CLIP_TOKENS} of CLIP or more")
    shapes = dict(ENCODERS) | ({"t5": (t5, T5_WIDTH, 0)} if t5 else {})
    data = DataConfig(
        name="encoded",
        resolution=resolution // factor,
        text_encoders=tuple(shapes),
        text_layout="sd3",
        text_shapes=tuple((name, *shape) for name, shape in shapes.items()),
    )
    model = MMDiTConfig.from_depth(
        depth, qk_norm=True, dtype="bfloat16", context_dim=T5_WIDTH if t5 else sum(s[1] for s in ENCODERS.values())
    )
    batch = batch or (1 if sampling else 4096)
    steps = steps or (50 if sampling else 500_000)
    run = Run("planned", model, data, OptimizerConfig(), "rf/lognorm(0.00,1.00)", steps=steps, batch=batch)
    run = overridden(run, overrides)
    run.model.grid(run.data.resolution, run.data.resolution)
    return run
