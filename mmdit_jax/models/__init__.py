"""Models: the MMDiT, and the text encoders that feed it (in ``models.text``)."""

from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.mmdit import MMDiT, apply, init_params

__all__ = ["MMDiT", "MMDiTConfig", "apply", "init_params"]
