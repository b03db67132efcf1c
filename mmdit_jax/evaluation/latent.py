"""What drawing needs for a run on latents: states of captions, the latents' sides, and the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from mmdit_jax.data.encoded import EncodedSet
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.contrastive import RESOLUTION
from mmdit_jax.models.autoencoder import Autoencoder, load_autoencoder
from mmdit_jax.models.text import TextEncoder, TextStates, encode_all, load_text_encoder, text_encoder
from mmdit_jax.models.text.tokenizer import SD3_FOLDERS
from mmdit_jax.pauses import pause

NONE = "none"
"""In place of an autoencoder's folder: train without drawing."""
_DECODE = 8


@dataclass(frozen=True)
class Latent:
    """How a run on an encoded set draws."""

    sides: tuple[int, int]
    """Height and width of the latents that are drawn: those of the squarest bucket."""
    states: Callable[[Sequence[str]], Mapping[str, TextStates]]
    """Of captions, by encoder."""
    autoencoder: Autoencoder

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Images of latents; see ``decode``."""
        return decode(self.autoencoder, latents)


def decode(autoencoder: Autoencoder, latents: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, 3] of latents float32 [N, h, w, C] in the model's space, a few at a time."""
    parts = []
    for start in range(0, len(latents), _DECODE):
        pause()
        part = latents[start : start + _DECODE]
        padded = np.concatenate([part, np.repeat(part[-1:], _DECODE - len(part), axis=0)])  # one compilation
        parts.append(autoencoder.decode(padded)[: len(part)])
    return np.concatenate(parts)


States = Callable[[Sequence[str]], Mapping[str, TextStates]]


def look_up(captions: Sequence[str], states: Mapping[str, TextStates]) -> States:
    """``Latent.states`` of captions whose states an encoded set brings; of no others."""
    row = {caption: i for i, caption in enumerate(captions)}

    def find(wanted: Sequence[str]) -> dict[str, TextStates]:
        rows = np.array([row[caption] for caption in wanted], np.int64)
        return {name: TextStates(found.tokens[rows], found.pooled[rows]) for name, found in states.items()}

    return find


def open_autoencoder(source: EncodedSet, given: str | None) -> Autoencoder | None:
    """The autoencoder that a set was encoded by, or none where drawing is done without.

    Args:
        source: the set.
        given: its folder or file; ``NONE``; None: where it lay when the set was made, if it still lies there.

    Raises:
        UserError: nothing is at the place given, it is damaged, or another one than the set's.
    """
    folder = source.latents.folder if given is None else given
    if given == NONE or (given is None and not Path(folder).expanduser().exists()):
        return None
    found = load_autoencoder(folder)
    if found.fingerprint != source.latents.fingerprint:
        raise UserError(
            f"vae={folder}: fingerprint {found.fingerprint}; {source.folder} was encoded by "
            f"{source.latents.fingerprint}: give that one by --vae, or --vae {NONE} to train and draw nothing"
        )
    return found


def no_autoencoder(source: EncodedSet) -> UserError:
    """The error where images are wanted and ``open_autoencoder`` has found none."""
    return UserError(f"vae={source.latents.folder}: not there; give the autoencoder of {source.folder} by --vae FOLDER")


def open_text_encoder(source: EncodedSet, name: str, given: Path | None) -> TextEncoder:
    """The text encoder that a set was encoded by.

    Args:
        source: the set.
        name: of the encoder.
        given: its folder or file; None: where it lay when the set was made.

    Raises:
        UserError: it is not there, is damaged, or is another one than the set's.
    """
    told = source.text[name]
    option = f"--{name.replace('_', '-')}"
    if name in SD3_FOLDERS:
        folder = Path(told.folder if given is None else given).expanduser()
        if not folder.exists():
            raise UserError(f"{name}={folder}: not there; give the encoder of {source.folder} by {option} FOLDER")
        length = told.shape.length if name == "t5" else None
        apart = told.tokenizer if told.tokenizer and Path(told.tokenizer).exists() else None
        found: TextEncoder = load_text_encoder(name, folder, length=length, dtype=source.dtype, tokenizer=apart)
    else:
        folder, found = Path("the package"), text_encoder(name)
    if found.fingerprint != told.fingerprint:
        raise UserError(
            f"{name}={folder}: fingerprint {found.fingerprint}; {source.folder} was encoded by {told.fingerprint}: "
            f"give that one by {option} FOLDER"
        )
    return found


def encode_live(
    source: EncodedSet, encoders: Sequence[str], folders: Mapping[str, Path | None], drop: Sequence[str] = ()
) -> States:
    """``Latent.states`` of any captions, by the set's own encoders, each loaded, used and let go before the next.

    Args:
        source: the set.
        encoders: names.
        folders: where some of them lie, by name; the set knows of the others.
        drop: encoders that are not loaded; their states are zeros.
    """

    def encode(captions: Sequence[str]) -> dict[str, TextStates]:
        def states(name: str) -> TextStates:
            if name in drop:
                length, width, pooled = source.text[name].shape
                return TextStates(
                    np.zeros((len(captions), length, width), np.float32), np.zeros((len(captions), pooled), np.float32)
                )
            # As training saw them.
            found = encode_all(open_text_encoder(source, name, folders.get(name)), captions)
            return TextStates(*(np.asarray(jax.numpy.asarray(array, "bfloat16")) for array in found))

        return {name: states(name) for name in encoders}

    return encode


def for_judge(images: np.ndarray) -> np.ndarray:
    """Images as the judge takes them: uint8 [N, R, R, 3], those of other sides averaged down to 32 by 32 px."""
    height, width = images.shape[1:3]
    if height == width and height % RESOLUTION == 0:
        return images
    size = (RESOLUTION, RESOLUTION)
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images])
