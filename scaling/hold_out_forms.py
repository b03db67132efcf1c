"""Forms that may predict the largest runs, and how far each is off without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from scaling.clusters import clusters
from scaling.errors import TableError
from scaling.law_kinds import DATA, JOINT, PARAMETERS, POWER, Kind
from scaling.laws import fit_law
from scaling.plain import plain

LAST, LINE = "last value", "line through the last two"
"""Forms without a fit: the mean loss of the largest configuration that is left, and a straight line in log C and log L
through those of the two largest."""
COLUMNS = ("C", "N", "D", "loss")


@dataclass(frozen=True)
class Attempt:
    """One form without the ``k`` largest configurations."""

    k: int
    fitted: int
    """Rows that it was fitted to."""
    predicted: int
    """Runs that it was asked for."""
    error: float
    """Mean |log(predicted / observed)|, in percent; NaN where it could not be fitted."""
    signed: float
    """Mean log(predicted / observed), in percent: above 0 where the law promises too high a loss."""
    inside: float
    """Share of these runs within the law's interval of a new run; NaN for forms without one."""
    reason: str
    """Why there is none; empty where there is."""
    doubts: tuple[str, ...]
    """What the law left open, fitted to so few."""
    noise: float
    """The law's own ``run_noise``; NaN for forms without one."""
    runs: np.ndarray = field(repr=False)
    """Rows that were predicted."""
    misses: np.ndarray = field(repr=False)
    """log(predicted / observed) of each; empty where it could not be fitted."""

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""
        names = ("k", "fitted", "predicted", "error", "signed", "inside", "reason")
        return {**{name: plain(getattr(self, name)) for name in names}, "doubts": list(self.doubts)}


