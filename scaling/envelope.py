"""The compute-optimal frontier of a set of training curves: what the best run achieves at each budget (approach 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.allocation import Allocation, allocation, line
from scaling.errors import TableError
from scaling.laws import Law, fit_power_law
from scaling.resample import group_counts
from scaling.tables import labels, numbers, require

BURN_IN = 0.1
"""First share of each run's compute that is left out: warm-up and an average that has not caught up bend the curve."""
MIN_SIZES = 3
"""Sizes on a frontier below which it gives no exponent: two steps are no slope."""
MIN_INNER = 4
"""Sizes between the smallest and the largest of a grid from which on the rows of these two are left out."""
_CHUNK = 4_000_000
"""Numbers in one [rows, draws] array."""


@dataclass(frozen=True)
class _Curves:
    """The rows that take part, by compute: ``index`` of each in the table, its run, and ``above [rows, runs]``: whether
    the row lies above a run's curve, interpolated log–log between that run's rows."""

    index: np.ndarray
    log_cost: np.ndarray
    log_value: np.ndarray
    run: np.ndarray
    above: np.ndarray

    def frontiers(self, present: np.ndarray) -> np.ndarray:
        """Whether each row is on the frontier of the ``present [runs, draws]``: bool ``[rows, draws]``."""
        here = present[self.run]
        value = np.where(here, self.log_value[:, None], np.inf)
        best = np.minimum.accumulate(value, axis=0)
        lower = np.ones(value.shape, dtype=bool)
        lower[1:] = value[1:] < best[:-1]
        beaten = self.above.astype(np.float32) @ present.astype(np.float32) > 0
        found: np.ndarray = here & lower & ~beaten
        return found


def _read(curves: pd.DataFrame, compute: str, loss: str, run: str, burn_in: float) -> _Curves:
    require(curves, [compute, loss, run])
    name = labels(curves, run)
    cost = numbers(curves, compute, allow_missing=True)
    value = numbers(curves, loss, allow_missing=True)
    last = pd.Series(cost).groupby(name).transform("max").to_numpy()
    usable = np.isfinite(cost) & np.isfinite(value) & (cost > 0) & (cost >= burn_in * last)
    if (value[usable] <= 0).any():
        raise TableError(f"{loss}={value[usable].min():g}: expected a finite number above 0")
    index = np.flatnonzero(usable)
    index = index[np.lexsort((value[index], cost[index]))]
    log_cost, log_value = np.log(cost[index]), np.log(value[index])
    _, member = np.unique(name[index].astype(str), return_inverse=True)
    member = member.reshape(-1)
    above = np.zeros((len(index), int(member.max(initial=-1)) + 1), dtype=bool)
    for key in range(above.shape[1]):
        own = member == key
        x, y = log_cost[own], log_value[own]
        above[:, key] = ~own & (log_cost >= x[0]) & (log_cost <= x[-1])
        above[:, key] &= log_value > np.interp(log_cost, x, y) + 1e-12
    return _Curves(index, log_cost, log_value, member, above)


def frontier(
    curves: pd.DataFrame,
    *,
    compute: str = "train_flops",
    loss: str = "val_loss",
    run: str = "run_id",
    burn_in: float = BURN_IN,
) -> pd.DataFrame:
    """The rows of ``curves`` that no run beats at their compute, sorted by compute (Hoffmann et al. 2022, approach 1).

    One row of ``curves`` is one validation of one run. A row stays if its loss is below that of every row with
    less compute, and not above any other run's curve, interpolated log–log between that run's checkpoints. Only
    measured rows are returned. Rows without loss or compute, and the first ``burn_in`` of each run's, do not take part.

    A checkpoint along a run counts as a run of that length only where the learning rate is constant (or the loss
    that of averaged weights). Raises TableError for missing columns or values that are no positive numbers.
    """
    read = _read(curves, compute, loss, run, burn_in)
    on = read.frontiers(np.ones((read.above.shape[1], 1), dtype=bool))[:, 0]
    return curves.iloc[read.index[on]]


