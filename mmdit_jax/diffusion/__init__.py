"""Diffusion: paths, timestep densities, predictions, weights (formulations by paper name), the loss and samplers."""

from mmdit_jax.diffusion.adaptive import LossByTime, learned, learned_name
from mmdit_jax.diffusion.formulation import QUANTITIES, Formulation
from mmdit_jax.diffusion.loss import training_loss
from mmdit_jax.diffusion.registry import LATER, STUDY_61, formulation, histogram, resolution_shift
from mmdit_jax.diffusion.sampler import Plan, guided, plan, sample
from mmdit_jax.diffusion.sampler_config import SamplerConfig
from mmdit_jax.diffusion.times import timesteps

__all__ = [
    "LATER",
    "QUANTITIES",
    "STUDY_61",
    "Formulation",
    "LossByTime",
    "Plan",
    "SamplerConfig",
    "formulation",
    "guided",
    "histogram",
    "learned",
    "learned_name",
    "plan",
    "resolution_shift",
    "sample",
    "timesteps",
    "training_loss",
]
