"""A study directory's tables, as the report reads them: any may be missing, or hold runs of several data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scaling.errors import TableError
from scaling.tables import read_table, require

RUN_COLUMNS = ("run_id", "name", "formulation", "depth", "dataset")
ARCHITECTURE = "architecture"
"""Column of results and curves; where a study has several, formulations are told apart by it too."""
FIRST_ARCHITECTURE = "mmdit"
"""What a blank one is: of runs from before there were others."""


@dataclass(frozen=True)
class StudyTables:
    """The tables of one study, cut down to the runs of its main data set; the other runs stay in ``others``.

    ``dataset`` is the one with most runs (among equals one with battles, else the first by name): losses, scores and
    battles are only compared within it. ``scores`` keeps every data set, since a ranking averages over them. An absent
    table is an empty frame. Columns are those the study's collector writes.
    """

    dataset: str
    results: pd.DataFrame
    curves: pd.DataFrame
    geneval: pd.DataFrame
    battles: pd.DataFrame
    scores: pd.DataFrame
    real: pd.DataFrame
    without: pd.DataFrame
    without_battles: pd.DataFrame
    others: pd.DataFrame
    other_curves: pd.DataFrame
    samples: Path | None
    without_samples: Path | None
    other_samples: dict[str, Path]

    @property
    def runs(self) -> pd.DataFrame:
        """One row a run of the main data set that has results or a curve: RUN_COLUMNS, by formulation and depth."""
        return _runs(self.results, self.curves)


def load_study(folder: Path) -> StudyTables:
    """Read results, curves, geneval, battles, real (.csv), scores (.parquet, else .csv), figures/samples[_dataset].png,
    without, without_battles (.csv), figures/without.png.

    Raises TableError where neither results nor curves exist, or a table lacks the columns that name its runs.
    """
    results, curves = _optional(folder / "results.csv"), _optional(folder / "curves.csv")
    geneval, battles = _optional(folder / "geneval.csv"), _optional(folder / "battles.csv")
    scores = _optional(folder / "scores.parquet")
    scores = _optional(folder / "scores.csv") if scores.empty else scores
    real = _optional(folder / "real.csv")
    without, without_battles = _optional(folder / "without.csv"), _optional(folder / "without_battles.csv")
    for frame, columns in (
        (without, ("without", "task", "graded", "chance_graded")),
        (real, ("dataset", "images", "clip", "fid")),
        (results, RUN_COLUMNS),
        (curves, (*RUN_COLUMNS, "step", "train_flops", "val_loss")),
        (geneval, ("name", "task", "rate", "low", "high")),
        (battles, ("prompt", "left", "right", "outcome")),
        (scores, ("name", "setting", "clip", "fid")),
    ):
        if len(frame):
            require(frame, columns)
    if len(curves):  # a run that diverged has validated to infinity on the way: no loss
        curves = curves.assign(val_loss=values(curves, "val_loss"))
    runs = _runs(results, curves)
    if runs.empty:
        raise TableError(
            f"study={str(folder)!r}: no results.csv or curves.csv with runs; expected a study that has run"
        )
    counts = runs["dataset"].value_counts()
    most = sorted(counts.index[counts == counts.max()])
    # Of equals the one whose runs fought: battles need prompts that both judges understand.
    fought = set(battles["left"]) if len(battles) else set()
    dataset = next((name for name in most if fought & set(runs.loc[runs["dataset"] == name, "name"])), most[0])
    names = set(runs.loc[runs["dataset"] == dataset, "name"])
    main_results, main_curves = (_where(frame, "dataset", {dataset}) for frame in (results, curves))
    others, other_curves = results.drop(main_results.index), curves.drop(main_curves.index)
    main_results, main_curves = _by_architecture(main_results, main_curves)
    grids = {name: folder / "figures" / f"samples_{name}.png" for name in sorted(set(runs["dataset"]))}
    grids = {name: path for name, path in grids.items() if path.exists()}
    plain, drawn_without = (folder / "figures" / f"{name}.png" for name in ("samples", "without"))
    both = _where(_where(battles, "left", names), "right", names)
    return StudyTables(
        dataset=str(dataset),
        results=_ordered(main_results),
        curves=main_curves,
        geneval=_where(geneval, "name", names),
        battles=both,
        scores=scores,
        real=real,
        without=without,
        without_battles=without_battles,
        others=_ordered(others),
        other_curves=other_curves,
        samples=grids.get(dataset, plain if plain.exists() else None),
        without_samples=drawn_without if drawn_without.exists() else None,
        other_samples={name: path for name, path in grids.items() if name != dataset},
    )


def levels(frame: pd.DataFrame) -> list[str]:
    """The columns val_loss_0 … val_loss_k, in order of level."""
    names = [str(column) for column in frame.columns if str(column).removeprefix("val_loss_").isdigit()]
    return sorted(names, key=lambda name: int(name.removeprefix("val_loss_")))


def values(frame: pd.DataFrame, column: str) -> pd.Series:
    """A numeric column, NaN where it is absent or not a number: what a partial study needs."""
    if column not in frame.columns:
        return pd.Series(np.nan, index=frame.index, dtype=float)
    return pd.to_numeric(frame[column], errors="coerce").replace([np.inf, -np.inf], np.nan)


def _optional(path: Path) -> pd.DataFrame:
    if not path.exists() or path.stat().st_size == 0:
        return pd.DataFrame()
    try:
        frame = read_table(path)
    except TableError as error:
        if "no rows" in str(error):
            return pd.DataFrame()
        raise
    if ARCHITECTURE in frame.columns:
        frame[ARCHITECTURE] = frame[ARCHITECTURE].fillna(FIRST_ARCHITECTURE).astype(str)
    for column in ("run_id", "name", "formulation", "dataset", "left", "right", "task"):
        if column in frame.columns:
            frame[column] = frame[column].astype(str)
    return frame


def _by_architecture(results: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both with the architecture in front of the formulation, where there are several."""
    frames = [frame for frame in (results, curves) if ARCHITECTURE in frame]
    if len({name for frame in frames for name in frame[ARCHITECTURE]}) < 2:
        return results, curves
    first, second = (
        frame.assign(formulation=frame[ARCHITECTURE] + " " + frame["formulation"]) if ARCHITECTURE in frame else frame
        for frame in (results, curves)
    )
    return first, second


def _where(frame: pd.DataFrame, column: str, allowed: set) -> pd.DataFrame:
    return frame[frame[column].isin(allowed)] if len(frame) else frame


def _runs(results: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    parts = [frame[list(RUN_COLUMNS)] for frame in (results, curves) if len(frame)]
    if not parts:
        return pd.DataFrame(columns=list(RUN_COLUMNS))
    return _ordered(pd.concat(parts).drop_duplicates("run_id").reset_index(drop=True))


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["formulation", "depth", "name"], kind="stable") if len(frame) else frame
