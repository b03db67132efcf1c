"""How a budget is best divided, N_opt = k_n·C^a and D_opt = k_d·C^b, in whatever way the optima were found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scaling.plain import plain
from scaling.resample import interval


@dataclass(frozen=True)
class Allocation:
    """Compute-optimal parameters N and data D as power laws of compute C; units are those of the table.

    ``params`` are a, k_n and, where D is known, b, k_d; NaN where the optima do not give a law, and ``doubts`` say why.
    ``intervals`` hold (low, high) of each at ``level``. ``doubts`` are what a reader should know of them.
    """

    method: str
    params: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    compute_range: tuple[float, float]
    points: int
    """Optima (or rows of a frontier) that the laws go through."""
    sizes: int
    """Different values of N among them."""
    draws: int
    level: float
    doubts: tuple[str, ...]
    _centre: float = field(repr=False)
    _lines: np.ndarray = field(repr=False)
    _samples: np.ndarray = field(repr=False)
    _widen: float = field(repr=False)

    def sizes_at(self, compute: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N_opt, low, high) at each of ``compute``; the ends are NaN without resamples."""
        return self._at(0, compute)

    def data_at(self, compute: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(D_opt, low, high) likewise. Raises ValueError where the table had no D."""
        if len(self._lines) < 2:
            raise ValueError("no D: the allocation was found without a column of data")
        return self._at(1, compute)

    def _at(self, quantity: int, compute: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        u = np.log(np.asarray(compute, dtype=np.float64)) - self._centre
        level, slope = self._lines[quantity]
        centre = level + slope * u
        low = high = np.full(u.shape, np.nan)
        if len(self._samples):
            drawn = self._samples[:, quantity]
            spread = drawn[:, 0].reshape(-1, *[1] * u.ndim) + drawn[:, 1].reshape(-1, *[1] * u.ndim) * u
            low, high = interval(spread, self.level, centre=centre, widen=self._widen)
        return np.exp(centre), np.exp(low), np.exp(high)

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""
        return {
            "method": self.method,
            "equation": "N_opt = k_n·C^a" + (", D_opt = k_d·C^b" if "b" in self.params else ""),
            "params": plain(self.params),
            "intervals": plain(self.intervals),
            "compute_range": plain(self.compute_range),
            "points": self.points,
            "sizes": self.sizes,
            "draws": self.draws,
            "level": self.level,
            "doubts": list(self.doubts),
        }


def line(u: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(value at u = 0, slope) ``[..., 2]`` of weighted least-squares lines through ``y [..., n]`` over ``u [n]``.

    Points whose weight ``[..., n]`` is 0 take no part; NaN where fewer than two different u are left.
    """
    y, weight = np.broadcast_arrays(y, weight)
    y = np.where(weight > 0, y, 0.0)
    total = weight.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = (weight * u).sum(axis=-1, keepdims=True) / total
        square = (weight * (u - middle) ** 2).sum(axis=-1)
        square = np.where(square > 1e-12 * total[..., 0], square, np.nan)
        slope = (weight * (u - middle) * y).sum(axis=-1) / square
        level = (weight * y).sum(axis=-1) / total[..., 0] - slope * middle[..., 0]
    return np.stack([level, slope], axis=-1)


def allocation(
    method: str,
    log_compute: np.ndarray,
    lines: np.ndarray,
    samples: np.ndarray,
    *,
    centre: float,
    sizes: int,
    level: float,
    widen: float,
    doubts: tuple[str, ...],
) -> Allocation:
    """An Allocation of ``lines [1 or 2, 2]``: of log N and log D, each (value at ``centre``, slope) over log compute.

    ``samples [draws, 1 or 2, 2]`` are resampled ones, of which those with a NaN are left out. ``widen`` stretches the
    arms of the intervals for the few optima. Coefficients' arms are stretched on the log scale.
    """
    samples = samples[np.isfinite(samples).all(axis=(1, 2))]
    params, intervals = {}, {}
    with np.errstate(over="ignore"):
        for number, (exponent, scale) in enumerate((("a", "k_n"), ("b", "k_d"))[: len(lines)]):
            value, slope = (float(entry) for entry in lines[number])
            drawn = samples[:, number]
            params[exponent], params[scale] = slope, float(np.exp(value - slope * centre))
            ends = np.full((2, 2), np.nan)
            if len(drawn):
                both = np.stack([drawn[:, 1], drawn[:, 0] - drawn[:, 1] * centre], axis=1)
                ends = interval(both, level, centre=np.array([slope, value - slope * centre]), widen=widen)
            intervals[exponent] = (float(ends[0, 0]), float(ends[1, 0]))
            intervals[scale] = (float(np.exp(ends[0, 1])), float(np.exp(ends[1, 1])))
    return Allocation(
        method=method,
        params=params,
        intervals=intervals,
        compute_range=(float(np.exp(log_compute.min())), float(np.exp(log_compute.max()))),
        points=len(log_compute),
        sizes=sizes,
        draws=len(samples),
        level=level,
        doubts=doubts,
        _centre=centre,
        _lines=lines,
        _samples=samples,
        _widen=widen,
    )
