"""The SD3 paper's Tables 1, 2, 5 and 6 in its layout from a study's own runs, the paper's numbers marked as its own.

One table becomes strings for a page, numbers for a CSV file, and LaTeX (booktabs) for a paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scaling.efficiency import EfficiencyTable
from scaling.latex import tabular
from scaling.page import PAPER, Section
from scaling.published import GENEVAL_TASKS, TABLE_1, TABLE_2, TABLE_5, TABLE_6, TABLE_6_STEPS
from scaling.rank_tables import digits, scores_frame, shown_settings
from scaling.ranking import Estimate, RankTable
from scaling.reference import bare
from scaling.study import values

MOST_ROWS = 40
"""Of more runs, the page shows those that score highest; the files have all."""
TASK_NAMES = {"single_object": "single", "two_object": "two", "color_attr": "attribution"}
PASS_RATE = "pass rate"
PAPERS_SPLITS = (("ImageNet", 0), ("CC12M", 2))


@dataclass(frozen=True)
class Cell:
    """A number, its interval where there is one, and how many decimals are shown. NaN is a dash."""

    value: float
    low: float = math.nan
    high: float = math.nan
    decimals: int = 2

    def text(self, between: str, end: str = "") -> str:
        """The number, then ``between`` and the interval; a dash where there is no number."""
        if not math.isfinite(self.value):
            return "–"
        shown, low, high = (f"{x:.{self.decimals}f}".replace("-", "−") for x in (self.value, self.low, self.high))
        return f"{shown}{between}{low} to {high}{end}" if math.isfinite(self.low) else shown


NOTHING = Cell(math.nan)


@dataclass(frozen=True)
class PaperTable:
    """``rows``: cells by column, the first a label. Columns that begin with PAPER are the paper's numbers, as are the
    last ``printed`` rows."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    note: str
    printed: int = 0

    @property
    def own(self) -> int:
        """Rows that are the study's."""
        return len(self.rows) - self.printed

    def page(self) -> pd.DataFrame:
        """Ready strings, the interval in a second line."""
        rows = [[cell if isinstance(cell, str) else cell.text("\n") for cell in row] for row in self.rows]
        if self.own > MOST_ROWS:
            numbers = [[cell.value for cell in row if isinstance(cell, Cell)] for row in self.rows[: self.own]]
            overall = [own[0] if own else math.nan for own in numbers]
            kept = set(np.argsort(-np.nan_to_num(np.array(overall), nan=-np.inf), kind="stable")[:MOST_ROWS])
            rows = [row for place, row in enumerate(rows) if place >= self.own or place in kept]
        return pd.DataFrame(rows, columns=list(self.columns))

    def numbers(self) -> pd.DataFrame:
        """As numbers: each column, with ``_low`` and ``_high`` where it has intervals, and ``source`` (ours, paper)."""
        out: dict[str, Sequence[object]] = {}
        for place, name in enumerate(self.columns):
            cells = [row[place] for row in self.rows]
            if all(isinstance(cell, str) for cell in cells):
                out[name] = [str(cell) for cell in cells]
                continue
            known = [cell if isinstance(cell, Cell) else NOTHING for cell in cells]
            out[name] = [cell.value for cell in known]
            if any(math.isfinite(cell.low) for cell in known):
                out[f"{name}_low"] = [cell.low for cell in known]
                out[f"{name}_high"] = [cell.high for cell in known]
        if self.printed:
            out["source"] = ["ours"] * self.own + [PAPER] * self.printed
        return pd.DataFrame(out)

    def latex(self) -> str:
        """A tabular of booktabs, without a float around it."""
        rows = [[cell if isinstance(cell, str) else cell.text(" [", "]") for cell in row] for row in self.rows]
        return tabular(f"{self.title}. {self.note}", self.columns, rows, apart=self.own if self.printed else None)


