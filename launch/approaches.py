"""``mmdit fit --law envelope | isoflop | ladders``: approaches 1 and 2, a law for each ratio of data to parameters."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from launch.doubts import few_draws
from launch.fit_text import has_floor, parameter_lines
from launch.tables import EXIT_OK, ends, text_table
from scaling.errors import TableError
from scaling.tables import numbers

if TYPE_CHECKING:
    from scaling.allocation import Allocation
    from scaling.isoflop import IsoFlops
    from scaling.isoflop_budget import Budget
    from scaling.ladders import Ladder

OPTIONS = ("at", "compare", "out", "floor", "huber", "starts", "resample", "tolerance")
"""Options of ``mmdit fit`` that not every law takes."""
TAKEN = {"envelope": ("floor",), "isoflop": ("tolerance",), "ladders": ("at", "huber", "tolerance")}
"""Those of OPTIONS that each approach takes."""
APPROACHES = {
    "envelope": "best sizes along the frontier of training curves (approach 1; --group names the run)",
    "isoflop": "best sizes at equal compute, by parabolas (approach 2, with its own bias)",
    "ladders": "a law of compute for each ratio of D to N",
}


def run_approach(
    table: pd.DataFrame, args: argparse.Namespace, loss: str, counted: dict[str, str], doubts: Sequence[str]
) -> int:
    """Fit and print one of APPROACHES; ``counted`` says what C, N and D are counted in, ``doubts`` are of the rows.

    Raises TableError as the fits do, for an option that the approach doesn't take, and where D is given in tokens but
    is not there.
    """
    _check(args)
    table, dropped = without_highest(table, loss, args.drop_highest)
    if args.tokens_per_image is not None:
        table = table.assign(**{args.d: numbers(table, args.d, positive=True) * args.tokens_per_image})
    if args.law == "isoflop" and args.d not in table.columns:
        counted = {**counted, "D": "C / 6N"}
    run = {"envelope": _envelope, "isoflop": _isoflop, "ladders": _ladders}[args.law]
    told, lines = run(table, args, loss)
    doubts = [*doubts, *few_draws(args.bootstrap)]
    columns = {x: {"column": vars(args)[x.lower()], "unit": counted[x]} for x in ("C", "N", "D")}
    if args.json:
        doubts = [*told.get("doubts", ()), *doubts]
        print(
            json.dumps(
                {"law": args.law, **told, "loss": loss, "columns": columns, "dropped": dropped, "doubts": doubts}
            )
        )
        return EXIT_OK
    print(f"{loss}: {APPROACHES[args.law]}")
    if dropped:
        lines.append(f"left out as outliers (highest losses): rows {', '.join(str(row + 1) for row in dropped)}")
    lines += [f"before you rely on it: {doubt}" for doubt in doubts]
    print("\n".join([*(f"  {x}: {counted[x]}" for x in ("C", "N", "D")), *lines]))
    return EXIT_OK


def without_highest(table: pd.DataFrame, loss: str, count: int) -> tuple[pd.DataFrame, list[int]]:
    """(the table without the ``count`` highest losses, the rows that these were, from 0 on).

    Raises TableError for a negative count, or one that leaves nothing.
    """
    if count < 0:
        raise TableError(f"drop_highest={count}: expected 0 or more")
    losses = numbers(table, loss, allow_missing=True)
    known = int(np.isfinite(losses).sum())
    if known <= count > 0:
        raise TableError(f"drop_highest={count}: of {known} losses none is left; expected fewer")
    dropped = np.sort(np.argsort(-losses, kind="stable")[:count])  # NaN comes last
    return table.drop(index=table.index[dropped]).reset_index(drop=True), [int(row) for row in dropped]


def _check(args: argparse.Namespace) -> None:
    """Raises TableError for the first option that was given and that the approach doesn't take."""
    for name in OPTIONS:
        if name not in TAKEN[args.law] and vars(args)[name] != args.unset[name]:
            takes = ", ".join(f"--{taken}" for taken in TAKEN[args.law])
            raise TableError(f"{name}: --law {args.law} takes no --{name}; of such options it takes {takes}")
    for point in args.points:
        if "C" not in point:
            raise TableError(f"at={point}: C is missing; expected C, as --law ladders is of compute")


def _envelope(table: pd.DataFrame, args: argparse.Namespace, loss: str) -> tuple[dict[str, Any], list[str]]:
    from scaling.envelope import fit_frontier, optimal_sizes

    named = {"compute": args.c, "loss": loss, "run": args.group or "run_id"}
    resampled = {"draws": args.bootstrap, "seed": args.seed}
    law, rows = fit_frontier(table, **named, floor=bool(args.floor), **resampled)
    sizes = optimal_sizes(table, **named, n=args.n, d=args.d if args.d in table.columns else None, **resampled)
    lines = [f"the frontier: {len(rows)} validations of {law.groups} runs, L = {law.kind.equation}"]
    lines += parameter_lines(law)
    lines += [f"not identifiable: {reason}" for reason in law.reasons]
    return {"frontier": law.to_json(), "allocation": sizes.to_json()}, lines + allocation_lines(sizes)


