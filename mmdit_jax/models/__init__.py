"""Models: the MMDiT and what it is compared with, and the text encoders that feed it (in ``models.text``)."""

from mmdit_jax.models.architectures.registry import apply, init_params
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.mmdit import MMDiT

__all__ = ["MMDiT", "MMDiTConfig", "apply", "init_params"]
