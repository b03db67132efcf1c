"""Plans of the paper's sizes on pods of 256 devices: docs/plan.md's table.

    python -m benchmarks.plan_table --out docs/results/plans.csv

Every depth at 256 and 1024 pixels, batch 4096, on each pod: the best of the first layouts by counting that the compiler
says fits. Needs the compilers of ``mmdit plan``. A TPU program takes minutes to compile, so all of it hours; answers
are kept (--memo), and a second call goes on where the first was stopped. The CSV is written anew after each row.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from launch.plan import planned_run
from launch.planning.ask import ask, default_memo
from launch.planning.request import Request
from launch.planning.search import search
from launch.planning.target import parse

DEPTHS = (15, 18, 21, 24, 30, 38)
TOPOLOGIES = ("v5p:8x8x4", "v6e:16x16", "tpu7x:4x4x8", "h100:32x8")
RESOLUTIONS = (256, 1024)
COLUMNS = {
    "peak_gib": "peak GiB",
    "hbm_gib": "of GiB",
    "step_seconds": "step s",
    "mfu_bound": "MFU at most",
    "bound": "bound by",
}


def row(topology: str, depth: int, resolution: int, tries: int, memo: Path) -> dict[str, Any]:
    """The best plan of a size on a pod, as a row of the table."""
    from launch import cli

    words = ["plan", "--topology", topology, "--depth", str(depth), "--resolution", str(resolution)]
    run, target = planned_run(cli.parser("plan").parse_args(words)), parse(topology)

    def say(line: str) -> None:
        print(f"{topology} depth {depth} {resolution} px: {line}", file=sys.stderr, flush=True)

    plan, _ = search(run, target, lambda laid: ask(Request(laid, target), memo), tries, say)
    found: dict[str, Any] = {"topology": topology, "pixels": resolution, "depth": depth, "fits": plan is not None}
    if plan is None:
        return found
    axes = " ".join(f"{name}={size}" for name, size in plan["mesh"].items() if size > 1)
    found |= {"layout": axes, "remat": plan["remat"], "accumulation": plan["accumulation"]}
    found |= {name: plan[name] for name in COLUMNS}
    return found | {"days": plan["step_seconds"] * 500_000 / 86_400}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    parser.add_argument("--memo", type=Path, default=default_memo())
    parser.add_argument("--tries", type=int, default=3, help="compilations for a row at most")
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--resolutions", type=int, nargs="+", default=RESOLUTIONS)
    args = parser.parse_args()
    rows = []
    for topology in args.topologies:
        for resolution in args.resolutions:
            for depth in args.depths:
                rows.append(row(topology, depth, resolution, args.tries, args.memo))
                pd.DataFrame(rows).to_csv(args.out, index=False, float_format="%.4g")
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
