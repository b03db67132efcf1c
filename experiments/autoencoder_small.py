"""What more latent channels buy: Table 3's question with small autoencoders (factor 4) on emoji of 32 px.

mmdit data autoencoder emoji --seeds 3 --out studies/autoencoder_small

4, 8 and 16 channels, trained by L1 and a little KL, without an adversary; measured on the validation split, which no
training sees. Each takes about two minutes on two cores. Expected, as in the paper: every column better with more
channels.
"""

from __future__ import annotations

from mmdit_jax.models.autoencoder import AutoencoderConfig
from mmdit_jax.training.autoencoder import AutoencoderRecipe

CHANNELS = (4, 8, 16)


def recipe(channels: int, seed: int, resolution: int = 32, steps: int = 400) -> AutoencoderRecipe:
    """An autoencoder with factor 4: 8 × 8 latents of 32 px images."""
    config = AutoencoderConfig(
        channels=channels, widths=(16, 32, 64), layers=1, groups=8, shift=0.0, scale=1.0, image_size=resolution
    )
    return AutoencoderRecipe(config, seed=seed, steps=steps)
