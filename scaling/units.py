"""What a column measures, in words: a law's N, D and C mean nothing without their count."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pandas as pd

from scaling.errors import TableError
from scaling.tables import require

KNOWN = {
    "train_flops": "training FLOPs (per-stream count with attention)",
    "train_flops_6nd": "training FLOPs (6·N·D convention)",
    "params": "parameters",
    "images": "images",
    "steps": "training steps",
    "step": "training steps",
    "val_loss": "validation loss (EMA weights, mean of levels)",
}
"""Columns that a study's tables have."""


def unit(column: str, tokens_per_image: float | None = None) -> str:
    """What ``column`` measures, as its name if it is not of ours; images times tokens are image tokens."""
    if tokens_per_image is not None:
        return f"image tokens ({column} × {tokens_per_image:g})"
    level = column.removeprefix("val_loss_")
    if level != column and level.isdigit():
        return f"validation loss in bin {level} of t"
    return KNOWN.get(column, column)


def matching(table: pd.DataFrame, patterns: str) -> list[str]:
    """Columns by name or pattern, by commas: ``val_loss,val_loss_*``. Raises TableError where one matches none."""
    found: list[str] = []
    for pattern in (part.strip() for part in patterns.split(",")):
        if not any(letter in pattern for letter in "*?["):
            require(table, [pattern])
            names = [pattern]
        else:
            names = [str(name) for name in table.columns if fnmatchcase(str(name), pattern)]
            numbered = [name for name in names if name.rsplit("_", 1)[-1].isdigit()]
            names = sorted(names, key=lambda name: int(name.rsplit("_", 1)[-1])) if numbered == names else names
        if not names:
            raise TableError(f"column={pattern!r}: matches none of {', '.join(map(str, table.columns))}")
        found += [name for name in names if name not in found]
    return found
