"""Davidson's model of battles with ties: its likelihood, and the optimum for many resampled tables at once.

Of a battle between l (left) and r (right) with covariates z, the log-odds of left against right are
δ = θ_l − θ_r + z·β, and left wins, right wins, tie are as e^(δ/2) : e^(−δ/2) : ν (Davidson 1970). A constant z = 1
is the left side's advantage (Davidson and Beaver 1977, whose ν is ours times e^(β/2)). In (θ, β, log ν) this is a
multinomial logit, so that the likelihood is concave.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

ELO = 400 / np.log(10)
"""Elo points a natural unit of strength: 400 points are odds of ten to one."""
PRIOR_SD = 5.0
"""Standard deviation (natural units, 869 Elo) of the weak normal prior that keeps an all-winning run finite.

With 100 battles against one equal opponent it pulls the difference by under half a percent."""
CHUNK = 1 << 21
"""So many numbers at most in one array over draws and rows."""


@dataclass(frozen=True)
class Design:
    """Rows of battles whose chances are equal, in order of the unordered pair that they are of.

    Parameters are in the order θ ``[players]``, β ``[covariates]``, log ν.

    Args:
        left, right: int64 ``[rows]``, players from 0.
        covariates: float64 ``[rows, q]``, what favours the left; q may be 0.
        pinned: float64 ``[players]``, strengths that are given; NaN where they are fitted. None: all are fitted.
    """

    left: np.ndarray
    right: np.ndarray
    covariates: np.ndarray
    players: int
    pinned: np.ndarray | None = None
    sign: np.ndarray = field(init=False)
    starts: np.ndarray = field(init=False)
    pairs: np.ndarray = field(init=False)
    incidence: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        low, high = np.minimum(self.left, self.right), np.maximum(self.left, self.right)
        key, starts = np.unique(low * self.players + high, return_index=True)
        pairs = np.stack([key // self.players, key % self.players], axis=1)
        incidence = np.zeros((len(pairs), self.players))
        incidence[np.arange(len(pairs)), pairs[:, 0]] = 1.0
        incidence[np.arange(len(pairs)), pairs[:, 1]] = -1.0
        derived = {"sign": np.where(self.left == low, 1.0, -1.0), "starts": starts, "pairs": pairs}
        for name, value in {**derived, "incidence": incidence}.items():
            object.__setattr__(self, name, value)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.players + self.covariates.shape[1] + 1

    @property
    def free(self) -> np.ndarray:
        """Indices of the parameters that are fitted."""
        if self.pinned is None:
            return np.arange(self.size)
        return np.concatenate([np.flatnonzero(np.isnan(self.pinned)), np.arange(self.players, self.size)])

    def by_pair(self, values: np.ndarray) -> np.ndarray:
        """Sums over the rows of each pair: ``[B, rows]`` -> ``[B, pairs]``."""
        if len(self.starts) == len(self.left):
            return values
        return np.add.reduceat(values, self.starts, axis=1)

    def gap(self, theta: np.ndarray) -> np.ndarray:
        """δ: parameters ``[B, size]`` -> ``[B, rows]``."""
        return theta[:, self.left] - theta[:, self.right] + theta[:, self.players : -1] @ self.covariates.T

    def gradient(self, by_gap: np.ndarray, by_ties: np.ndarray) -> np.ndarray:
        """Derivatives with respect to δ and to log ν, ``[B, rows]`` each -> with respect to parameters."""
        strength = self.by_pair(self.sign * by_gap) @ self.incidence
        return np.concatenate([strength, by_gap @ self.covariates, by_ties.sum(1, keepdims=True)], axis=1)

    def curvature(self, gap: np.ndarray, mixed: np.ndarray, ties: np.ndarray) -> np.ndarray:
        """Second derivatives (δδ, δ log ν, log ν log ν), ``[B, rows]`` each -> ``[B, size, size]``."""
        n, (i, j), z, q = self.players, self.pairs.T, self.covariates, self.covariates.shape[1]
        out = np.zeros((len(gap), self.size, self.size))
        pair = self.by_pair(gap)
        out[:, i, j] = -pair
        out[:, j, i] = -pair
        out[:, np.arange(n), np.arange(n)] = pair @ np.abs(self.incidence)
        for k in range(q):
            cross = self.by_pair(self.sign * gap * z[:, k]) @ self.incidence
            out[:, :n, n + k] = cross
            out[:, n + k, :n] = cross
        out[:, n:-1, n:-1] = (gap @ (z[:, :, None] * z[:, None]).reshape(len(z), q * q)).reshape(len(gap), q, q)
        last = self.gradient(mixed, ties)
        out[:, -1, :] = last
        out[:, :, -1] = last
        return out


def chances(gap: np.ndarray, log_ties: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(left wins, right wins, tie) at δ and log ν, which broadcast."""
    win, loss, tie, _ = _normalised(gap, log_ties)
    return win, loss, tie


