"""The autoencoder and the text encoders that a set is encoded with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdit_jax.data.encode.settings import EncoderSpec, Settings, scan_identity
from mmdit_jax.data.encode.shard import Models
from mmdit_jax.data.sources import Source
from mmdit_jax.errors import UserError
from mmdit_jax.models.text import ENCODERS, TextEncoder, text_encoder


def load_models(settings: Settings) -> Models:
    """Read every model.

    Raises:
        UserError: a folder isn't there or isn't what it should be, or sizes don't divide.
    """
    from mmdit_jax.models.autoencoder import load_autoencoder

    vae = load_autoencoder(settings.vae, dtype=settings.dtype)
    if settings.scan.multiple % vae.factor:
        raise UserError(
            f"multiple={settings.scan.multiple}: expected a multiple of the autoencoder's factor {vae.factor}"
        )
    return Models(
        vae, {spec.name: _load(spec, settings.dtype) for spec in sorted(settings.encoders, key=lambda spec: spec.name)}
    )


def _load(spec: EncoderSpec, dtype: str) -> TextEncoder:
    if spec.folder is None:
        if spec.name not in ENCODERS:
            raise UserError(
                f"encoders={spec.name!r}: expected some of {', '.join(sorted(ENCODERS))}, which are embedded"
            )
        return text_encoder(spec.name)
    from mmdit_jax.models.text import load_text_encoder

    return load_text_encoder(spec.name, spec.folder, length=spec.length, dtype=dtype, tokenizer=spec.tokenizer)


def identity(settings: Settings, source: Source, models: Models) -> dict[str, Any]:
    """What decides the bytes of a set; equal identities may share a folder."""
    return {
        **scan_identity(settings.scan, source),
        "batch": settings.batch,
        "dtype": settings.dtype,
        "vae": models.vae.fingerprint,
        **{f"text {name}": [encoder.fingerprint, encoder.length] for name, encoder in models.text.items()},
        "encoders": list(models.text),
    }


def _absolute(folder: str | None) -> str | None:
    return folder and str(Path(folder).expanduser().absolute())


def describe(settings: Settings, models: Models) -> dict[str, Any]:
    """The manifest's account of the models."""
    vae = models.vae
    specs = {spec.name: spec for spec in settings.encoders}
    latents = {
        "channels": vae.channels,
        "factor": vae.factor,
        "shift": vae.shift,
        "scale": vae.scale,
        "fingerprint": vae.fingerprint,
        "folder": _absolute(vae.folder),
    }
    text = {
        name: {
            "length": encoder.length,
            "width": encoder.width,
            "pooled_width": encoder.pooled_width,
            "fingerprint": encoder.fingerprint,
            "folder": _absolute(specs[name].folder),
            "tokenizer": _absolute(specs[name].tokenizer),
        }
        for name, encoder in models.text.items()
    }
    return {"latents": latents, "text": text}
