"""The KL autoencoder as programs use it: uint8 images to posteriors, latents to uint8 images, whole or in tiles."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmdit_jax.errors import UserError
from mmdit_jax.models.autoencoder import tiles
from mmdit_jax.models.autoencoder.config import AutoencoderConfig
from mmdit_jax.models.autoencoder.interface import from_model_space
from mmdit_jax.models.autoencoder.names import from_torch, to_torch
from mmdit_jax.models.autoencoder.network import LOGVAR_RANGE, Network, abstract

_VERSION = "kl-1"
DTYPES = ("float32", "bfloat16")


class KLAutoencoder:
    """A network with its weights, behind the interface ``Autoencoder``. One compilation a shape and batch size.

    Args:
        config: of the network.
        model: it, with weights.
        folder: where it was read from.
        tile: pixels of a tile; images with a longer side are encoded and decoded in tiles. None: always whole.

    Raises:
        UserError: ``tile`` is not a multiple of 4·factor.
    """

    def __init__(self, config: AutoencoderConfig, model: Network, folder: str = "", tile: int | None = None) -> None:
        self.config, self.folder = config, folder
        if tile is not None and (tile < 1 or tile % (4 * self.factor)):
            raise UserError(f"tile={tile}: expected a multiple of {4 * self.factor}, or none")
        self.tile = tile
        self.fingerprint = fingerprint(self.config, to_torch(model))
        self._graph, self._state = nnx.split(model)

    @classmethod
    def from_tensors(
        cls,
        config: AutoencoderConfig,
        tensors: dict[str, np.ndarray],
        *,
        folder: str = "",
        dtype: str = "float32",
        tile: int | None = None,
    ) -> KLAutoencoder:
        """From tensors under diffusers' names in torch's layout; names and shapes must be those of the config."""
        if dtype not in DTYPES:
            raise UserError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
        model = abstract(config, dtype)
        from_torch(model, tensors)
        return cls(config, model, folder, tile)

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.config.channels

    @property
    def factor(self) -> int:
        """Pixels along a side of a latent pixel."""
        return self.config.factor

    @property
    def shift(self) -> float:
        """What is subtracted from z."""
        return self.config.shift

    @property
    def scale(self) -> float:
        """What z − shift is multiplied by."""
        return self.config.scale

    def encode(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log variance of the posterior, float32 [B, H/f, W/f, C], of images uint8 [B, H, W, 3].

        Raises:
            UserError: another shape or dtype, or sides that are no multiples of the factor.
        """
        at, factor = images.shape, self.factor
        if len(at) != 4 or at[3] != 3 or images.dtype != np.uint8 or at[1] % factor or at[2] % factor or 0 in at:
            raise UserError(
                f"images={images.dtype}{list(at)}: expected uint8 [B, H, W, 3], H and W multiples of {factor}"
            )
        moments = self._run(lambda part: _encode(self._graph, self._state, part), images, self.tile, 1, factor)
        mean, logvar = np.split(moments, 2, axis=-1)
        return np.ascontiguousarray(mean), np.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Images uint8 [B, h·f, w·f, 3] of latents in the model's space, float32 [B, h, w, C].

        Raises:
            UserError: another shape.
        """
        return to_uint8(self.decode_float(latents))

    def decode_float(self, latents: np.ndarray) -> np.ndarray:
        """As ``decode``, before rounding: float32, about within [-1, 1]."""
        at, factor = latents.shape, self.factor
        if len(at) != 4 or at[3] != self.channels or 0 in at:
            raise UserError(f"latents={list(at)}: expected [B, h, w, {self.channels}]")
        tile = None if self.tile is None else self.tile // factor
        wide = np.asarray(latents, np.float32)
        space = self.shift, self.scale
        return self._run(lambda part: _decode(self._graph, self._state, part, *space), wide, tile, factor, 1)

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights under diffusers' names in torch's layout, float32."""
        model = abstract(self.config)
        nnx.update(model, self._state)
        return to_torch(model)

    @staticmethod
    def _run(
        function: Callable[[np.ndarray], jax.Array], whole: np.ndarray, tile: int | None, up: int, down: int
    ) -> np.ndarray:
        """``function`` of all, or of tiles where a side is longer than one; sides change by up / down."""
        if tile is None or max(whole.shape[1:3]) <= tile:
            return np.asarray(function(whole))
        return tiles.tiled(lambda part: np.asarray(function(part)), whole, tile, tile * up // down)


# Weights are arguments: as constants they would be compiled, 335 MB of them, into each program. So are shift and scale:
# networks of one shape share a program.
@functools.partial(jax.jit, static_argnums=0)
def _encode(graph: nnx.GraphDef[Network], state: nnx.State, images: jax.Array) -> jax.Array:
    return nnx.merge(graph, state).moments(images.astype(jnp.float32) / 127.5 - 1)


@functools.partial(jax.jit, static_argnums=0)
def _decode(
    graph: nnx.GraphDef[Network], state: nnx.State, latents: jax.Array, shift: jax.Array, scale: jax.Array
) -> jax.Array:
    return nnx.merge(graph, state).decode(from_model_space(latents, shift, scale))


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] (what lies outside is clipped) -> uint8, rounded."""
    return np.round(np.clip(images * 127.5 + 127.5, 0, 255)).astype(np.uint8)


def fingerprint(config: AutoencoderConfig, tensors: dict[str, np.ndarray]) -> str:
    """Hash of the network's shape and weights, 16 hexadecimal digits; shift and scale don't change raw latents."""
    shape: dict[str, Any] = config.to_diffusers()
    for name in ("shift_factor", "scaling_factor", "sample_size"):
        del shape[name]
    digest = hashlib.blake2b((_VERSION + json.dumps(shape, sort_keys=True)).encode(), digest_size=8)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name], np.float32).data)
    return digest.hexdigest()
