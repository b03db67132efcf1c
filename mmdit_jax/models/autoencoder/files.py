"""Autoencoders on disk: diffusers' folder, Stability's single file, and our own, which are diffusers' folders too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.numpy

from mmdit_jax.errors import UserError
from mmdit_jax.files import write_atomic, write_json
from mmdit_jax.models.autoencoder.config import AutoencoderConfig
from mmdit_jax.models.autoencoder.kl import KLAutoencoder
from mmdit_jax.models.autoencoder.names import PREFIXES, infer_config, public_name, shapes, strip_prefix
from mmdit_jax.models.tensors import VARIANTS, Tensor, compare, read_header, read_headers, read_json, weight_files

CONFIG, STEM = "config.json", "diffusion_pytorch_model"
FLOATS = ("F64", "F32", "F16", "BF16")
SD3_SHIFT, SD3_SCALE, SD3_CHANNELS = 0.0609, 1.5305, 16
_GROUPS = 32
_NAMED = 5
"""Tensors that an error names; of more it says how many."""


def load_autoencoder(
    path: str | Path,
    *,
    dtype: str = "float32",
    tile: int | None = None,
    shift: float | None = None,
    scale: float | None = None,
) -> KLAutoencoder:
    """Read an autoencoder: a diffusers folder (or a pipeline's, with vae/ in it), or a safetensors file.

    A single file has Stability's or diffusers' names, under ``first_stage_model.``, ``vae.`` or no prefix; other
    networks in it are left aside. Only tensors of the autoencoder are read.

    Args:
        path: folder or file.
        dtype: of products, "float32" or "bfloat16".
        tile: pixels; see ``KLAutoencoder``.
        shift, scale: in place of those of config.json. A single file says nothing of them: SD3's are taken for
            ``first_stage_model.`` with 16 channels, other files need both.

    Raises:
        UserError: nothing there, a damaged file, another kind of network; tensors that are missing, unknown or
            misshapen, each by its name.
    """
    path = Path(path).expanduser()
    config: AutoencoderConfig | None
    if path.is_dir():
        if not (path / CONFIG).is_file() and (path / "vae" / CONFIG).is_file():
            path = path / "vae"
        config = _read_config(path / CONFIG)
        found, _ = read_headers(weight_files(path, STEM, "vae"), "vae")
    elif path.exists():
        found, _ = read_header(path, "vae")
        # The weights of a diffusers folder by their own name: config.json lies beside them.
        own_name = path.name in [f"{STEM}{variant}.safetensors" for variant in VARIANTS]
        beside = own_name and (path.parent / CONFIG).is_file()
        config = _read_config(path.parent / CONFIG) if beside else None
    else:
        raise UserError(f"vae={path}: not there; expected a diffusers folder or a safetensors file")

    prefix, names = strip_prefix(found)
    own = {name: found[prefix + name] for name in names}
    if config is None:
        config = _infer(path, prefix, own, shift, scale)
    changes = {"shift": shift, "scale": scale}
    config = AutoencoderConfig(**{**vars(config), **{k: float(v) for k, v in changes.items() if v is not None}})
    tensors = _checked(config, own, path)
    return KLAutoencoder.from_tensors(config, tensors, folder=str(path), dtype=dtype, tile=tile)


def holds_autoencoder(file: Path) -> bool:
    """Whether a checkpoint that may hold several networks holds an autoencoder.

    Raises:
        UserError: it is damaged.
    """
    return file.suffix == ".safetensors" and any(name.startswith(PREFIXES) for name in read_header(file, "vae")[0])


def save_autoencoder(folder: str | Path, autoencoder: KLAutoencoder) -> None:
    """Write a folder that ``load_autoencoder`` and diffusers' AutoencoderKL read; float32.

    config.json is written last: its presence means finished. The same autoencoder gives the same bytes.

    Raises:
        UserError: the folder can't be written.
    """
    folder = Path(folder).expanduser()
    try:
        write_atomic(folder / f"{STEM}.safetensors", safetensors.numpy.save(autoencoder.tensors(), {"format": "pt"}))
        write_json(folder / CONFIG, autoencoder.config.to_diffusers())
    except OSError as error:
        raise UserError(f"vae={folder}: {error.strerror or error}; choose another folder") from None


def _read_config(file: Path) -> AutoencoderConfig:
    fields = read_json(file, "vae", "a diffusers folder")
    try:
        return AutoencoderConfig.from_diffusers(fields)
    except UserError as error:
        raise UserError(f"vae={file}: {error}") from None


def _infer(
    path: Path, prefix: str, own: dict[str, Tensor], shift: float | None, scale: float | None
) -> AutoencoderConfig:
    found = {name: tensor.shape for name, tensor in own.items()}
    config = infer_config(found, _GROUPS, SD3_SHIFT, SD3_SCALE, str(path))
    known = prefix == "first_stage_model." and config.channels == SD3_CHANNELS and not config.quant_conv
    if not known and (shift is None or scale is None):
        raise UserError(
            f"vae={path}: a file of {config.channels} channels under {prefix or 'no prefix'!r} does not tell its shift "
            "and scale; put it into a diffusers folder, whose config.json has them (in Python: shift= and scale=)"
        )
    return config


def _checked(config: AutoencoderConfig, own: dict[str, Tensor], path: Path) -> dict[str, np.ndarray]:
    """The tensors that the network needs, read; anything else is an error with names."""
    expected = shapes(config)
    told = {name: public_name(name, len(config.widths)) for name in own}
    by_public = {public: own[name] for name, public in told.items()}
    twice = sorted(name for name, public in told.items() if name != public and public in own)
    if twice:
        raise UserError(f"vae={path}: {twice[0]} is there under its present name, {told[twice[0]]}, too")
    found = {public: _without_ones(public, tensor.shape) for public, tensor in by_public.items()}
    unknown, missing, misshapen = compare(expected, found)
    if missing:
        raise UserError(f"vae={path}: {_several('missing', sorted(missing))}")
    if unknown:
        stored = sorted(name for name, public in told.items() if public in unknown)
        raise UserError(f"vae={path}: {_several('unknown', stored)}; config or file is of another network")
    if misshapen:
        raise UserError(f"vae={path}: {_several('misshapen', misshapen)}")
    for name, tensor in by_public.items():
        if tensor.dtype not in FLOATS:
            raise UserError(f"vae={path}: {name} has type {tensor.dtype}; expected one of {', '.join(FLOATS)}")
    return {name: np.asarray(by_public[name].read().reshape(shape), np.float32) for name, shape in expected.items()}


def _without_ones(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a projection that is stored as a 1×1 convolution, as that of a matrix; others as they are."""
    attention = ".attentions.0.to_" in name and name.endswith(".weight")
    return shape[:2] if attention and len(shape) in (3, 4) and set(shape[2:]) == {1} else shape


def _several(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{what} tensor{'s' if len(names) > 1 else ''} {', '.join(names[:_NAMED])}{more}"