def table_1(table: RankTable) -> PaperTable:
    """Average rank over all settings, those of 5 and those of 50 steps; the paper's three columns beside."""
    groups = [label for label in ("5", "50") if table.by == "steps" and label in table.groups]
    names = ["all", *(f"{label} steps" for label in groups)]
    place_of = {"all": 0, "5 steps": 1, "50 steps": 2}
    rows: list[tuple[str | Cell, ...]] = []
    for place, called in zip(table.places, _papers_names(table), strict=True):
        own = [place.all, *(place.groups[label] for label in groups)]
        printed = TABLE_1.get(called)
        theirs = [Cell(printed[place_of[name]]) if printed else NOTHING for name in names]
        rows.append((place.name, *map(_rank, own), *theirs))
    return PaperTable(
        "table1",
        "Table 1: average rank by formulation",
        ("name", *names, *(f"{PAPER}: {name}" for name in names)),
        tuple(rows),
        f"Ours are among {len(table.places)} names, the paper's among 61: compare orders, not numbers"
        f"{_several(table)}.",
    )


def _papers_names(table: RankTable) -> list[str]:
    """What the paper would call each name: without the depth before it, unless a formulation is there at several
    depths. It ranked each at one; the number it prints is of none of them."""
    return table.names if _several(table) else [bare(name) for name in table.names]


def _several(table: RankTable) -> str:
    """What a note says where a formulation is there at several depths; nothing elsewhere."""
    names = {bare(name) for name in table.names}
    return "; a formulation at several depths has none of the paper's" if len(names) < len(table.names) else ""


def _rank(found: Estimate) -> Cell:
    return Cell(found.rank, found.low, found.high)


def table_2(table: RankTable) -> PaperTable | None:
    """CLIP score and Fréchet distance at 25 steps by data set; the paper's on ImageNet and CC12M beside. None where
    settings have no data set."""
    shown = shown_settings(table)
    if not shown:
        return None
    frame = scores_frame(table)
    columns, own = ["name"], []
    for dataset in shown:
        for score in table.columns:
            name = f"{dataset}_{score}"
            found = frame[[name, f"{name}_low", f"{name}_high"]].to_numpy(dtype=float)
            decimals = digits(found[:, 0], found[:, 1:].T)
            own.append([Cell(float(value), float(low), float(high), decimals) for value, low, high in found])
            columns.append(f"{dataset} {score}")
    rows: list[tuple[str | Cell, ...]] = []
    for place, (label, called) in enumerate(zip(table.names, _papers_names(table), strict=True)):
        printed = TABLE_2.get(called)
        theirs = []
        for _, first in PAPERS_SPLITS:
            theirs += [Cell(printed[first], decimals=3), Cell(printed[first + 1])] if printed else [NOTHING] * 2
        rows.append((label, *(cells[place] for cells in own), *theirs))
    columns += [f"{PAPER}: {dataset} {score}" for dataset, _ in PAPERS_SPLITS for score in ("CLIP", "FID")]
    settings = ", ".join(str(table.settings["setting"][place]) for place in shown.values())
    return PaperTable(
        "table2",
        "Table 2: CLIP score and Fréchet distance by data set",
        tuple(columns),
        tuple(rows),
        f"Ours at {settings}; the paper's with 25 steps, on other data and by another judge: compare orders only"
        f"{_several(table)}.",
    )


