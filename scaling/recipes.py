"""What a run's recipe is, and which runs are alike but for it."""

from __future__ import annotations

import pandas as pd

from scaling.study import ARCHITECTURE, values

ONE_COMPUTE = 1.02
"""Trainings whose FLOPs differ by no more than this factor have one compute."""
TOLD_APART = ("text_encoders", "parametrization", "learning_rate", "width", "batch")
"""Columns that tell recipes apart where formulation, size and seed are the same."""


def recipes(results: pd.DataFrame) -> pd.Series:
    """What a run's recipe is called: its formulation, and what else tells runs of one size and seed apart."""
    label = results["formulation"].astype(str)
    for column in TOLD_APART:
        cell = cells(results).assign(recipe=label)
        if column not in results or not cell.duplicated(keep=False).any():
            continue
        apart = results[column].groupby([*(cell[name] for name in cell)], dropna=False).transform("nunique")
        if (apart > 1).any():
            label = label + f", {column.replace('_', ' ')} " + results[column].map(lambda value: f"{value}")
    return label


def cells(results: pd.DataFrame) -> pd.DataFrame:
    """Depth, steps and seed of each run; −1 where it isn't told. Architectures of one compute have one size."""
    found = pd.DataFrame({name: values(results, name).fillna(-1.0) for name in ("depth", "steps", "seed")})
    if ARCHITECTURE in results and results[ARCHITECTURE].nunique() > 1:
        flops = values(results, "train_flops")
        if flops.notna().all() and flops.max() <= ONE_COMPUTE * flops.min():
            found[["depth", "steps"]] = -1.0
    return found
