"""Diffusion: paths, timestep densities, predictions, weights (formulations by paper name), the loss and the sampler."""

from mmdit_jax.diffusion.formulation import Formulation
from mmdit_jax.diffusion.loss import training_loss
from mmdit_jax.diffusion.registry import STUDY_61, formulation
from mmdit_jax.diffusion.sampler import euler_sample, guided, sample, timesteps

__all__ = [
    "STUDY_61",
    "Formulation",
    "euler_sample",
    "formulation",
    "guided",
    "sample",
    "timesteps",
    "training_loss",
]
