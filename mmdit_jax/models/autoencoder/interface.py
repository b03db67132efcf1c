"""What an autoencoder offers: images to latents and back, and the space that the model works in (SD3 §5.2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float32, UInt8


class Autoencoder(Protocol):
    """A frozen autoencoder. Equal fingerprints mean equal latents, so the fingerprint may key a cache.

    The model's space: latent = (z − shift)·scale with z = mean + exp(logvar / 2)·noise, so that latents have about
    mean 0 and deviation 1. ``to_model_space`` and ``from_model_space`` go between the two.
    """

    @property
    def channels(self) -> int:
        """Channels of a latent, C."""

    @property
    def factor(self) -> int:
        """Pixels along a side of a latent pixel, f: 8 for SD3."""

    @property
    def shift(self) -> float:
        """What is subtracted from z: 0.0609 for SD3."""

    @property
    def scale(self) -> float:
        """What z − shift is multiplied by: 1.5305 for SD3."""

    @property
    def fingerprint(self) -> str:
        """Hash of the algorithm's version, the shape of the network and the weights."""

    @property
    def folder(self) -> str:
        """The folder or file that it was read from."""

    def encode(self, images: UInt8[np.ndarray, "B H W 3"]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log variance of the posterior of images, before shift and scale.

        Args:
            images: uint8 [B, H, W, 3]; H and W multiples of ``factor``.

        Returns:
            mean, logvar: float32 [B, H/f, W/f, C]; logvar within [-30, 20].

        Raises:
            UserError: another shape or dtype.
        """

    def decode(self, latents: Float32[np.ndarray, "B h w C"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Images of latents in the model's space, float32 [B, h, w, C] -> uint8 [B, h·f, w·f, 3].

        Raises:
            UserError: another shape.
        """


def to_model_space(
    z: Float32[Array, "*axes"], shift: jax.typing.ArrayLike, scale: jax.typing.ArrayLike
) -> Float32[Array, "*axes"]:
    """(z − shift)·scale: raw latents as the model sees them. Pure, fine inside jit."""
    return (z - shift) * scale


def from_model_space(
    latents: Float32[Array, "*axes"], shift: jax.typing.ArrayLike, scale: jax.typing.ArrayLike
) -> Float32[Array, "*axes"]:
    """latents / scale + shift: what the decoder takes. Pure, fine inside jit."""
    return latents / scale + shift


def sample_posterior(
    key: jax.Array, mean: Float32[Array, "*axes"], logvar: Float32[Array, "*axes"]
) -> Float32[Array, "*axes"]:
    """z = mean + exp(logvar / 2)·noise, float32; pure, fine inside jit."""
    return mean + jax.numpy.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)