def fit_frontier(
    curves: pd.DataFrame,
    *,
    compute: str = "train_flops",
    loss: str = "val_loss",
    run: str = "run_id",
    floor: bool = False,
    burn_in: float = BURN_IN,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[Law, pd.DataFrame]:
    """Fit a power law to the frontier, resampling whole runs. Returns (law, the frontier's rows)."""
    rows = frontier(curves, compute=compute, loss=loss, run=run, burn_in=burn_in)
    law = fit_power_law(
        numbers(rows, compute, positive=True),
        numbers(rows, loss, positive=True),
        floor=floor,
        groups=labels(rows, run),
        draws=draws,
        seed=seed,
    )
    return law, rows


def optimal_sizes(
    curves: pd.DataFrame,
    *,
    compute: str = "train_flops",
    loss: str = "val_loss",
    run: str = "run_id",
    n: str = "parameters",
    d: str | None = None,
    burn_in: float = BURN_IN,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Allocation:
    """N_opt(C) and, with ``d``, D_opt(C): power laws through what the frontier's rows were trained with.

    Columns as for ``frontier``; ``n`` parameters, ``d`` samples or tokens seen up to the row. Least squares on logs,
    each row weighted by the share of log compute that it stands for, as if the frontier were read at evenly spaced
    budgets (Hoffmann et al. 2022, section 3.1). The smallest and the largest size of all serve compute that is best
    served by sizes that are not there; their rows do not take part where MIN_INNER others are on the frontier.

    Intervals: whole runs are drawn, and the frontier is found anew in each draw. A draw lacks some sizes, so that the
    choice of the grid is in them as well as the runs' luck: they are too long rather than too short, and are not
    stretched for few sizes.

    Raises TableError as ``frontier``, and for N or D of a frontier's row that is no positive number.
    """
    read = _read(curves, compute, loss, run, burn_in)
    require(curves, [n, *([d] if d is not None else [])])
    taking_part = curves.iloc[read.index]
    if taking_part.empty:
        raise TableError(f"{loss}: no row with a loss and {compute} to make a frontier of")
    targets = np.log(np.stack([numbers(taking_part, column, positive=True) for column in (n, d) if column is not None]))
    runs = read.above.shape[1]
    on = read.frontiers(np.ones((runs, 1), dtype=bool))[:, 0]
    size, log_cost = targets[0], read.log_cost
    ends = (size == size.min()) | (size == size.max())
    inner = len(np.unique(size[on & ~ends])) >= MIN_INNER
    taken = ~ends if inner else np.ones(len(size), dtype=bool)
    centre = float((log_cost[on].min() + log_cost[on].max()) / 2)
    sizes = len(np.unique(size[on]))
    lines = np.full((len(targets), 2), np.nan)
    samples = np.zeros((0, len(targets), 2))
    doubts = _doubts(read, on, size, inner)
    if sizes >= MIN_SIZES:
        lines = _line(read, on, targets, taken, centre)
        present = group_counts(draws, runs, np.random.default_rng(seed)).T > 0
        samples = _resampled(read, present, targets, taken, centre)
        lost = draws - len(samples)
        if lost > 0.05 * draws:
            doubts.append(f"{lost} of {draws} resamples have a frontier of fewer than {MIN_SIZES} sizes: left out")
    fitted = on & taken
    return allocation(
        "frontier",
        log_cost[fitted],
        lines,
        samples,
        centre=centre,
        sizes=len(np.unique(size[fitted])),
        level=level,
        widen=1.0,
        doubts=tuple(doubts),
    )


def _spans(log_cost: np.ndarray) -> np.ndarray:
    """The share of log compute that each of a frontier's rows stands for: half of the way to its neighbours."""
    if len(log_cost) < 2:
        return np.ones(len(log_cost))
    edges = np.concatenate([log_cost[:1], (log_cost[1:] + log_cost[:-1]) / 2, log_cost[-1:]])
    return np.maximum(np.diff(edges), 1e-12)


def _line(read: _Curves, on: np.ndarray, targets: np.ndarray, taken: np.ndarray, centre: float) -> np.ndarray:
    """Lines ``[quantities, 2]`` through the rows of a frontier ``on [rows]`` that are ``taken [rows]``."""
    log_cost = read.log_cost[on]
    return line(log_cost - centre, targets[:, on], _spans(log_cost) * taken[on])


def _resampled(read: _Curves, present: np.ndarray, targets: np.ndarray, taken: np.ndarray, centre: float) -> np.ndarray:
    """Lines ``[kept, quantities, 2]`` of the ``present [runs, draws]``; draws with few sizes are left out."""
    chunk, found = max(1, _CHUNK // len(read.index)), []
    for first in range(0, present.shape[1], chunk):
        for on in read.frontiers(present[:, first : first + chunk]).T:
            if len(np.unique(targets[0, on & taken])) >= MIN_SIZES:
                found.append(_line(read, on, targets, taken, centre))
    return np.stack(found) if found else np.zeros((0, len(targets), 2))


def _doubts(read: _Curves, on: np.ndarray, size: np.ndarray, inner: bool) -> list[str]:
    sizes = np.unique(size[on])
    if len(sizes) < MIN_SIZES:
        return [f"{len(sizes)} different sizes on the frontier: no exponent; expected {MIN_SIZES} or more"]
    weight = _spans(read.log_cost[on])
    found = []
    for name, other, end in (("smallest", "smaller", size.min()), ("largest", "larger", size.max())):
        share = float(weight[size[on] == end].sum() / weight.sum())
        if share > 0:
            then = "its rows are left out" if inner else "this draws a towards 0"
            found.append(
                f"the {name} size, {np.exp(end):.4g}, holds {share:.0%} of the frontier's range of compute, where a "
                f"{other} one might be better: {then}"
            )
    # The last row of a run on the frontier, with larger sizes after it: the run was the best when it ended.
    last = np.array([on[read.run == key][-1] for key in range(read.above.shape[1])])
    of_run = np.array([size[read.run == key][0] for key in range(read.above.shape[1])])
    short = len(np.unique(of_run[last & (of_run < sizes[-1])]))
    if short:
        found.append(
            f"{short} of {len(sizes)} sizes are still the best where their runs end, and longer runs might stay so: "
            "a follows the lengths of the runs"
        )
    if (np.diff(size[on]) < -1e-9).any():
        falls = int((np.diff(size[on]) < -1e-9).sum())
        found.append(f"the best size falls {falls} times as compute grows: noise, or runs that are not alike")
    return found
