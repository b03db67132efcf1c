"""Models: the MMDiT and what it is compared with, its public checkpoints, and the text encoders (``models.text``)."""

from mmdit_jax.models.architectures.registry import apply, init_params
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.mmdit import MMDiT
from mmdit_jax.models.sd3 import load_sd3

__all__ = ["MMDiT", "MMDiTConfig", "apply", "init_params", "load_sd3"]
