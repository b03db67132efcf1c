"""How well a column predicts another in groups that its line has not seen."""

from __future__ import annotations

import math

import numpy as np

from scaling.coefficients import Control
from scaling.dependence import Groups


def left_out_r2(x: np.ndarray | None, y: np.ndarray, groups: Groups, control: Control) -> float:
    """R² of ``y [rows]`` by lines on ``x [rows]`` and on what ``control`` holds, each drawn without the row's group.

    1 − Σ(y − predicted)² / Σ(y − mean of the others)²: below 0 where a line is worse than no line. With crossed factors
    a row is predicted from those that share no group with it. NaN where too few rows are left for a line.

    Each stratum has a level of its own; where a stratum is not among the others, they say nothing of its level: NaN.
    """
    columns = [np.ones((len(y), 1)), control.design()]
    if x is not None:
        columns.append((x[:, None] - x.mean()) / max(float(x.std()), 1e-300))
    design = np.concatenate(columns, axis=1)
    missed = none = 0.0
    for cell in range(int(groups.cells.max()) + 1):
        here = groups.cells == cell
        first = int(np.argmax(here))
        others = np.all([factor != factor[first] for factor in groups.factors], axis=0)
        if others.sum() < design.shape[1] + 1:
            return math.nan
        known = design[others]
        if (np.ptp(known, axis=0)[1:] == 0).any():
            return math.nan
        line = np.linalg.lstsq(known, y[others], rcond=None)[0]
        missed += float(((y[here] - design[here] @ line) ** 2).sum())
        none += float(((y[here] - y[others].mean()) ** 2).sum())
    return 1 - missed / none if none > 0 else math.nan
