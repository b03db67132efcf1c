"""Loss against every score of a study: over runs, over runs of one compute, bin of t by bin of t."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from scaling.bins import Bins, compare_bins
from scaling.coefficients import KINDS, Control
from scaling.correlation import PERMUTATIONS, Correlation, correlate
from scaling.correlation_pairs import left_over
from scaling.dependence import Groups
from scaling.elo import EloTable
from scaling.errors import TableError
from scaling.groups import holm
from scaling.permutation import orders
from scaling.study import StudyTables, levels, values

LADDER = "ladder"
"""Factor of runs that have formulation and depth in common, however long they were trained."""
LEAST_SEEDS = 4
"""From so many seeds on, what moves all runs of a seed counts as drawn anew in another study; of fewer, whose spread
is known from one difference or two, it is left out of the intervals, and how far they differ is told."""
ONE_COMPUTE = 1.02
"""Runs whose FLOPs differ by no more than this factor have one compute: size can't tell them apart."""


@dataclass(frozen=True)
class Score:
    """A score beside loss.

    ``points``: a row a run that has both, with name, depth, formulation, seed, train_flops, x = loss, the losses by
    level, y = score, low, high. ``main`` ones are shown at length, the others are tasks of these. ``given``: with log
    FLOPs fixed, which leave ``left`` of the variance of loss; ``curved``: with their square too. ``adjusted``: Holm's p
    over all scores, by coefficient.
    """

    label: str
    main: bool
    points: pd.DataFrame
    found: Correlation
    given: Correlation | None = None
    curved: Correlation | None = None
    left: float = 1.0
    bins: Bins | None = None
    adjusted: dict[str, float] | None = None


def score_correlations(
    tables: StudyTables, elo: dict[str, EloTable], *, seed: int = 0
) -> tuple[dict[str, Score], dict[str, str]]:
    """Every score that changes from run to run, by name; and by name why there is nothing."""
    out: dict[str, Score] = {}
    why: dict[str, str] = {}
    known: dict[tuple[str, ...], np.ndarray] = {}
    for name, (points, label, main) in _points(tables, elo).items():
        try:
            out[name] = _score(points, label, main, seed, known)
        except TableError as error:
            if main:
                why[name] = str(error)
    adjusted = {kind: holm({name: score.found.of(kind).p for name, score in out.items()}) for kind in KINDS}
    given = {name: score.given.pearson.p for name, score in out.items() if score.given is not None}
    adjusted_given = holm({name: p for name, p in given.items() if np.isfinite(p)})
    for name, score in out.items():
        p = {kind: adjusted[kind][name] for kind in KINDS}
        out[name] = replace(score, adjusted=p | ({"given": adjusted_given[name]} if name in adjusted_given else {}))
    return out, why


def groups_of(points: pd.DataFrame) -> Groups:
    """Ladders, and seeds, where runs share them; runs that share neither stand alone.

    A seed's number is the same data in the same order at every depth, so that its runs share some of their luck.
    """
    ladder = points["formulation"].astype(str) + " " + points["depth"].astype(str)
    factors = {LADDER: ladder}
    if points["seed"].notna().all() and points["seed"].nunique() >= LEAST_SEEDS:
        factors["seed"] = points["seed"].astype(str)
    shared = {name: column.to_numpy() for name, column in factors.items() if 1 < column.nunique() < len(points)}
    return Groups.of(len(points), shared)


def one_compute(points: pd.DataFrame) -> bool:
    """Whether all runs have one compute, so that there is no size to hold fixed."""
    flops = points["train_flops"]
    return bool(flops.notna().all() and flops.min() > 0 and flops.max() <= ONE_COMPUTE * flops.min())


def seed_share(column: pd.Series, seeds: pd.Series) -> float:
    """The share of a column's variance that lies between the means of its seeds."""
    means = column.groupby(seeds).transform("mean")
    return float(means.var(ddof=0) / column.var(ddof=0))


