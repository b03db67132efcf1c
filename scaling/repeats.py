"""What other measurements of the same size would have given: resampled prompts, and other trainings' luck."""

from __future__ import annotations

import numpy as np

from scaling.cells import Cells


def repeats(
    cells: Cells, count: int, rng: np.random.Generator, strata: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Draw ``count`` repetitions of the measurement: each score column as float64 ``[count, rows, columns]``.

    ``strata [columns]`` (an index from 0) says which columns share prompts and trainings: those of one data set.

    Prompts: one of the table's own resamples at random, the same for every row, independently in each stratum, shifted
    so that the resamples' mean is the score over all prompts: they say how far a score spreads, while their level can
    be off (a Fréchet distance grows as resampling leaves fewer different images, more for some rows than for others).

    Seeds: every row's k trainings in a stratum are its own, so that their luck is drawn anew for each, in all columns
    and scores of the stratum together. Two or three trainings say little about a spread; as in an analysis of variance
    it is therefore pooled over the rows, and what is left unknown of it makes the luck Student's t with
    rows × (k − 1) degrees of freedom instead of normal. Rows far luckier than others get intervals that are too short.

    A training's luck as measured holds the noise of its images too, which resampled prompts bring once more: repeats
    spread a little too far rather than too little.
    """
    strata = np.zeros(len(cells.columns), dtype=np.int64) if strata is None else strata
    kinds, names = int(strata.max()) + 1, list(cells.values)
    draws = np.zeros((count, kinds), dtype=np.int64)
    if cells.draws:
        draws = rng.integers(1, cells.draws + 1, size=(count, kinds))
    out = {name: np.empty((count, len(cells.rows), len(cells.columns))) for name in names}
    for stratum in range(kinds):
        places = np.flatnonzero(strata == stratum)
        luck = _luck(cells, places, count, rng)
        for name in names:
            score = _centred(cells.values[name][:, places].mean(axis=2))
            out[name][:, :, places] = score[:, :, draws[:, stratum]].transpose(2, 0, 1) + luck[name]
    return out


def mean_of_draws(
    deviations: np.ndarray, freedom: int, repeated: int, shape: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """How far means of ``repeated`` draws lie from the truth: float64 ``[*shape, values]``, Student's t about 0.

    ``deviations [pool, values]`` lie about estimated means, ``freedom`` of them freely. Values keep the correlation
    that they have there; the second axis of ``shape`` holds independent draws that share one estimate of the spread.
    """
    # Deviations have few directions: normal weights of these are as good as one for every deviation.
    _, sizes, directions = np.linalg.svd(deviations, full_matrices=False)
    factor = sizes[:, None] * directions / np.sqrt(freedom * repeated)
    scale = np.sqrt(freedom / rng.chisquare(freedom, size=(shape[0], 1, 1)))
    return scale * (rng.normal(size=(*shape, len(factor))) @ factor)


def _luck(cells: Cells, places: np.ndarray, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Deviations of the mean over trainings: each score column as ``[count, rows, places]``; 0 with one seed."""
    seeds, rows, names = len(cells.seeds), len(cells.rows), list(cells.values)
    if seeds < 2:
        return {name: np.zeros((count, rows, len(places))) for name in names}
    scores = np.concatenate([cells.values[name][:, places][..., 0] for name in names], axis=1)
    around = (scores - scores.mean(axis=2, keepdims=True)).transpose(0, 2, 1).reshape(rows * seeds, -1)
    # A column of distances outweighs one of CLIP scores by orders of magnitude, which would cost the latter digits.
    size = np.abs(around).max(axis=0)
    size[size == 0] = 1.0
    drawn = mean_of_draws(around / size, rows * (seeds - 1), seeds, (count, rows), rng) * size
    return dict(zip(names, np.split(drawn, len(names), axis=2), strict=True))


def _centred(scores: np.ndarray) -> np.ndarray:
    """Scores ``[..., 1 + draws]`` with the draws about the first, spread as draws about their true mean would be."""
    draws = scores.shape[-1] - 1
    if draws == 0:
        return scores
    spread = scores[..., 1:] - scores[..., 1:].mean(axis=-1, keepdims=True)
    return np.concatenate([scores[..., :1], scores[..., :1] + spread * np.sqrt(draws / (draws - 1))], axis=-1)
