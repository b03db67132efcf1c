"""Models: the MMDiT, public checkpoints of it, and the text encoders that feed it (in ``models.text``)."""

from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.mmdit import MMDiT, apply, init_params
from mmdit_jax.models.sd3 import load_sd3

__all__ = ["MMDiT", "MMDiTConfig", "apply", "init_params", "load_sd3"]