def information(win: np.ndarray, loss: np.ndarray, tie: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fisher information of one battle about (δ, log ν): its elements δδ, δ log ν, log ν log ν."""
    lean = (win - loss) / 2
    return (win + loss) / 4 - lean**2, -lean * tie, tie * (1 - tie)


def fit(
    design: Design,
    counts: np.ndarray,
    *,
    start: np.ndarray | None = None,
    prior_sd: float = PRIOR_SD,
    iterations: int = 60,
) -> np.ndarray:
    """Newton's method on a batch of penalised likelihoods.

    Args: ``counts [B, rows, 3]`` (left wins, right wins, ties; any weights of 0 or more), ``start [size]``.
    Returns parameters float64 ``[B, size]``; strengths have mean zero unless some are pinned.
    """
    step = max(1, CHUNK // max(len(design.left), design.size**2))
    parts = [counts[at : at + step] for at in range(0, len(counts), step)]
    return np.concatenate([_fit(design, part, start, prior_sd, iterations) for part in parts])


def hessian(design: Design, theta: np.ndarray, total: np.ndarray, prior_sd: float = PRIOR_SD) -> np.ndarray:
    """Minus the penalised likelihood's second derivatives: ``theta [B, size]``, battles ``[B, rows]``."""
    parts = information(*chances(design.gap(theta), theta[:, -1:]))
    return design.curvature(*(total * part for part in parts)) + np.eye(design.size) * prior_sd**-2


def _fit(design: Design, counts: np.ndarray, start: np.ndarray | None, prior_sd: float, iterations: int) -> np.ndarray:
    win, loss, ties = counts[..., 0], counts[..., 1], counts[..., 2]
    total, ridge, free = counts.sum(-1), prior_sd**-2, design.free
    theta = np.zeros((len(counts), design.size)) if start is None else np.tile(start, (len(counts), 1))
    if design.pinned is not None:
        given = ~np.isnan(design.pinned)
        theta[:, : design.players][:, given] = design.pinned[given]
    value, *chance = _likelihood(design, theta, counts, total, ridge)
    for _ in range(iterations):
        left, right, tie = chance
        lean = ((win - loss) - total * (left - right)) / 2
        gradient = design.gradient(lean, ties - total * tie) - ridge * theta
        curvature = design.curvature(*(total * part for part in information(left, right, tie)))
        curvature += np.eye(design.size) * ridge
        step = np.zeros_like(theta)
        step[:, free] = np.linalg.solve(curvature[:, free[:, None], free], gradient[:, free, None])[..., 0]
        # Newton overshoots only far from the optimum: halve where the likelihood would fall.
        scale = np.ones((len(theta), 1))
        for _ in range(20):
            trial, *trial_chance = _likelihood(design, theta + scale * step, counts, total, ridge)
            worse = trial < value - 1e-9 * (1 + np.abs(value))
            if not worse.any():
                break
            scale[worse] /= 2
        theta, value, chance = theta + scale * step, trial, trial_chance
        if np.abs(scale * step).max() < 1e-8:
            break
    if design.pinned is None:
        theta[:, : design.players] -= theta[:, : design.players].mean(1, keepdims=True)
    return theta


def _likelihood(
    design: Design, theta: np.ndarray, counts: np.ndarray, total: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    gap, log_ties = design.gap(theta), theta[:, -1:]
    win, loss, tie, log_norm = _normalised(gap, log_ties)
    value = ((counts[..., 0] - counts[..., 1]) * gap / 2 + counts[..., 2] * log_ties - total * log_norm).sum(-1)
    return value - 0.5 * ridge * (theta**2).sum(-1), win, loss, tie


def _normalised(gap: np.ndarray, log_ties: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The three chances, and the logarithm of what they were divided by."""
    half = np.asarray(gap) / 2
    peak = np.maximum(np.abs(half), log_ties)
    win, loss, tie = np.exp(half - peak), np.exp(-half - peak), np.exp(log_ties - peak)
    norm = win + loss + tie
    return win / norm, loss / norm, tie / norm, peak + np.log(norm)
