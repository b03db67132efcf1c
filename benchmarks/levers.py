"""What each lever on memory saves and costs, by the compiler: docs/levers.md's tables.

    python -m benchmarks.levers --out docs/results/levers.csv

The training step is compiled as it is, and with each lever alone, for one H100 or another ``--topology``, by the
machinery of ``mmdit plan``, whose compilers this needs; products in eight bits need qwix. What a run would do of itself
goes with a lever: on GPUs a policy that recomputes products brings scanned blocks, where they are unrolled else. All
figures are read from compiled programs: memory is the compiler's assignment of buffers, time is the bound of the
roofline. No device was measured. Answers are kept (--memo), and the CSV is written anew after each row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import command
from launch.planning.ask import ask, default_memo
from launch.planning.paper import planned_run
from launch.planning.request import Request
from launch.planning.target import parse
from mmdit_jax.config import Run
from mmdit_jax.config_values import overridden
from mmdit_jax.errors import unknown
from mmdit_jax.models.products import check_products

BASE = "none"
LEVERS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "remat dots": ("model.remat=dots",),
    "remat attention": ("model.remat=attention",),
    "remat full": ("model.remat=full",),
    "blocks scanned": ("model.scan=True",),
    "dots, scanned": ("model.remat=dots", "model.scan=True"),
    "moments bfloat16": ("optimizer.moments=bfloat16",),
    "EMA bfloat16": ("optimizer.ema_dtype=bfloat16",),
    "accumulation 2": ("hardware.accumulation=2",),
    "accumulation 4": ("hardware.accumulation=4",),
    "offload EMA": ("hardware.offload=('ema',)",),
    "offload moments": ("hardware.offload=('optimizer',)",),
    "products int8": ("model.products=int8",),
    "products fp8": ("model.products=fp8",),
    "dots, 16 bits": ("model.remat=dots", "optimizer.moments=bfloat16", "optimizer.ema_dtype=bfloat16"),
    "full, all offloaded": ("model.remat=full", "hardware.offload=('optimizer','ema')"),
}
"""Fields of the run that each sets, as ``mmdit plan --set`` takes them."""
RATIOS = {"flops": "device_flops", "hbm": "hbm_bytes", "step": "step_seconds"}


def pulled(run: Run, lever: str) -> Run:
    """``run`` with a lever."""
    return overridden(run, LEVERS[lever])


def row(lever: str, plan: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """A lever's plan beside that of the run without: a row of the table, of one device.

    What a compiler that refuses a program for its size does not say is missing, as are ratios to it.
    """
    found = {"lever": lever, "fits": plan["fits"], "peak_gib": plan["peak_gib"]}
    found["saved_gib"] = base["peak_gib"] - plan["peak_gib"]
    if "step_seconds" not in plan:
        return found
    found |= {name: plan[name] for name in ("argument_gib", "temporary_gib", "host_gib")}
    found |= {"tflops": plan["device_flops"] / 1e12, "hbm_gb": plan["hbm_bytes"] / 1e9}
    found |= {"host_gb": plan["host_bytes"] / 1e9}
    found |= {name: plan[name] for name in ("step_seconds", "mfu_bound", "bound")}
    return found | {f"{name}_ratio": plan[key] / base[key] for name, key in RATIOS.items() if key in base}


def table(levers: Sequence[str], compile: Callable[[str], dict[str, Any]], out: Path) -> pd.DataFrame:
    """Rows of the levers, each written to ``out`` (CSV) once ``compile`` has its plan; the base comes first."""
    base, rows = compile(BASE), []
    for lever in (BASE, *(name for name in levers if name != BASE)):
        rows.append(row(lever, base if lever == BASE else compile(lever), base))
        pd.DataFrame(rows).to_csv(out, index=False, float_format="%.4g")
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    parser.add_argument("--topology", default="h100:1x1")
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--batch", type=int, default=32, help="images a step, on all devices")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--fsdp", type=int, default=1, help="devices that the state is spread over, in every row")
    parser.add_argument("--only", nargs="+", default=list(LEVERS), metavar="LEVER", help="these rows, and the base")
    parser.add_argument("--memo", type=Path, default=default_memo())
    args = parser.parse_args()
    for name in args.only:
        if name not in LEVERS:
            unknown("only", name, list(LEVERS))
    run = planned_run(
        args.depth, batch=args.batch, resolution=args.resolution, overrides=[f"hardware.fsdp={args.fsdp}"]
    )
    target = parse(args.topology)
    for name in args.only:  # before an hour of compiling
        check_products(pulled(run, name).model)

    def compiled(lever: str) -> dict[str, Any]:
        plan = ask(Request(pulled(run, lever), target), args.memo)
        print(f"{lever}: {plan['peak_gib']:.2f} GiB of {plan['hbm_gib']:.2f}", flush=True)
        return plan

    print(table(args.only, compiled, args.out).to_string(index=False))


if __name__ == "__main__":
    command.run(main)
