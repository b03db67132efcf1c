"""Public SD3 checkpoints, in diffusers' and in Stability's layout: read, written, run."""

from mmdit_jax.models.sd3.convert import Written, convert
from mmdit_jax.models.sd3.model import SD3, checkpoint_of, load_sd3, params_from_tensors, tensors_from_params
from mmdit_jax.models.sd3.reader import Checkpoint, open_checkpoint

__all__ = [
    "SD3",
    "Checkpoint",
    "Written",
    "checkpoint_of",
    "convert",
    "load_sd3",
    "open_checkpoint",
    "params_from_tensors",
    "tensors_from_params",
]
