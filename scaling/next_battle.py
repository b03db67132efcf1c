"""Which battle to run next: the pair whose outcome is expected to narrow the ratings' differences most."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.battle_counts import encoded
from scaling.davidson import ELO, Design, chances, fit, hessian, information

NODES = np.linspace(-4, 4, 41)
"""Where a standard normal is averaged over: close enough for gaps that only the prior bounds (7 natural units)."""


def next_pairs(counts: np.ndarray, *, k: int = 1, in_flight: np.ndarray | None = None) -> list[tuple[int, int, float]]:
    """The ``k`` pairs whose next battle is expected to lower the ratings' uncertainty most, best first.

    Uncertainty is the root of the mean, over all pairs of players, of the variance of their rating difference
    (A-optimality of the differences; Elo points), by the inverse Fisher information of Davidson's model with its weak
    prior, which keeps it finite from no vote on and between players that never met. A battle's information depends
    on how even it is: it is averaged over the outcomes and over what is not yet known of the gap, so that a player
    with three lucky wins is still asked about. Each pair's drop is that of one more battle of it alone.

    Args:
        counts: float64 ``[players, players, 3]``; ``counts[i, j]`` = (i wins, j wins, ties) with i left and j right.
        k: how many; fewer where there are fewer pairs.
        in_flight: int ``[players, players]``, battles handed out (i left, j right) and not voted on yet: they count
            as information that is on its way.

    Returns (left, right, expected drop in Elo points). Left is whom the pair's battles showed left less often.
    Takes a few milliseconds for 50 players, however many votes there are.

    Raises ValueError for arrays of other shapes or fewer than two players.
    """
    counts = np.asarray(counts, dtype=np.float64)
    players = len(counts)
    if counts.shape != (players, players, 3) or players < 2:
        raise ValueError(f"counts of shape {counts.shape}: expected [players, players, 3] with two players or more")
    waiting = np.zeros((players, players)) if in_flight is None else np.asarray(in_flight, dtype=np.float64)
    if waiting.shape != (players, players):
        raise ValueError(f"in_flight of shape {waiting.shape}: expected {(players, players)}")
    i, j = np.triu_indices(players, 1)
    design = Design(i, j, np.zeros((len(i), 0)), players)
    seen = counts[i, j] + counts[j, i][:, [1, 0, 2]]
    theta = fit(design, seen[None])
    known = np.linalg.inv(hessian(design, theta, seen.sum(-1)[None])[0])
    battle = _expected_information(design, theta, known)
    ahead = waiting[i, j] + waiting[j, i]
    if ahead.any():
        coming = design.curvature(*(ahead[None] * part for part in battle))[0]
        known = np.linalg.inv(np.linalg.inv(known) + coming)
    drop = _variance_drop(known, battle, i, j, players)
    before = _mean_variance(known, players)
    lower = ELO * (np.sqrt(before) - np.sqrt(np.maximum(before - drop, 0.0)))
    shown = counts.sum(-1) + waiting
    flip = shown[i, j] > shown[j, i]
    order = np.lexsort((shown[i, j] + shown[j, i], -lower.round(12)))[:k]
    left, right = np.where(flip, j, i), np.where(flip, i, j)
    return [(int(left[place]), int(right[place]), float(lower[place])) for place in order]


def next_battles(battles: pd.DataFrame, k: int = 1) -> list[tuple[str, str, float]]:
    """``next_pairs`` of a battles table (columns prompt, left, right, outcome), by names.

    Raises TableError where that can't be rated.
    """
    names, left, right, outcome = encoded(battles)
    cell = (left * len(names) + right) * 3 + outcome
    counts = np.bincount(cell, minlength=3 * len(names) ** 2).reshape(len(names), len(names), 3)
    return [(str(names[i]), str(names[j]), drop) for i, j, drop in next_pairs(counts, k=k)]


def _expected_information(design: Design, theta: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, ...]:
    """Information of one battle of each pair (δδ, δ log ν, log ν log ν), ``[pairs]`` each, over what δ may be."""
    i, j = design.pairs.T
    spread = np.sqrt(known[i, i] + known[j, j] - 2 * known[i, j])
    gap = design.gap(theta)[0] + NODES[:, None] * spread
    weights = np.exp(-(NODES**2) / 2)
    weights /= weights.sum()
    return tuple(weights @ part for part in information(*chances(gap, theta[0, -1])))


def _mean_variance(known: np.ndarray, players: int) -> float:
    """Mean over pairs of the variance of θ_i − θ_j: 2 / (players − 1) times the trace of the centred covariance."""
    block = known[:players, :players]
    return float(2 / (players - 1) * (np.trace(block) - block.sum() / players))


def _variance_drop(
    known: np.ndarray, battle: tuple[np.ndarray, ...], i: np.ndarray, j: np.ndarray, players: int
) -> np.ndarray:
    """By how much one battle of each pair lowers ``_mean_variance``: ``[pairs]``, in closed form.

    With V the two directions (δ, log ν) that a battle G tells of, the covariance C becomes
    C − C V (1 + G V'C V)^(-1) G V'C (Woodbury).
    """

    def within(matrix: np.ndarray) -> np.ndarray:
        """V' M V, ``[pairs, 2, 2]``."""
        out = np.empty((len(i), 2, 2))
        out[:, 0, 0] = matrix[i, i] + matrix[j, j] - 2 * matrix[i, j]
        out[:, 0, 1] = out[:, 1, 0] = matrix[i, -1] - matrix[j, -1]
        out[:, 1, 1] = matrix[-1, -1]
        return out

    centred = known[:, :players] - known[:, :players].mean(1, keepdims=True)
    gain = np.stack([np.stack([battle[0], battle[1]], -1), np.stack([battle[1], battle[2]], -1)], -2)
    inner = np.linalg.solve(np.eye(2) + gain @ within(known), gain)
    return 2 / (players - 1) * np.einsum("pab,pba->p", inner, within(centred @ centred.T))
