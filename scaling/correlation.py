"""Pearson and Spearman correlations that say how sure they are and from how many points."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from scaling.errors import TableError

EXACT_ROWS = 8
"""Up to this many rows all permutations are counted (8! = 40,320); above, as many random ones as asked for."""
BOOTSTRAP_ROWS = 20
"""From this many rows on, intervals are BCa bootstrap; below, Fisher's z, since few rows repeat too often."""


@dataclass(frozen=True)
class Coefficient:
    """One coefficient: ``r``, its interval at ``level`` and how it was made, the two-sided permutation p-value."""

    r: float
    low: float
    high: float
    p: float
    interval: str
    p_method: str


@dataclass(frozen=True)
class Correlation:
    """Pearson's and Spearman's coefficients of the same ``rows`` points."""

    rows: int
    level: float
    pearson: Coefficient
    spearman: Coefficient

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""

        def clean(coefficient: Coefficient) -> dict[str, object]:
            return {
                key: (None if isinstance(value, float) and math.isnan(value) else value)
                for key, value in asdict(coefficient).items()
            }

        return {
            "rows": self.rows,
            "level": self.level,
            "pearson": clean(self.pearson),
            "spearman": clean(self.spearman),
        }


def correlate(
    x: np.ndarray,
    y: np.ndarray,
    *,
    level: float = 0.95,
    draws: int = 2000,
    permutations: int = 20_000,
    seed: int = 0,
) -> Correlation:
    """Correlate two columns ``[rows]`` of finite numbers.

    Intervals: BCa bootstrap over rows (Efron 1987) from BOOTSTRAP_ROWS on; below, Fisher's z with standard error
    1/√(n−3), for Spearman √((1 + r²/2)/(n−3)) (Bonett and Wright 2000). With fewer than 4 rows there is none: (−1, 1).
    p-values count permutations, all of them up to EXACT_ROWS rows.

    Raises TableError for fewer than 3 rows, different lengths, or a column that never changes.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise TableError(f"rows={len(x)} and {len(y)}: expected two columns of one length")
    if len(x) < 3:
        raise TableError(f"rows={len(x)}: too few to correlate; expected 3 or more")
    for name, values in (("x", x), ("y", y)):
        if np.ptp(values) == 0:
            raise TableError(f"{name}={values[0]:g} in every row: expected a column that changes")
    rng = np.random.default_rng(seed)
    return Correlation(
        rows=len(x),
        level=level,
        pearson=_coefficient(x, y, False, level, draws, permutations, rng),
        spearman=_coefficient(x, y, True, level, draws, permutations, rng),
    )


def _coefficient(
    x: np.ndarray,
    y: np.ndarray,
    ranked: bool,
    level: float,
    draws: int,
    permutations: int,
    rng: np.random.Generator,
) -> Coefficient:
    rows = len(x)
    r = float(_pearson(*_maybe_rank(x[None], y[None], ranked))[0])
    if rows >= BOOTSTRAP_ROWS and draws > 0:
        low, high, method = *_bca(x, y, ranked, r, level, draws, rng), "BCa bootstrap over rows"
    elif rows >= 4:
        error = math.sqrt((1 + r * r / 2 if ranked else 1.0) / (rows - 3))
        reach = float(stats.norm.ppf((1 + level) / 2)) * error
        # Ranks that agree in full would give an interval of no width: half a swap of neighbours is taken off.
        most = 1 - 6 / (rows * (rows**2 - 1)) if ranked else 1 - 1e-12
        z = math.atanh(min(max(r, -most), most))
        low, high, method = min(math.tanh(z - reach), r), max(math.tanh(z + reach), r), "Fisher z"
    else:
        low, high, method = -1.0, 1.0, "none: fewer than 4 rows"
    p, p_method = _permutation_p(x, y, ranked, r, permutations, rng)
    return Coefficient(r, low, high, p, method, p_method)


def _maybe_rank(x: np.ndarray, y: np.ndarray, ranked: bool) -> tuple[np.ndarray, np.ndarray]:
    return (stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1)) if ranked else (x, y)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Row-wise coefficient of ``[B, rows]``; NaN where a row never changes."""
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    norm = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(np.where(norm > 0, (x * y).sum(-1) / norm, np.nan), -1, 1)


def _bca(
    x: np.ndarray, y: np.ndarray, ranked: bool, r: float, level: float, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    rows = len(x)
    pick = rng.integers(rows, size=(draws, rows))
    samples = _pearson(*_maybe_rank(x[pick], y[pick], ranked))
    samples = samples[np.isfinite(samples)]
    leave = np.array([np.delete(np.arange(rows), i) for i in range(rows)])
    jackknife = _pearson(*_maybe_rank(x[leave], y[leave], ranked))
    spread = jackknife.mean() - jackknife
    scale = (spread**2).sum() ** 1.5
    acceleration = (spread**3).sum() / (6 * scale) if scale > 0 else 0.0
    below = np.clip(((samples < r).mean() + (samples <= r).mean()) / 2, 1 / (draws + 1), draws / (draws + 1))
    bias = stats.norm.ppf(below)
    shifted = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(samples, stats.norm.cdf(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)


def _permutation_p(
    x: np.ndarray, y: np.ndarray, ranked: bool, r: float, permutations: int, rng: np.random.Generator
) -> tuple[float, str]:
    rows = len(x)
    if rows <= EXACT_ROWS:
        order, method = np.array(list(itertools.permutations(range(rows)))), "exact permutation"
    else:
        order, method = np.argsort(rng.random((permutations, rows)), axis=1), "random permutation"
    x, y = _maybe_rank(x, y, ranked)
    others = np.abs(_pearson(np.broadcast_to(x, order.shape), y[order]))
    extreme = int((others >= abs(r) - 1e-12).sum())
    if rows <= EXACT_ROWS:
        return extreme / len(order), method
    return (extreme + 1) / (len(order) + 1), method
