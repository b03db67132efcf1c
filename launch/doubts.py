"""What to know before a law is relied on: of the rows that it is of, and of a run that it is asked about."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from launch.tables import ENOUGH_DRAWS

if TYPE_CHECKING:
    from mmdit_jax.config import DataConfig, Run
    from scaling.laws import Law

RECIPE = ("formulation", "architecture", "dataset", "text_encoders", "parametrization", "learning_rate", "batch")
"""Columns in which runs of one law are alike."""
MOST_SHOWN = 4
"""Values of a column that are named."""


def repeated(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """A sentence where rows are the same to the last digit: tables that were put together may hold a run twice."""
    there = [name for name in dict.fromkeys(columns) if name in table.columns]
    count = int(table.duplicated(subset=there).sum())
    if not count:
        return []
    twice = "a run that counts twice is as a seed without luck, and makes intervals too short; leave one out"
    return [f"{count} rows repeat another's {', '.join(there)}: {twice}"]


def mixed(table: pd.DataFrame, *, by: str | None = None, parts: bool = False) -> list[str]:
    """A sentence where runs of several recipes share a law, which is that of none of them.

    Args: ``by``: the column whose values have a law each. ``parts``: the command has ``--by``.
    """
    shares = [table] if by is None else [share for _, share in table.groupby(by, dropna=False)]
    columns = [
        name
        for name in RECIPE
        if name != by and name in table.columns and any(share[name].nunique(dropna=False) > 1 for share in shares)
    ]
    if not columns:
        return []
    told = " and ".join(f"{name} ({_values(table[name])})" for name in columns)
    known = table[columns].dropna()
    kept = "--where"
    if len(known):
        most = known.value_counts().index[0]
        conditions = [f"{name}={_text(value)}" for name, value in zip(columns, most, strict=True)]
        kept = " ".join(f"--where {shlex.quote(condition)}" for condition in conditions)
    apart = f", --by {columns[0]} fits each apart" if parts and by is None else ""
    rows = "runs" if by is None else f"runs of one {by}"
    return [f"{rows} with different {told} share a law: it is no recipe's own; {kept} keeps one{apart}"]


def few_draws(draws: int) -> list[str]:
    """A sentence where so few resamples were drawn that what they tell is luck."""
    if not 0 < draws < ENOUGH_DRAWS:
        return []
    told = "what they tell (ends of intervals, shares) is mostly luck"
    return [f"{draws} bootstraps: {told}; expected --bootstrap {ENOUGH_DRAWS} or more"]


def unlike(run: Mapping[str, Any], table: pd.DataFrame, columns: Sequence[str] = RECIPE) -> list[str]:
    """A sentence for each of ``columns`` in which a run, as ``launch.execute.describe`` tells it, is as none of the
    rows are."""
    found = []
    for name in columns:
        values = set(map(_text, table[name].dropna())) if name in table.columns else set()
        if values and _text(run[name]) not in values:
            found.append(f"{name}={_text(run[name])}: the rows have {_values(table[name])}, their law knows no other")
    return found


def passes(run: Run, table: pd.DataFrame, folder: Path | None = None) -> list[str]:
    """A sentence where a run sees its training examples more than once, and more often than the rows' runs did.

    ``folder`` is that of the data sets: without it nothing is said of an encoded set.
    """
    examples = training_examples(run.data, folder)
    if examples is None:
        return []
    images = run.steps * run.batch
    seen = float("nan")
    if "images" in table.columns and ("dataset" not in table.columns or (table["dataset"] == run.data.name).all()):
        seen = float(pd.to_numeric(table["images"], errors="coerce").max()) / examples
    if images <= examples or images <= seen * examples:
        return []
    rows = f"the rows' runs made at most {seen:.2g}" if seen == seen else "of the rows' runs it is not known"
    return [
        f"{run.steps:,} steps of {run.batch:,} are {images / examples:,.3g} passes over the {examples:,} training "
        f"examples of {run.data.name!r}; {rows}: what repeated images are worth, the law does not know"
    ]


def training_examples(data: DataConfig, folder: Path | None = None) -> int | None:
    """How many training examples a data set has; None of an encoded one that is not in ``folder``."""
    from mmdit_jax.data.store import BUILDERS, MANIFEST

    if data.name == "emoji":
        from mmdit_jax.data.emoji import assets

        return sum(assets.split_of(row.code) == "train" for row in assets.load()[0])
    if data.name in BUILDERS:
        return data.examples
    if folder is None or not (folder / data.name / MANIFEST).exists():
        return None
    from mmdit_jax.data.encoded import EncodedSet

    return EncodedSet(folder / data.name).examples("train")


def beyond(law: Law, at: Mapping[str, float]) -> list[str]:
    """A sentence for each abscissa, or ratio of two, that lies outside of what the law was fitted to."""
    told = law.beyond(*(at[x] for x in law.kind.abscissae))
    values = {**at, **{name: at[name[0]] / at[name[2]] for name in told if "/" in name}}
    return [f"{name}={values[name]:g} is {times:.3g} times beyond the data" for name, times in told.items()]


def _values(column: pd.Series[Any]) -> str:
    """The values of a column, most frequent first."""
    values = [_text(value) for value in column.value_counts(dropna=False).index]
    return ", ".join(values[:MOST_SHOWN]) + (f" and {len(values) - MOST_SHOWN} more" * (len(values) > MOST_SHOWN))


def _text(value: Any) -> str:
    """A cell as ``--where`` takes it: 32 for 32.0, and ``blank``."""
    if pd.isna(value):
        return "blank"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