def _score(points: pd.DataFrame, label: str, main: bool, seed: int, known: dict[tuple[str, ...], np.ndarray]) -> Score:
    """``known``: orders of permutations by the names of the runs, for scores of the same ones."""
    x, y = points["x"].to_numpy(), points["y"].to_numpy()
    if len(points) > 1 and np.ptp(y) == 0:
        raise TableError(f"{y[0]:g} in every run, which goes with nothing")
    groups = groups_of(points)
    if groups.equal() and tuple(points["name"]) not in known:
        known[tuple(points["name"])] = orders(groups, PERMUTATIONS, seed)
    found = correlate(x, y, groups=groups, seed=seed, order=known.get(tuple(points["name"])))
    flops = points["train_flops"].to_numpy()
    given = curved = None
    left = 1.0
    if (flops > 0).all() and not one_compute(points):
        size = np.log(flops)[:, None]
        left = left_over(x, Control(size))
        given, curved = (_given(x, y, groups, Control(size, degree), seed) for degree in (1, 2))
    bins = None
    columns = [name for name in levels(points) if points[name].notna().all()]
    if main and columns and len(points) > 3:
        names = [f"t = {(int(re.sub(r'.*_', '', name)) + 0.5) / len(columns):.2f}" for name in columns]
        try:
            losses = points[columns].to_numpy(dtype=np.float64)
            bins = compare_bins(x, losses, y, names=names, groups=groups, kinds=("pearson", "spearman"), seed=seed)
        except TableError:
            bins = None
    return Score(label, main, points, found, given, curved, left, bins)


def _given(x: np.ndarray, y: np.ndarray, groups: Groups, control: Control, seed: int) -> Correlation | None:
    """None where so few runs, or losses that follow size so closely, leave nothing."""
    try:
        return correlate(x, y, groups=groups, control=control, seed=seed)
    except TableError:
        return None


def _points(tables: StudyTables, elo: dict[str, EloTable]) -> dict[str, tuple[pd.DataFrame, str, bool]]:
    """Per score: its points, the label of its axis, whether it is a main one."""
    results = tables.results
    if results.empty:
        return {}
    base = results[["name", "depth", "formulation"]].assign(
        x=values(results, "val_loss"),
        seed=values(results, "seed"),
        train_flops=values(results, "train_flops"),
        **{column: values(results, column) for column in levels(results)},
    )
    out: dict[str, tuple[pd.DataFrame, str, bool]] = {}

    def add(name: str, scores: pd.DataFrame, label: str, main: bool) -> None:
        points = base.merge(scores, on="name").dropna(subset=["x", "y"])
        if len(points):
            out[name] = (points.reset_index(drop=True), label, main)

    def column(name: str, source: str, label: str, main: bool) -> None:
        if values(results, source).notna().any():
            ends = {"low": values(results, f"{source}_low"), "high": values(results, f"{source}_high")}
            add(name, pd.DataFrame({"name": results["name"], "y": values(results, source), **ends}), label, main)

    strict, graded = ("rate", "low", "high"), ("graded", "graded_low", "graded_high")
    if len(tables.geneval):
        overall = tables.geneval[tables.geneval["task"] == "overall"]
        add("GenEval proxy", _renamed(overall, strict), "GenEval proxy (share passed)", True)
        add("graded score", _renamed(overall, graded), "GenEval proxy, graded (0 to 1)", True)
    else:
        column("GenEval proxy", "geneval", "GenEval proxy (share passed)", True)
        column("graded score", "geneval_graded", "GenEval proxy, graded (0 to 1)", True)
    if elo:
        called, table = next(iter(elo.items()))
        rows = [{"name": r.name, "y": r.elo, "low": r.low, "high": r.high} for r in table.ratings]
        add("Elo", pd.DataFrame(rows), f"Elo ({called})" if len(elo) > 1 else "Elo", True)
    else:
        column("Elo", "elo", "Elo", True)
    column("CompBench proxy", "compbench", "CompBench proxy (0 to 1)", True)
    for task, part in tables.geneval.groupby("task", sort=False) if len(tables.geneval) else ():
        if task != "overall":
            plain = str(task).replace("_", " ")
            add(plain, _renamed(part, strict), f"{plain} (share passed)", False)
            add(f"{plain}, graded", _renamed(part, graded), f"{plain}, graded (0 to 1)", False)
    for name in results.columns:
        if str(name).startswith("compbench_"):
            plain = f"CompBench {str(name).removeprefix('compbench_').replace('_', ' ')}"
            column(plain, str(name), f"{plain} (0 to 1)", False)
    return out


def _renamed(frame: pd.DataFrame, columns: tuple[str, str, str]) -> pd.DataFrame:
    new = {key: values(frame, column) for key, column in zip(("y", "low", "high"), columns, strict=True)}
    return pd.DataFrame({"name": frame["name"], **new})
