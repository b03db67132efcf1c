"""The compute-optimal frontier of a set of training curves: what the best run achieves at each budget (approach 1)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.errors import TableError
from scaling.laws import Law, fit_power_law
from scaling.tables import labels, numbers, require

BURN_IN = 0.1
"""First share of each run's compute that is left out: warm-up and an average that has not caught up bend the curve."""


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
    log_cost, log_value, names = np.log(cost[index]), np.log(value[index]), name[index]
    curve = {key: (log_cost[names == key], log_value[names == key]) for key in dict.fromkeys(names)}
    keep, lowest = [], np.inf
    for row in range(len(index)):
        if log_value[row] >= lowest:
            continue
        others = (c for key, c in curve.items() if key != names[row] and c[0][0] <= log_cost[row] <= c[0][-1])
        if all(log_value[row] <= np.interp(log_cost[row], *other) + 1e-12 for other in others):
            keep.append(row)
        lowest = log_value[row]
    return curves.iloc[index[keep]]


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
