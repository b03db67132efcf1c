"""What a finished run draws, and with what: held-out captions and, for a run on latents, the set's own models."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmdit_jax.config import Run
from mmdit_jax.evaluation.latent import NONE, Latent, encode_live, look_up, no_autoencoder, open_autoencoder
from mmdit_jax.training.data import LatentData, TrainingData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """Captions of held-out examples, and how a run on latents draws them."""

    captions: Sequence[str]
    latent: Latent | None


def check_drawing(run: Run, data: TrainingData, vae: str | None) -> bool:
    """Before training: refuse the wrong autoencoder, and say it in a line if nothing can be drawn afterwards.

    Returns whether there is one, or none is needed.

    Raises:
        UserError: what is given, or lies where the set was made, is not the set's autoencoder.
    """
    if isinstance(data, LatentData) and open_autoencoder(data.source, vae) is None:
        where = "left out" if vae == NONE else f"not at {data.source.latents.folder}"
        log.warning(
            "%s: the autoencoder of %s is %s: validation losses only, no images; --vae FOLDER gives one, now or to "
            "`mmdit evaluate`",
            run.name,
            run.data.name,
            where,
        )
        return False
    return True


def drawing(run: Run, data: TrainingData, vae: str | None) -> Drawing | None:
    """What ``run`` is evaluated with; none without the autoencoder of its set.

    Raises:
        UserError: as ``check_drawing``.
    """
    if not isinstance(data, LatentData):
        return Drawing(data.captions, None)
    autoencoder = open_autoencoder(data.source, vae)
    if autoencoder is None:
        return None
    evaluation = run.evaluation
    count = max(6 * evaluation.prompts_per_task, evaluation.settings_images if evaluation.settings else 0)
    captions, states = data.prompts(count)
    return Drawing(captions, Latent(data.train.squarest, look_up(captions, states), autoencoder))


def live(
    run: Run, data: LatentData, vae: str | None, folders: Mapping[str, Path | None], drop: Sequence[str]
) -> Latent:
    """How ``run`` draws any prompt: by the set's text encoders.

    Args:
        run: a run on latents.
        data: its data.
        vae: folder of the autoencoder; None: where the set knows it.
        folders: of text encoders, by name; None: likewise.
        drop: encoders that are left out.

    Raises:
        UserError: the autoencoder is not there, or is another one than the set's.
    """
    autoencoder = open_autoencoder(data.source, vae)
    if autoencoder is None:
        raise no_autoencoder(data.source)
    return Latent(data.train.squarest, encode_live(data.source, run.data.text_encoders, folders, drop), autoencoder)
