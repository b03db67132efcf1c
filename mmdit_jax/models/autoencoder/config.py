"""The shape of a KL autoencoder, and its config.json as diffusers writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmdit_jax.errors import UserError

DOWN_BLOCK, UP_BLOCK = "DownEncoderBlock2D", "UpDecoderBlock2D"


@dataclass(frozen=True)
class AutoencoderConfig:
    """A convolutional autoencoder with a Gaussian posterior (Rombach et al., arXiv 2112.10752). Defaults are SD3's."""

    channels: int = 16
    """Of a latent."""
    widths: tuple[int, ...] = (128, 256, 512, 512)
    """Channels at each resolution, the finest first; each after the first halves the resolution."""
    layers: int = 2
    """Residual blocks at each resolution of the encoder; the decoder has one more."""
    groups: int = 32
    """Of the group norms; each width is a multiple."""
    attention: bool = True
    """Whether the middle of encoder and decoder has a single-head attention."""
    quant_conv: bool = False
    """A 1×1 convolution after the encoder: SD1 and SDXL have it."""
    post_quant_conv: bool = False
    """A 1×1 convolution before the decoder."""
    shift: float = 0.0609
    """The model's space is (z − shift)·scale."""
    scale: float = 1.5305
    image_size: int = 1024
    """Pixels of the images it was trained for; diffusers cuts larger ones into tiles of this size, if told to."""

    def __post_init__(self) -> None:
        for name in ("channels", "layers", "groups", "image_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: expected 1 or more")
        if not self.widths or any(width < 1 or width % self.groups for width in self.widths):
            raise UserError(f"widths={self.widths}: expected one or more multiples of groups={self.groups}")
        if not self.scale > 0:
            raise UserError(f"scale={self.scale}: expected more than 0")

    @property
    def factor(self) -> int:
        """Pixels along a side of a latent pixel."""
        return int(2 ** (len(self.widths) - 1))

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> AutoencoderConfig:
        """From the fields of a config.json of diffusers' AutoencoderKL; a field left out has the default it has there.

        Raises:
            UserError: a field of the wrong kind, or a network of another kind (other blocks, activation or class).
        """
        widths: list[int] = _read(config, "block_out_channels", [64], list)
        levels = len(widths)
        fixed: dict[str, Any] = {
            "_class_name": "AutoencoderKL",
            "down_block_types": [DOWN_BLOCK] * levels,
            "up_block_types": [UP_BLOCK] * levels,
            "act_fn": "silu",
            "in_channels": 3,
            "out_channels": 3,
            "latents_mean": None,
            "latents_std": None,
        }
        for name, expected in fixed.items():
            if name in config and config[name] != expected:
                raise UserError(f"{name}={config[name]!r}: expected {expected!r}")
        size: Any = config.get("sample_size", 32)
        return cls(
            channels=_read(config, "latent_channels", 4, int),
            widths=tuple(widths),
            layers=_read(config, "layers_per_block", 1, int),
            groups=_read(config, "norm_num_groups", 32, int),
            attention=_read(config, "mid_block_add_attention", True, bool),
            quant_conv=_read(config, "use_quant_conv", True, bool),
            post_quant_conv=_read(config, "use_post_quant_conv", True, bool),
            shift=0.0 if config.get("shift_factor") is None else _read(config, "shift_factor", 0.0, float),
            scale=_read(config, "scaling_factor", 0.18215, float),
            image_size=min(size) if isinstance(size, list) and size else _read(config, "sample_size", 32, int),
        )

    def to_diffusers(self) -> dict[str, Any]:
        """The fields of config.json; ``from_diffusers`` gives the config back."""
        return {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": list(self.widths),
            "down_block_types": [DOWN_BLOCK] * len(self.widths),
            "force_upcast": True,
            "in_channels": 3,
            "latent_channels": self.channels,
            "latents_mean": None,
            "latents_std": None,
            "layers_per_block": self.layers,
            "mid_block_add_attention": self.attention,
            "norm_num_groups": self.groups,
            "out_channels": 3,
            "sample_size": self.image_size,
            "scaling_factor": self.scale,
            "shift_factor": self.shift,
            "up_block_types": [UP_BLOCK] * len(self.widths),
            "use_post_quant_conv": self.post_quant_conv,
            "use_quant_conv": self.quant_conv,
        }


def _read(config: Mapping[str, Any], name: str, default: Any, kind: type) -> Any:
    """The field as ``kind`` (a whole number will do for a float, True not for a number); lists are of ints."""
    value: Any = config.get(name, default)
    if kind is float and type(value) is int:
        value = float(value)
    fits = type(value) is kind and not (isinstance(value, list) and any(type(item) is not int for item in value))
    if not fits:
        what = "a list of whole numbers" if kind is list else f"a value of type {kind.__name__}"
        raise UserError(f"{name}={value!r}: expected {what}")
    return value
