"""Autoencoders: images to latents and back."""

from mmdit_jax.models.autoencoder.interface import Autoencoder, from_model_space, sample_posterior, to_model_space

__all__ = ["Autoencoder", "from_model_space", "sample_posterior", "to_model_space"]
