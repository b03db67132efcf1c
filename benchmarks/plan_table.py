"""Plans of the paper's sizes on pods of 256 devices: docs/plan.md's table.

    python -m benchmarks.plan_table --out docs/results/plans.csv

Every depth at 256 and 1024 pixels, batch 4096, on each pod: the best of the first layouts by counting that the compiler
says fits. Needs the compilers of ``mmdit plan``. A TPU program takes one to three minutes to compile, so all of it
hours: every row gets its first layout before any gets its second, the CSV is written anew after each compilation, and
answers are kept (--memo), so that a second call goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import command, markdown
from launch.planning.ask import ask, default_memo
from launch.planning.layout import layout_in
from launch.planning.paper import planned_run
from launch.planning.request import Request
from launch.planning.search import search
from launch.planning.target import Target, parse
from mmdit_jax.config import Run

DEPTHS = (15, 18, 21, 24, 30, 38)
TOPOLOGIES = ("v5p:8x8x4", "v6e:16x16", "tpu7x:4x4x8", "h100:32x8")
RESOLUTIONS = (256, 1024)
STEPS = 500_000
COLUMNS = (
    *("peak_gib", "hbm_gib", "step_seconds", "compute_seconds", "hbm_seconds", "interconnect_seconds"),
    *("mfu_bound", "bound"),
)

Compile = Callable[[Run, Target], dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """What a row is of."""

    topology: str
    pixels: int
    depth: int


def row(size: Size, tries: int, compile: Compile) -> dict[str, Any]:
    """The best plan of a size, after so many compilations at most, as a row of the table."""
    run, target = planned_run(size.depth, resolution=size.pixels), parse(size.topology)
    plan, tried = search(run, target, lambda laid: compile(laid, target), tries, lambda _: None)
    compiled = sum(item.plan is not None for item in tried)
    found: dict[str, Any] = {**vars(size), "compiled": compiled, "fits": plan is not None}
    if plan is None:
        return found
    found |= {"layout": str(layout_in(plan))} | {name: plan[name] for name in COLUMNS}
    return found | {"days": plan["step_seconds"] * STEPS / 86_400}


def tables(sizes: Sequence[Size], tries: int, compile: Compile) -> Iterator[pd.DataFrame]:
    """The table after each row that was looked at; all rows once with one compilation, then with two, and so on."""
    rows: dict[Size, dict[str, Any]] = {}
    for allowed in range(1, tries + 1):
        for size in sizes:
            rows[size] = row(size, allowed, compile)
            yield pd.DataFrame([rows[size] for size in sizes if size in rows])


def told(table: pd.DataFrame) -> list[str]:
    """Lines of a Markdown table with what matters of each row."""
    columns = ("pod", "pixels", "depth", "layout", "GiB a device", "step at best", "bound by", "MFU at most", "days")
    rows = []
    for found in table.to_dict("records"):
        cells = [str(found["topology"]), str(found["pixels"]), str(found["depth"])]
        if found["fits"]:
            cells += [found["layout"], f"{found['peak_gib']:.1f} of {found['hbm_gib']:.1f}"]
            cells += [f"{found['step_seconds']:.3f} s", found["bound"], f"{100 * found['mfu_bound']:.0f} %"]
            cells += [f"{found['days']:.1f}"]
        else:
            cells += [f"none of {found['compiled']} fits", *["–"] * 5]
        rows.append(cells)
    return markdown.table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    parser.add_argument("--memo", type=Path, default=default_memo())
    parser.add_argument("--tries", type=int, default=3, help="compilations for a row at most (%(default)s)")
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--resolutions", type=int, nargs="+", default=RESOLUTIONS)
    args = parser.parse_args()

    def compile(run: Run, target: Target) -> dict[str, Any]:
        plan = ask(Request(run, target), args.memo)
        if not plan["memoised"]:
            at_best = f", {plan['step_seconds']:.3f} s at best" if plan["fits"] else ""
            result = f"{plan['peak_gib']:.1f} of {plan['hbm_gib']:.1f} GiB{at_best}"
            mesh = f"{plan['mesh']} remat {plan['remat']} accumulation {plan['accumulation']}"
            print(
                f"{plan['topology']} depth {plan['depth']} latents of {plan['latent']}: {mesh}: {result}",
                file=sys.stderr,
            )
        return plan

    table = pd.DataFrame()
    sizes = [Size(*what) for what in itertools.product(args.topologies, args.resolutions, args.depths)]
    for table in tables(sizes, args.tries, compile):
        table.to_csv(args.out, index=False, float_format="%.4g")
    print("\n".join(told(table)))


if __name__ == "__main__":
    command.run(main)
