"""Which of two images is the better made, whatever they show: SD3's question of aesthetics, answered by statistics.

Not beauty: how near an image comes to the real ones in how sharp, smooth and coloured it is, and in what the judge sees
in it. A set's own real images say what is good, so scores are compared within one set only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.judge import Judge
from mmdit_jax.evaluation.latent import for_judge
from mmdit_jax.evaluation.realism import Realism

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.97)
SCALES = 2
"""Octaves at which edges and grain are measured."""
VISIBLE = 0.02
"""A difference between neighbouring pixels (of 1, black to white) that is just seen: smaller ones hardly count."""


def texture(images: np.ndarray) -> np.ndarray:
    """Edges and grain of images, float64 [N, 2 · SCALES · quantiles]: log of ``VISIBLE`` plus quantiles over pixels.

    Of the gradient's length, which blur lowers at edges, and of the diagonal second difference, which is nothing on
    flat areas and along straight edges, so that it shows noise (Immerkær 1996).

    Args:
        images: uint8 [N, H, W, 3], of 8 pixels or more a side.
    """
    pixels = images.astype(np.float32) / 255
    out = []
    for _ in range(SCALES):
        across, down = np.diff(pixels, axis=2)[:, :-1], np.diff(pixels, axis=1)[:, :, :-1]
        second = np.diff(np.diff(pixels, axis=2), axis=1)
        for lengths in (np.sqrt((across**2 + down**2).mean(-1)), np.abs(second).mean(-1)):
            out.append(np.log(VISIBLE + np.quantile(lengths.reshape(len(pixels), -1), QUANTILES, axis=1).T))
        count, height, width = pixels.shape[:3]
        even = pixels[:, : height // 2 * 2, : width // 2 * 2]
        pixels = even.reshape(count, height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4))
    return np.concatenate(out, axis=1).astype(np.float64)


@dataclass(frozen=True)
class Aesthetics:
    """A normal distribution of real images' texture and features, and how far a tie reaches."""

    judge: Judge
    mean: np.ndarray
    """Of texture and judge's features, float64 [F]."""
    spread: np.ndarray
    """Their standard deviations, float64 [F]."""
    real: Realism
    """Of the standardised features."""
    tie: float
    """The median difference in score of two real images: a smaller one says nothing."""

    @classmethod
    def fit(cls, images: np.ndarray, judge: Judge) -> Aesthetics:
        """From real images, uint8 [N, H, W, 3].

        Raises:
            UserError: fewer of them than three times the features.
        """
        features = _features(images, judge)
        count, width = features.shape
        if count < 3 * width:
            raise UserError(f"images={count}: expected {3 * width} real ones or more to know what they look like")
        mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
        real = Realism.fit((features - mean) / spread)
        fitted = cls(judge, mean, spread, real, 0.0)
        scores = fitted._score(features)
        half = count // 2
        return cls(judge, mean, spread, real, float(np.median(np.abs(scores[:half] - scores[half : 2 * half]))))

    def score(self, images: np.ndarray) -> np.ndarray:
        """Minus the log of the squared Mahalanobis distance to the real images, float64 [N]; higher is better.

        A log, so that the tie is a ratio: what tells two good images apart says nothing of two bad ones.
        """
        return self._score(_features(images, self.judge))

    def _score(self, features: np.ndarray) -> np.ndarray:
        return -np.log(-self.real.score((features - self.mean) / self.spread))


def _features(images: np.ndarray, judge: Judge) -> np.ndarray:
    return np.concatenate([texture(images), judge.embed_images(for_judge(images))], axis=1)
