"""Autoencoders: images to latents and back."""

from mmdit_jax.models.autoencoder.config import AutoencoderConfig
from mmdit_jax.models.autoencoder.files import holds_autoencoder, load_autoencoder, save_autoencoder
from mmdit_jax.models.autoencoder.interface import Autoencoder, from_model_space, sample_posterior, to_model_space
from mmdit_jax.models.autoencoder.kl import KLAutoencoder

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "KLAutoencoder",
    "from_model_space",
    "holds_autoencoder",
    "load_autoencoder",
    "sample_posterior",
    "save_autoencoder",
    "to_model_space",
]
