"""Bradley–Terry ratings with ties from pairwise battles, on the Elo scale, with bootstrap intervals over prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.errors import TableError
from scaling.resample import group_counts, group_index
from scaling.tables import labels, require

ELO = 400 / np.log(10)
"""Elo points a natural unit of strength: 400 points are odds of ten to one."""
OUTCOMES = ("left", "right", "tie")
PRIOR_SD = 5.0
"""Standard deviation (natural units, 869 Elo) of the weak normal prior that keeps an all-winning run finite.

With 100 battles against one equal opponent it pulls the difference by under half a percent."""


@dataclass(frozen=True)
class Rating:
    """One player: ``elo`` (the players' mean is 1000), its interval (NaN without a bootstrap), battles fought."""

    name: str
    elo: float
    low: float
    high: float
    battles: int


@dataclass(frozen=True)
class EloTable:
    """Ratings, best first, with everything needed to say what is expected of a pair.

    ``tie_strength`` is Davidson's ν. ``samples [draws, players]`` are bootstrap Elo values in the order of ``ratings``.
    """

    ratings: tuple[Rating, ...]
    tie_strength: float
    prompts: int
    battles: int
    level: float
    samples: np.ndarray

    def win_rates(self) -> pd.DataFrame:
        """Expected score of row against column, ties as half: players × players, NaN on the diagonal."""
        names = [rating.name for rating in self.ratings]
        strength = np.array([rating.elo for rating in self.ratings]) / ELO
        win, _, tie = _probabilities(strength[:, None], strength[None, :], np.log(max(self.tie_strength, 1e-300)))
        score = win + tie / 2
        np.fill_diagonal(score, np.nan)
        return pd.DataFrame(score, index=names, columns=names)

    def to_json(self) -> dict[str, object]:
        """The object that ``elo --json`` prints."""
        finite = lambda value: float(value) if np.isfinite(value) else None  # noqa: E731
        return {
            "ratings": [
                {
                    "name": rating.name,
                    "elo": rating.elo,
                    "low": finite(rating.low),
                    "high": finite(rating.high),
                    "battles": rating.battles,
                }
                for rating in self.ratings
            ],
            "tie_strength": self.tie_strength,
            "prompts": self.prompts,
            "battles": self.battles,
            "level": self.level,
            "draws": len(self.samples),
        }


def rate(battles: pd.DataFrame, *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> EloTable:
    """Rate the players of a battles table (columns prompt, left, right, outcome) by penalised maximum likelihood.

    Model (Davidson 1970): win p_i/S, loss p_j/S, tie ν√(p_i p_j)/S with S their sum. The penalty is PRIOR_SD's.
    Battles of one prompt are resampled together, since one prompt's images are shared by all its battles.

    Raises TableError for a missing column, an outcome other than left, right, tie, a player that fights itself,
    or two sets of players that never met (their ratings would have no common zero).
    """
    require(battles, ["prompt", "left", "right", "outcome"])
    left, right, outcome = (labels(battles, column) for column in ("left", "right", "outcome"))
    wrong = ~np.isin(outcome, OUTCOMES)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise TableError(f"outcome={outcome[row]!r} (row {row + 1}): expected one of left, right, tie")
    itself = left == right
    if itself.any():
        row = int(np.argmax(itself))
        raise TableError(f"right={right[row]!r} (row {row + 1}): a run against itself; expected two different names")
    names, players = np.unique(np.concatenate([left, right]).astype(str), return_inverse=True)
    first, second = players[: len(left)], players[len(left) :]
    _check_connected(names, first, second)
    prompt, prompts = group_index(labels(battles, "prompt").astype(str))

    # Battles -> counts [prompt, pair, (first wins, second wins, tie)] with first < second in every pair.
    swap = first > second
    low, high = np.where(swap, second, first), np.where(swap, first, second)
    pair_id, pair = np.unique(low * len(names) + high, return_inverse=True)
    pairs = np.stack([pair_id // len(names), pair_id % len(names)], axis=1)
    kind = np.select([outcome == "tie", (outcome == "left") != swap], [2, 0], 1)
    cell = (prompt * len(pairs) + pair) * 3 + kind
    counts = np.bincount(cell, minlength=prompts * len(pairs) * 3).astype(np.float64).reshape(prompts, -1)

    strength, log_ties = fit_davidson(counts.sum(0).reshape(1, -1, 3), pairs, len(names))
    elo = _to_elo(strength)[0]
    samples = np.zeros((0, len(names)))
    if draws > 0:
        weights = group_counts(draws, prompts, np.random.default_rng(seed))
        resampled, _ = fit_davidson((weights @ counts).reshape(draws, -1, 3), pairs, len(names))
        samples = _to_elo(resampled)
    tail = (1 - level) / 2
    ends = np.quantile(samples, [tail, 1 - tail], axis=0) if draws > 0 else np.full((2, len(names)), np.nan)
    fought = np.bincount(np.concatenate([first, second]), minlength=len(names))
    order = np.lexsort((names, -elo))
    ratings = tuple(
        Rating(str(names[i]), float(elo[i]), float(ends[0, i]), float(ends[1, i]), int(fought[i])) for i in order
    )
    return EloTable(ratings, float(np.exp(log_ties[0])), prompts, len(left), level, samples[:, order])


def fit_davidson(
    counts: np.ndarray, pairs: np.ndarray, players: int, *, iterations: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method on a batch of Davidson likelihoods, concave in (θ, log ν) (it is a multinomial logit).

    Args: ``counts [B, pairs, 3]`` (first wins, second wins, ties), ``pairs [pairs, 2]`` player indices.
    Returns (θ ``[B, players]`` with mean zero, log ν ``[B]``).
    """
    batch, size = len(counts), players + 1
    # features[outcome, pair, parameter]: the log-odds numerator of each outcome is linear in (θ, log ν).
    features = np.zeros((3, len(pairs), size))
    rows = np.arange(len(pairs))
    features[0, rows, pairs[:, 0]] = 1.0
    features[1, rows, pairs[:, 1]] = 1.0
    features[2] = (features[0] + features[1]) / 2
    features[2, :, players] = 1.0
    observed = np.einsum("bpo,opk->bk", counts, features, optimize=True)
    total = counts.sum(-1)
    theta = np.zeros((batch, size))
    ridge = np.full(size, PRIOR_SD**-2)

    def likelihood(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = np.einsum("opk,bk->bpo", features, at, optimize=True)
        peak = logits.max(-1, keepdims=True)
        raised = np.exp(logits - peak)
        norm = raised.sum(-1, keepdims=True)
        log_norm = peak[..., 0] + np.log(norm[..., 0])
        value = (observed * at).sum(-1) - (total * log_norm).sum(-1) - 0.5 * (ridge * at**2).sum(-1)
        return value, raised / norm

    value, chance = likelihood(theta)
    for _ in range(iterations):
        expected = np.einsum("bpo,opk->bk", chance * total[..., None], features, optimize=True)
        gradient = observed - expected - ridge * theta
        hessian = _curvature(chance, total, pairs, players) + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        # Newton overshoots only far from the optimum: halve where the likelihood would fall.
        scale = np.ones((batch, 1))
        for _ in range(20):
            trial, trial_chance = likelihood(theta + scale * step)
            worse = trial < value - 1e-9 * (1 + np.abs(value))
            if not worse.any():
                break
            scale[worse] /= 2
        theta, value, chance = theta + scale * step, trial, trial_chance
        if np.abs(scale * step).max() < 1e-9:
            break
    strength = theta[:, :players]
    return strength - strength.mean(1, keepdims=True), theta[:, players]


def _curvature(chance: np.ndarray, total: np.ndarray, pairs: np.ndarray, players: int) -> np.ndarray:
    """Minus the likelihood's Hessian, ``[B, players + 1, players + 1]``: Σ over pairs of n · Cov(features)."""
    first, second, tie = (chance[..., kind] for kind in range(3))
    mean_first, mean_second = first + tie / 2, second + tie / 2
    batch, size = len(chance), players + 1
    hessian = np.zeros((batch, size, size))
    i, j = pairs[:, 0], pairs[:, 1]
    cross = total * (tie / 4 - mean_first * mean_second)
    hessian[:, i, j] = cross
    hessian[:, j, i] = cross
    sums = np.zeros((len(pairs), players, 2))
    sums[np.arange(len(pairs)), i, 0] = 1.0
    sums[np.arange(len(pairs)), j, 1] = 1.0
    diagonal = total * (first + tie / 4 - mean_first**2) @ sums[..., 0]
    diagonal += total * (second + tie / 4 - mean_second**2) @ sums[..., 1]
    hessian[:, np.arange(players), np.arange(players)] = diagonal
    with_ties = total * (tie / 2 - mean_first * tie) @ sums[..., 0]
    with_ties += total * (tie / 2 - mean_second * tie) @ sums[..., 1]
    hessian[:, :players, players] = with_ties
    hessian[:, players, :players] = with_ties
    hessian[:, players, players] = (total * tie * (1 - tie)).sum(-1)
    return hessian


def _probabilities(first: np.ndarray, second: np.ndarray, log_ties: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first wins, second wins, tie) at broadcast natural strengths."""
    first, second = np.broadcast_arrays(first, second)
    logits = np.stack([first, second, (first + second) / 2 + log_ties])
    raised = np.exp(logits - logits.max(0))
    win, loss, tie = raised / raised.sum(0)
    return win, loss, tie


def _to_elo(strength: np.ndarray) -> np.ndarray:
    return 1000 + ELO * strength


def _check_connected(names: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    root = np.arange(len(names))
    for _ in range(len(names)):
        lowest = root.copy()
        np.minimum.at(lowest, first, root[second])
        np.minimum.at(lowest, second, root[first])
        if (lowest == root).all():
            break
        root = lowest
    apart = np.flatnonzero(root != root[0])
    if len(apart):
        raise TableError(
            f"left/right={names[apart[0]]!r}: never met {names[0]!r}, not even through others; "
            "expected battles that connect all runs"
        )
