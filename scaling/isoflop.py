"""The best size at each of a few budgets: vertices of parabolas through runs of equal compute (approach 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from scaling.allocation import Allocation, allocation
from scaling.errors import TableError
from scaling.isoflop_bias import Bias, bias_of
from scaling.isoflop_budget import MIN_SIZES, Budget, budget_index, find_budget, pooled_noise, shape
from scaling.isoflop_grid import Grid, at_equal_compute
from scaling.parabola import Parabola
from scaling.plain import plain
from scaling.resample import small_sample_factor
from scaling.tables import labels, numbers, require

SCALES = ("log", "loss")


@dataclass(frozen=True)
class IsoFlops:
    """Approach 2: budgets from the least on, the power laws through their vertices, and the method's own bias."""

    budgets: tuple[Budget, ...]
    allocation: Allocation
    bias: Bias | None
    """What the method makes of a joint law without noise on the same grid; None where that could not be fitted."""
    of: str
    noise: float
    """Standard deviation of (log) losses about the parabolas, pooled over the budgets."""
    freedom: int
    """Degrees of freedom of ``noise``."""
    outside: int
    """Rows that belong to no budget."""
    tolerance: float
    level: float
    doubts: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain numbers, None where undefined."""
        return {
            "budgets": [budget.to_json() for budget in self.budgets],
            "allocation": self.allocation.to_json(),
            "bias": None if self.bias is None else self.bias.to_json(),
            **{name: plain(getattr(self, name)) for name in ("of", "noise", "freedom", "outside", "tolerance")},
            "level": self.level,
            "doubts": list(self.doubts),
        }


def isoflops(
    table: pd.DataFrame,
    *,
    compute: str,
    n: str,
    d: str | None = None,
    loss: str,
    run: str | None = None,
    budgets: Sequence[float] = (),
    tolerance: float = 0.1,
    of: str = "log",
    draws: int = 1000,
    bias_draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> IsoFlops:
    """Fit a parabola in log N to the losses of each budget, and power laws to the vertices (Hoffmann et al. 2022, 3.2).

    A budget is rows whose log compute lies within ``tolerance`` of a middle: of those given as ``budgets``, or of
    those that hold the most sizes. Its losses are brought to its mean compute by a slope that all budgets share.
    ``of``: "log" (log loss) or "loss" is what the parabola is of. Without ``d`` the data are taken to be C / 6N.
    ``run`` names rows that share a fate (one run's checkpoints in several budgets).

    Noise is taken to be alike in all budgets and pooled, since one has few rows to tell it by. Intervals of a vertex
    are Fieller's. Those of the laws are of resampled residuals, stretched by Student's t and by how much farther than
    their errors the vertices are from the line. ``bias_draws`` resamples of a joint law give ``bias`` its intervals;
    −1 leaves the bias out.

    Raises TableError for absent columns, values that are no positive numbers, a bad option, or no budget.
    """
    require(table, [compute, n, loss, *([d] if d is not None else [])])
    if of not in SCALES:
        raise TableError(f"of={of!r}: expected one of {', '.join(SCALES)}")
    if not 0 < tolerance < 1:
        raise TableError(f"tolerance={tolerance:g}: expected a number between 0 and 1, such as 0.1 for 10 %")
    log_c, log_n, log_l = (np.log(numbers(table, column, positive=True)) for column in (compute, n, loss))
    log_d = np.log(numbers(table, d, positive=True)) if d is not None else log_c - log_n - np.log(6)
    index = budget_index(log_c, log_n, budgets, tolerance)
    if index.max(initial=-1) < 0:
        raise TableError(
            f"{compute}: no {MIN_SIZES} sizes within {tolerance:g} of one log compute; expected budgets shared by "
            "runs of several sizes"
        )
    groups = np.arange(len(table)) if run is None else labels(table, run).astype(str)
    values = log_l if of == "log" else np.exp(log_l)
    parabolas = [Parabola.of(np.flatnonzero(index == key), log_n) for key in range(index.max() + 1)]
    values = at_equal_compute(values, log_c, parabolas)
    noise, freedom = pooled_noise([parabola for parabola in parabolas if not shape(parabola, values)[0]], values)
    found = [find_budget(parabola, values, log_c, log_d, of, noise, freedom, level) for parabola in parabolas]
    used = [k for k, budget in enumerate(found) if not budget.reason]
    doubts = _doubts(found, index, d)
    grid = Grid(
        tuple(parabolas[k] for k in used),
        log_d,
        np.log([found[k].compute for k in used]),
        # Without anything to tell noise by, all vertices count alike.
        np.array([found[k].error ** -2.0 if freedom else 1.0 for k in used]),
    )
    bias = None
    if bias_draws >= 0 and used:
        try:
            bias = bias_of(
                grid, parabolas, log_c, log_n, np.exp(log_l), of_log=of == "log", groups=groups, draws=bias_draws,
                level=level, seed=seed,
            )  # fmt: skip
        except TableError as error:
            doubts.append(f"the method's own bias is not known, since no joint law could be fitted ({error})")
    return IsoFlops(
        budgets=tuple(found),
        allocation=_laws(grid, values, groups, freedom, draws, level, np.random.default_rng(seed)),
        bias=bias,
        of=of,
        noise=noise,
        freedom=freedom,
        outside=int((index < 0).sum()),
        tolerance=tolerance,
        level=level,
        doubts=tuple(doubts),
    )


def _laws(
    grid: Grid,
    values: np.ndarray,
    groups: np.ndarray,
    freedom: int,
    draws: int,
    level: float,
    rng: np.random.Generator,
) -> Allocation:
    budgets = len(grid.parabolas)
    doubts, widen = [], 1.0
    lines, samples = np.full((2, 2), np.nan), np.zeros((0, 2, 2))
    if budgets < 2:
        doubts.append(f"{budgets} budgets with a vertex: no exponent; expected 2 or more")
    else:
        vertices = grid.vertices(values)
        lines = grid.lines(vertices)
        if budgets == 2:
            doubts.append("2 budgets with a vertex cannot check a power law")
        if freedom and draws > 0:
            samples = grid.lines(grid.vertices(grid.redrawn(values, groups, draws, rng)))
            misfit = grid.misfit(vertices)
            widen = small_sample_factor(freedom + 1, 1, level) * misfit
            if misfit > 1.5:
                doubts.append(f"the vertices lie {misfit:.2g} times as far from the power law as their errors explain")
        elif not freedom:
            doubts.append("nothing tells noise: every budget has as many runs as a parabola has coefficients")
    found = allocation(
        "isoflop",
        grid.middles if budgets else np.array([np.nan]),
        lines,
        samples,
        centre=grid.centre if budgets else float("nan"),
        sizes=budgets,
        level=level,
        widen=widen,
        doubts=tuple(doubts),
    )
    return replace(found, points=budgets)


def _doubts(found: Sequence[Budget], index: np.ndarray, d: str | None) -> list[str]:
    doubts = [f"budget {budget.compute:.3g} is left out: {budget.reason}" for budget in found if budget.reason]
    if d is None:
        doubts.append("no column of data: D was taken to be C / 6N")
    if (index < 0).any():
        doubts.append(f"{int((index < 0).sum())} of {len(index)} rows belong to no budget")
    return doubts