def table_5(geneval: pd.DataFrame, results: pd.DataFrame) -> PaperTable | None:
    """GenEval overall and by task, a row a run; the paper's rows below. None without scores.

    The share that passes; where too few runs pass anything (``strict_tells``), the graded score, another measure.
    """
    if geneval.empty:
        return None
    strict = strict_tells(geneval)
    wanted = ("rate", "low", "high") if strict else ("graded", "graded_low", "graded_high")
    tasks = [
        task
        for task in dict.fromkeys(("overall", *GENEVAL_TASKS, *geneval["task"]))
        if task in set(geneval["task"]) or task in GENEVAL_TASKS
    ]
    known = results.set_index("name") if len(results) else pd.DataFrame()
    sizes = {str(name): float(known.loc[name, "depth"]) for name in known.index.unique()} if len(known) else {}
    names = sorted(set(geneval["name"]), key=lambda name: (sizes.get(name, math.inf), name))
    cells = {
        (str(name), str(task)): _mean(part, wanted)
        for (name, task), part in geneval.groupby(["name", "task"], sort=False)
    }
    measure = PASS_RATE if strict else "graded"
    rows: list[tuple[str | Cell, ...]] = []
    for name in names:
        depth = f"{sizes[name]:g}" if name in sizes else "–"
        rows.append((name, measure, *(cells.get((name, task), NOTHING) for task in tasks), depth))
    for label, theirs, _, printed in TABLE_5:
        found = dict(zip(("overall", *GENEVAL_TASKS), map(Cell, printed), strict=True))
        rows.append((f"{PAPER}: {label}", PASS_RATE, *(found.get(task, NOTHING) for task in tasks), str(theirs)))
    what = "Share of images that pass" if strict else "Graded score, since most runs pass no strict test"
    return PaperTable(
        "table5",
        "Table 5: GenEval by run",
        ("model", "measure", *(TASK_NAMES.get(task, task.replace("_", " ")) for task in tasks), "depth"),
        tuple(rows),
        f"{what}; ours by this study's prompts and scorer, the paper's by GenEval's.",
        printed=len(TABLE_5),
    )


def strict_tells(geneval: pd.DataFrame) -> bool:
    """Whether half of the runs or more pass some strict test, or there is no graded score to read instead."""
    passed = values(geneval, "rate").gt(0).groupby(geneval["name"]).any()
    return bool(passed.mean() >= 0.5) or not values(geneval, "graded").notna().any()


def _mean(rows: pd.DataFrame, columns: tuple[str, str, str]) -> Cell:
    value, low, high = (float(values(rows, column).mean()) for column in columns)
    return Cell(value, low, high)


def table_6(table: EfficiencyTable, group: str, setting: str) -> PaperTable:
    """Relative loss of CLIP score with fewer steps in %, and path length; the paper's rows below."""
    most = table.steps[-1]
    same = most == 50
    steps = sorted({*table.steps[:-1], *(TABLE_6_STEPS if same else ())})
    path = any(row.path is not None for row in table.rows)
    rows: list[tuple[str | Cell, ...]] = []
    for row in table.rows:
        found = dict(zip(table.steps[:-1], row.losses, strict=True))
        cells = [Cell(**vars(found[k])) if k in found else NOTHING for k in steps]
        label = f"depth {row.group}" if group == "depth" else row.group
        rows.append((label, *cells, *([Cell(**vars(row.path)) if row.path is not None else NOTHING] if path else [])))
    for depth, printed in TABLE_6.items() if same or path else ():
        of_steps = dict(zip(TABLE_6_STEPS, printed, strict=False)) if same else {}
        cells = [Cell(of_steps[k]) if k in of_steps else NOTHING for k in steps]
        rows.append((f"{PAPER}: depth {depth}", *cells, *([Cell(printed[-1])] if path else [])))
    return PaperTable(
        "table6",
        "Table 6: CLIP score lost with fewer steps, in %",
        (group, *(f"{k}/{most} steps" for k in steps), *(["path length"] if path else [])),
        tuple(rows),
        f"Ours: {setting}. A path's length grows with the size of the latent: compare its order.",
        printed=len(TABLE_6) if same or path else 0,
    )


def write_tables(tables: Sequence[PaperTable], folder: Path) -> None:
    """``folder/table1.csv`` and ``.tex``, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        (folder / f"{table.key}.csv").write_text(table.numbers().to_csv(index=False), encoding="utf-8")
        (folder / f"{table.key}.tex").write_text(table.latex(), encoding="utf-8")


def tables_section(tables: Sequence[PaperTable]) -> list[Section]:
    """The tables on the page; none where there are none."""
    if not tables:
        return []
    part = Section("The paper's tables")
    for table in tables:
        part.tables.append((table.page(), f"{table.title}. {table.note}"))
    files = ", ".join(f"tables/{table.key}.csv and .tex" for table in tables)
    part.notes.append(
        f"Columns and rows on grey that begin with “{PAPER}” are printed in Esser et al. 2024; all others are measured "
        f"here. To paste: {files}."
    )
    return [part]
