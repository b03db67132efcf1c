"""Sampling efficiency as the table that the SD3 paper prints (Table 6), in numbers and as text."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.efficiency import EfficiencyTable, Value
from scaling.rank_tables import Show, brackets


def losses_frame(table: EfficiencyTable, group: str) -> pd.DataFrame:
    """As numbers: group, then value, ``_low`` and ``_high`` of the score, of each loss in %, and of the path length."""
    rows = []
    for row in table.rows:
        cells: dict[str, object] = {group: row.group}
        named = {table.score: row.score}
        named |= {f"loss_{steps}": loss for steps, loss in zip(table.steps[:-1], row.losses, strict=True)}
        if row.path is not None:
            named["path_length"] = row.path
        for name, value in named.items():
            cells |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        rows.append(cells)
    return pd.DataFrame(rows)


def losses_text(table: EfficiencyTable, group: str, show: Show = brackets) -> pd.DataFrame:
    """As text: group, the loss at each number of steps as 5/50, 10/50, …, and the path length, with intervals."""
    rows = []
    for row in table.rows:
        cells = {group: row.group}
        for steps, loss in zip(table.steps[:-1], row.losses, strict=True):
            cells[f"{steps}/{table.steps[-1]} steps"] = _cell(show, loss)
        if row.path is not None:
            cells["path length"] = _cell(show, row.path)
        rows.append(cells)
    return pd.DataFrame(rows)


def _cell(show: Show, found: Value) -> str:
    texts = [f"{number:.2f}".replace("-", "−") for number in (found.value, found.low, found.high)]
    return show(*texts) if np.isfinite(found.low) else texts[0]