def _isoflop(table: pd.DataFrame, args: argparse.Namespace, loss: str) -> tuple[dict[str, Any], list[str]]:
    from scaling.isoflop import isoflops

    found = isoflops(
        table,
        compute=args.c,
        n=args.n,
        d=args.d if args.d in table.columns else None,
        loss=loss,
        run=args.group,
        tolerance=0.1 if args.tolerance is None else args.tolerance,
        draws=args.bootstrap,
        bias_draws=min(args.bootstrap, 200),
        seed=args.seed,
    )
    return found.to_json(), isoflop_lines(found)


def _ladders(table: pd.DataFrame, args: argparse.Namespace, loss: str) -> tuple[dict[str, Any], list[str]]:
    from scaling.ladders import compare, ladders

    found = ladders(
        table,
        n=args.n,
        d=args.d,
        compute=args.c,
        loss=loss,
        group=args.group,
        tolerance=0.15 if args.tolerance is None else args.tolerance,
        huber=args.huber,
        draws=args.bootstrap,
        seed=args.seed,
    )
    points = [point["C"] for point in args.points]
    predicted = {compute: compare(found, compute) for compute in points}
    lines = [text_table(pd.DataFrame([_ladder(ladder) for ladder in found]))]
    for compute, rows in predicted.items():
        lines.append(f"at C = {compute:.4g}:")
        for row in rows:
            lines.append(
                f"  D/N = {row.ratio:.4g}: {row.loss:.5g} {ends(row.low, row.high, digits=5)}, the lowest in "
                f"{100 * row.certainty:.0f} % of resamples"
                + (f"; {row.beyond:.3g} times beyond" * (row.beyond > 1.001))
            )
    lines += [f"D/N = {ladder.ratio:.4g}: {doubt}" for ladder in found for doubt in ladder.doubts]
    told: dict[str, Any] = {"ladders": [ladder.to_json() for ladder in found]}
    if predicted:
        told["at"] = [{"C": c, "ladders": [row.to_json() for row in rows]} for c, rows in predicted.items()]
    return told, lines


def allocation_lines(found: Allocation) -> list[str]:
    """N_opt and D_opt as lines, and what to know of them."""
    optima = f"{found.points} optim{'um' if found.points == 1 else 'a'}"
    lines = [f"N_opt = k_n·C^a{', D_opt = k_d·C^b' if 'b' in found.params else ''} through {optima}"]
    lines += [
        _value(name, value, found.intervals[name]) for name, value in found.params.items() if math.isfinite(value)
    ]
    return lines + [f"before you rely on it: {doubt}" for doubt in found.doubts]


def isoflop_lines(found: IsoFlops) -> list[str]:
    """A row a budget, the laws through them, the method's own bias."""
    lines = [text_table(pd.DataFrame([_budget(budget) for budget in found.budgets]))]
    lines += allocation_lines(found.allocation)
    if found.bias is not None:
        bias = found.bias
        shares = ", ".join(f"{100 * value.value:+.1f} %" for value in bias.sizes if math.isfinite(value.value))
        lines.append(
            f"the method's own bias (a joint law without noise on the same grid): N_opt by {shares or 'unknown'}; "
            f"the exponent by {bias.exponent.value:+.3f} [{bias.exponent.low:+.3f}, {bias.exponent.high:+.3f}] "
            f"({bias.exponent_of_method:.3f} for {bias.exponent_of_law:.3f})"
        )
    return lines + [f"before you rely on it: {doubt}" for doubt in found.doubts]


def _ladder(ladder: Ladder) -> dict[str, str]:
    row = {"D/N": f"{ladder.ratio:.4g}", "rows": str(ladder.rows), "computes": str(ladder.steps)}
    if ladder.law is None:
        return {**row, "a": "", "b": "", "floor": ""}
    for name in ("a", "b", "floor"):
        row[name] = f"{ladder.law.params[name]:.4g} {ends(*ladder.law.intervals[name], digits=4)}"
    return row if has_floor(ladder.law) else {**row, "floor": "none fitted"}


def _budget(budget: Budget) -> dict[str, str]:
    def shown(value: float) -> str:
        return f"{value:.4g}" if math.isfinite(value) else ""

    interval = f"[{budget.low:.4g}, {budget.high:.4g}]" if math.isfinite(budget.low) else ""
    return {
        "C": shown(budget.compute),
        "rows": str(budget.rows),
        "sizes": str(budget.sizes),
        "N_opt": shown(budget.n_opt),
        "95 % interval": interval,
        "D_opt": shown(budget.d_opt),
        "loss": shown(budget.loss),
    }


def _value(name: str, value: float, interval: tuple[float, float]) -> str:
    return f"{name:>6} = {value:<12.6g} 95 % interval {ends(*interval)}"
