"""Table 3's columns for autoencoders: values, and intervals over images and trainings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from scaling import frechet

COLUMNS = ("frechet", "perceptual", "ssim", "psnr")
"""Fréchet distance of an embedding's features, mean squared distance of an image's features from its reconstruction's
(both 1000-fold, lower is better), SSIM, PSNR in dB."""
THOUSAND = 1000.0


@dataclass(frozen=True)
class Measured:
    """One training's reconstructions of N images: float64 [N] for each of COLUMNS but the first; features [N, F]."""

    images: Mapping[str, np.ndarray]
    features: np.ndarray


def reconstruction_rows(
    measured: Mapping[str, Sequence[Measured]], features: np.ndarray, resamples: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows (what, column, value, low, high): each label of ``measured``, then each less the one before.

    Args:
      measured: of each training, by label; labels in the order in which differences are taken, each with as many
        trainings in the same order of seeds, which are paired.
      features: [N, F], of the originals.
      resamples: of images, the same ones for all labels, so that differences compare the same images.
    """
    rng = np.random.default_rng(seed)
    count = len(features)
    chosen = np.concatenate([np.arange(count)[None], rng.integers(count, size=(resamples, count))])
    references = [frechet.fit_gaussian(features[rows]) for rows in chosen]
    found = {label: [_columns(one, chosen, references) for one in own] for label, own in measured.items()}
    by_label = {
        label: {column: np.stack([one[column] for one in own]) for column in COLUMNS} for label, own in found.items()
    }
    rows = [_row(label, column, own[column]) for label, own in by_label.items() for column in COLUMNS]
    for less, more in itertools.pairwise(by_label):
        rows += [
            _row(f"{more} - {less}", column, by_label[more][column] - by_label[less][column]) for column in COLUMNS
        ]
    return rows


def _columns(one: Measured, chosen: np.ndarray, references: Sequence[frechet.Gaussian]) -> dict[str, np.ndarray]:
    """Each column of one training: the value, then one a resample; float64 [1 + resamples]."""
    distances = [frechet.distance(one.features[rows], own) for rows, own in zip(chosen, references, strict=True)]
    means = {name: values[chosen].mean(axis=1) for name, values in one.images.items()}
    return {**means, "frechet": THOUSAND * np.array(distances)}


def _row(what: str, column: str, values: np.ndarray) -> dict[str, Any]:
    """``values`` [trainings, 1 + resamples]: of each training, or the differences of pairs of them.

    The squared reach is that of images (normal, by their resamples) and of trainings (Student's t, for how few there
    are) together: 95 % or more whichever is larger. With one training, of images alone.
    """
    together = values.mean(axis=0)
    squares = stats.norm.ppf(0.975) ** 2 * together[1:].var(ddof=1)
    if len(values) > 1:
        squares += stats.t.ppf(0.975, len(values) - 1) ** 2 * values[:, 0].var(ddof=1) / len(values)
    value, reach = float(together[0]), float(np.sqrt(squares))
    return {"what": what, "column": column, "value": value, "low": value - reach, "high": value + reach}
