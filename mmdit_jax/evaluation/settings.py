"""A run's weights under several samplers, against held-out images: what the SD3 ranking protocol compares runs by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdit_jax.config import Run
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.evaluation.evaluate import draw, states
from mmdit_jax.evaluation.judge import Judge
from mmdit_jax.evaluation.latent import Latent, for_judge


@dataclass(frozen=True)
class SettingScores:
    """One set of weights under one sampler, image by image."""

    weights: str
    """ "ema" or "raw"."""
    sampler: SamplerConfig
    clip: np.ndarray
    """CLIP score: cosine similarity of image and caption under the judge, float32 [N]."""
    path_length: np.ndarray
    """Σ‖Δy‖ of each image's path (Table 6), float32 [N]."""
    features: np.ndarray
    """The judge's image embeddings, float32 [N, 64], for a Fréchet distance."""


def score_settings(
    run: Run, weights: Mapping[str, Any], captions: Sequence[str], judge: Judge, latent: Latent | None = None
) -> Iterator[SettingScores]:
    """Scores of every set of weights under each of ``run.evaluation.settings``, one image a caption.

    Noise depends on the evaluation seed and the caption's position only, so that runs, weights and samplers are
    compared on the same draws.
    """
    text = states(run, captions, latent)
    asked = judge.embed_texts(captions)
    for name, params in weights.items():
        for sampler in run.evaluation.settings:
            images, lengths = draw(run, params, text, sampler, latent=latent)
            features = judge.embed_images(for_judge(images))
            yield SettingScores(name, sampler, np.sum(features * asked, axis=1), lengths, features)
