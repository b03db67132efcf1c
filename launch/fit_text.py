"""What ``mmdit fit`` prints: a law, the loss at a point, forms compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from launch.tables import ends, text_table

if TYPE_CHECKING:
    from scaling.hold_out import HoldOut
    from scaling.laws import Law


def law_text(law: Law, loss: str, counted: Mapping[str, Mapping[str, str]]) -> str:
    """The law as lines: what of what, each parameter with its interval, and what is not known.

    ``counted``: column and unit of each abscissa.
    """
    lines = [f"{loss} = {law.kind.equation}   ({law.rows} rows, {law.groups} groups)"]
    lines += [f"  {x}: {counted[x]['unit']}" for x in law.kind.abscissae]
    lines += parameter_lines(law)
    lines.append(
        f"intervals by {law.interval}; {law.draws} bootstraps of {law.bootstrap}; Huber delta {law.huber:g}; "
        f"objective {law.objective:.6g}; condition {law.identification.condition:.3g}; "
        f"a run misses by {100 * law.run_noise:.2g} %"
    )
    if law.dropped:
        lines.append(f"left out as outliers (highest losses): rows {', '.join(str(row + 1) for row in law.dropped)}")
    return "\n".join(lines + [f"not identifiable: {reason}" for reason in law.reasons])


def parameter_lines(law: Law) -> list[str]:
    """A line a parameter."""
    return [
        f"{name:>6} = none fitted"
        if name == law.kind.floor and not has_floor(law)
        else f"{name:>6} = {value:<12.6g} {100 * law.level:g} % interval {ends(*law.intervals[name])}"
        for name, value in law.params.items()
    ]


def has_floor(law: Law) -> bool:
    """Whether an irreducible loss was fitted; one that was is above 0."""
    return law.params[law.kind.floor] > 0


def point_text(found: dict[str, Any]) -> str:
    """One line a point of ``--at``."""
    at = ", ".join(f"{x} = {found[x]:.4g}" for x in ("C", "N", "D") if x in found)
    law, run = (ends(*found[name], digits=5) for name in ("law", "new_run"))
    beyond = f"; {'; '.join(found['beyond'])}" if found["beyond"] else ""
    return f"at {at}: {found['loss']:.5g}, law {law}, a new run {run}{beyond}"


def compare_text(found: HoldOut) -> str:
    """The forms, best first."""
    rows = pd.DataFrame(found.table()).map(_cell)
    noise = f"noise of a run: {100 * found.noise:.2g} % (from {found.noise_from})" if found.noise_from else ""
    lines = ["the largest runs, foretold from the rest (errors in %):", text_table(rows), noise]
    return "\n".join([line for line in lines if line] + [f"before you rely on it: {doubt}" for doubt in found.doubts])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)