@dataclass(frozen=True)
class Table:
    """Rows of a table by configuration, the ones with the least compute being 0."""

    columns: Mapping[str, np.ndarray]
    """C and, where known, N and D, ``[rows]``."""
    loss: np.ndarray
    group: np.ndarray
    configuration: np.ndarray
    last: np.ndarray
    """Whether a row is its group's last (of most compute), which is what is predicted."""

    @property
    def configurations(self) -> int:
        """How many there are."""
        return int(self.configuration.max()) + 1

    @property
    def compute(self) -> tuple[float, ...]:
        """Of each configuration, the geometric mean of its runs' ends."""
        logs = np.log(self.columns["C"])
        own = (logs[self.last & (self.configuration == number)].mean() for number in range(self.configurations))
        return tuple(float(np.exp(value)) for value in own)

    def split(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of rows (to fit, to predict) without the ``k`` largest configurations."""
        out = self.configuration >= self.configurations - k
        return np.flatnonzero(~out), np.flatnonzero(out & self.last)

    def noise(self) -> float:
        """Standard deviation of log losses of runs that are alike in every column, pooled; NaN where none are."""
        keys = [clusters(np.log(values[self.last]), 1e-6) for values in self.columns.values()]
        _, cell = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
        cell = cell.reshape(-1)
        logs, count = np.log(self.loss[self.last]), np.bincount(cell)
        freedom = int((count - 1).sum())
        if freedom == 0:
            return float("nan")
        deviation = logs - (np.bincount(cell, weights=logs) / count)[cell]
        return float(np.sqrt((deviation**2).sum() / freedom))


def read(columns: Mapping[str, np.ndarray], groups: np.ndarray | None, tolerance: float) -> Table:
    """Check ``columns`` and find the configurations: log compute that is the same within ``tolerance``.

    A group's compute is that of its last row. Raises TableError for what ``leave_largest_out`` says.
    """
    unknown = sorted(set(columns) - set(COLUMNS))
    missing = sorted({"C", "loss"} - set(columns))
    if unknown or missing:
        raise TableError(f"columns={sorted(columns)}: expected C and loss, and N and D where they are known")
    if not 0 < tolerance < 1:
        raise TableError(f"tolerance={tolerance:g}: expected a number between 0 and 1, such as 0.01 for 1 %")
    clean = {name: np.asarray(columns[name], dtype=np.float64) for name in COLUMNS if name in columns}
    rows = len(clean["C"])
    if rows == 0:
        raise TableError("C: no rows")
    for name, values in clean.items():
        if values.shape != (rows,):
            raise TableError(f"{name}: {len(values)} rows; expected {rows}, as C has")
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise TableError(f"{name}={values[row]:g} (row {row + 1}): expected a finite number above 0")
    group = np.arange(rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    if len(group) != rows:
        raise TableError(f"groups: {len(group)} rows; expected {rows}, as C has")
    most = np.full(int(group.max()) + 1, -np.inf)
    np.maximum.at(most, group, clean["C"])
    # The first of a group's rows that have its most compute: ties within a run count once.
    order = np.lexsort((np.arange(rows), -clean["C"], group))
    last = np.zeros(rows, dtype=bool)
    last[order[np.unique(group[order], return_index=True)[1]]] = True
    loss = clean.pop("loss")
    return Table(clean, loss, group, clusters(np.log(most), tolerance)[group], last)


@dataclass(frozen=True)
class Candidate:
    """A law with or without its floor, or (``kind`` None) one of the naive forms."""

    name: str
    equation: str
    parameters: int
    kind: Kind | None = None
    floor: bool = False

    def attempt(self, table: Table, k: int, *, huber: float, draws: int, level: float, seed: int) -> Attempt:
        """Fit it without the ``k`` largest configurations of ``table``, and predict these."""
        fit, out = table.split(k)
        nan, reason, doubts = float("nan"), "", tuple[str, ...]()
        inside = noise = nan
        observed = np.log(table.loss[out])
        predicted = np.zeros(0)
        try:
            if len(fit) == 0:
                raise TableError(f"all {table.configurations} configurations are left out")
            if self.kind is None:
                predicted = _naive(self.name, table, fit, k, np.log(table.columns["C"][out]))
            else:
                law = fit_law(
                    self.kind, [table.columns[name][fit] for name in self.kind.abscissae], table.loss[fit],
                    floor=self.floor, groups=table.group[fit], huber=huber, draws=draws, level=level, seed=seed,
                )  # fmt: skip
                at = [table.columns[name][out] for name in self.kind.abscissae]
                predicted = np.log(law.predict(*at))
                low, high = law.new_run(*at)
                inside = float(((low <= table.loss[out]) & (table.loss[out] <= high)).mean())
                noise, doubts = law.run_noise, law.reasons
        except TableError as error:
            reason = str(error)
        misses = predicted - observed if len(predicted) else np.zeros(0)
        return Attempt(
            k=k,
            fitted=len(fit),
            predicted=len(out),
            error=100 * float(np.abs(misses).mean()) if len(misses) else nan,
            signed=100 * float(misses.mean()) if len(misses) else nan,
            inside=inside,
            reason=reason,
            doubts=doubts,
            noise=noise,
            runs=out,
            misses=misses,
        )


def candidates(table: Table) -> list[Candidate]:
    """Every form that the table's columns allow."""
    found = []
    for kind in (POWER, PARAMETERS, DATA, JOINT):
        if all(name in table.columns for name in kind.abscissae):
            for floor in (True, False):
                name = f"{kind.name}, floor" if floor else kind.name
                equation = kind.equation if floor else kind.equation.removeprefix(f"{kind.floor} + ")
                found.append(Candidate(name, equation, 2 * len(kind.abscissae) + floor, kind, floor))
    return [*found, Candidate(LAST, "L of the largest left", 1), Candidate(LINE, "a·C^(−b) through two", 2)]


def _naive(name: str, table: Table, fit: np.ndarray, k: int, log_c: np.ndarray) -> np.ndarray:
    """Log losses at ``log_c`` by the ends of the largest configurations among the rows ``fit``."""
    ends = fit[table.last[fit]]
    largest = table.configurations - k - 1
    x, y = [], []
    for number in (largest, largest - 1):
        own = ends[table.configuration[ends] == number]
        if len(own):
            x.append(float(np.log(table.columns["C"][own]).mean()))
            y.append(float(np.log(table.loss[own]).mean()))
    if name == LAST:
        return np.full(len(log_c), y[0])
    if len(x) < 2:
        raise TableError("1 configuration is left; expected 2 or more for a line")
    line: np.ndarray = y[0] + (y[0] - y[1]) / (x[0] - x[1]) * (log_c - x[0])
    return line
