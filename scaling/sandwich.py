"""Covariance of the fitted parameters that trusts clusters, not the model: a jackknife over clusters, in one step each.

The estimate without cluster c is, to first order, θ − (H − H_c)^(-1) U_c with H minus the likelihood's second
derivatives, H_c the cluster's part of it and U_c its score. The spread of these is the sandwich H^(-1) (Σ U_c U_c')
H^(-1) with each cluster's leverage taken out (CR3 of MacKinnon and White 1985; for clusters Bell and McCaffrey 2002),
which for few or uneven clusters covers where the plain sandwich is too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from scaling.battle_counts import Clusters
from scaling.davidson import CHUNK, PRIOR_SD, Design, chances, hessian, information


def jackknife(design: Design, theta: np.ndarray, clusters: Clusters) -> np.ndarray:
    """Covariance of the parameters ``theta [size]``: ``[size, size]``, zero for what is pinned; NaN for one cluster."""
    size, free = design.size, design.free
    out = np.zeros((size, size))
    if clusters.count < 2:
        return np.full_like(out, np.nan)
    whole = hessian(design, theta[None], clusters.total().sum(-1)[None])[0][np.ix_(free, free)]
    sums = np.zeros((len(free), len(free)))
    for times, score, curvature in _of_clusters(design, theta, clusters):
        moved = np.linalg.solve(whole - curvature, score[..., None])[..., 0]
        sums += (times[:, None] * moved).T @ moved
    out[np.ix_(free, free)] = sums * (clusters.count - 1) / clusters.count
    return out


def one_step_bootstrap(
    design: Design, theta: np.ndarray, clusters: Clusters, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Bootstrap of clusters by one Newton step from ``theta [size]``, its optimum, each: ``[draws, size]``.

    Off the resampled optimum by the square of the distance to it, and fast however many rows the design has.
    """
    size, free = design.size, design.free
    found = list(_of_clusters(design, theta, clusters))
    score = np.concatenate([part for _, part, _ in found])
    curvature = np.concatenate([part.reshape(len(part), -1) for *_, part in found])
    # The penalty's own gradient at the optimum is what the clusters' scores sum to.
    pull = clusters.times @ score
    out = []
    for weights in clusters.weights(draws, rng):
        whole = (weights @ curvature).reshape(-1, len(free), len(free)) + np.eye(len(free)) * PRIOR_SD**-2
        moved = np.tile(theta, (len(weights), 1))
        moved[:, free] += np.linalg.solve(whole, (weights @ score - pull)[..., None])[..., 0]
        if design.pinned is None:
            moved[:, : design.players] -= moved[:, : design.players].mean(1, keepdims=True)
        out.append(moved)
    return np.concatenate(out).reshape(-1, size)


def over_both(first: np.ndarray, second: np.ndarray, crossed: np.ndarray) -> np.ndarray:
    """Covariance where battles of one value of either of two columns move together (Cameron, Gelbach, Miller 2011).

    Of covariances by the first column, by the second, and by both together. Directions in which the difference comes
    out negative count as the crossed covariance says.
    """
    values, vectors = np.linalg.eigh(first + second - crossed)
    floor = np.einsum("ik,ij,jk->k", vectors, crossed, vectors)
    return (vectors * np.where(values > 0, values, floor)) @ vectors.T


def _of_clusters(
    design: Design, theta: np.ndarray, clusters: Clusters
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of some kinds of clusters at a time: their number, score ``[some, free]``, curvature ``[some, free, free]``."""
    size, free = design.size, design.free
    by_outcome, by_row = _of_rows(design, theta)
    scores = clusters.patterns @ by_outcome
    fought = clusters.patterns @ sparse.kron(sparse.eye_array(len(design.left)), np.ones((3, 1)), format="csr")
    some = max(1, CHUNK // size**2)
    for start in range(0, len(scores), some):
        here = slice(start, start + some)
        curvature = (fought[here] @ by_row).toarray().reshape(-1, size, size)
        yield clusters.times[here], scores[here][:, free], curvature[:, free[:, None], free]


def _of_rows(design: Design, theta: np.ndarray) -> tuple[np.ndarray, sparse.csr_array]:
    """Score of each outcome of each row ``[rows · 3, size]``; curvature of one battle of each, ``[rows, size²]``."""
    rows, size = len(design.left), design.size
    win, loss, tie = (part[0] for part in chances(design.gap(theta[None]), theta[-1]))
    place = np.arange(rows)
    by_gap = np.zeros((rows, size))
    by_gap[place, design.left] = 1.0
    by_gap[place, design.right] -= 1.0
    by_gap[:, design.players : -1] = design.covariates
    lean = np.array([0.5, -0.5, 0.0]) - (win - loss)[:, None] / 2
    score = lean[..., None] * by_gap[:, None]
    score[..., -1] = np.array([0.0, 0.0, 1.0]) - tie[:, None]
    # Only who stood left and right, the covariates and log ν have a part in a row's curvature.
    fixed = np.broadcast_to(np.arange(design.players, size), (rows, size - design.players))
    index = np.concatenate([design.left[:, None], design.right[:, None], fixed], axis=1)
    value = np.take_along_axis(by_gap, index, axis=1)
    last = np.zeros(index.shape[1])
    last[-1] = 1.0
    gap, mixed, ties = (part[:, None, None] for part in information(win, loss, tie))
    block = gap * value[:, :, None] * value[:, None]
    block += mixed * (value[:, :, None] * last + last[:, None] * value[:, None]) + ties * last[:, None] * last
    column = index[:, :, None] * size + index[:, None]
    row = np.broadcast_to(place[:, None, None], column.shape)
    curvature = sparse.csr_array((block.ravel(), (row.ravel(), column.ravel())), shape=(rows, size**2))
    curvature.eliminate_zeros()
    return score.reshape(-1, size), curvature
