"""The programs that are measured, as ``mmdit plan`` compiles them, and what the compiler's text of them allows."""

from __future__ import annotations

import dataclasses
from typing import Any

from launch.planning.hlo import count
from launch.planning.links import gpu_fabric
from launch.planning.measure import opaque_flops
from launch.planning.paper import planned_run
from launch.planning.roofline import roofline
from mmdit_jax.chips import chip_of
from mmdit_jax.config import Run

TOP = 15


def run_of(job: dict[str, Any], batch: int, *, sampling: bool = False) -> Run:
    """The run of the paper's scaling study (see ``mmdit plan``) in a job's shape."""
    return planned_run(
        job["depth"],
        batch=batch,
        resolution=job["resolution"],
        text_tokens=job["text_tokens"],
        steps=job["steps"] if sampling else None,
        sampling=sampling,
        overrides=[f"{field}={value}" for field, value in job["overrides"].items()],
    )


def bound(text: str, kind: str, rates: dict[str, float] | None) -> dict[str, Any] | None:
    """The least time of a compiled program's kernels one after the other, at the rates measured; costliest first.

    None for devices without a data sheet, whose programs are not read, and where no rates were measured.
    """
    chip = chip_of(kind)
    if chip is None or rates is None or chip.platform == "tpu":
        return None
    chip = dataclasses.replace(chip, bf16_flops=rates["flops_per_second"], hbm_bandwidth=rates["bytes_per_second"])
    try:
        counts = count(text).supply(opaque_flops)
    except Exception as error:  # a compiler whose text is not known: what was measured stands without it
        return {"error": f"{type(error).__name__}: {error}"}
    found = roofline(counts, chip, gpu_fabric(1, 1), top=TOP)
    return {
        "seconds": found.device_seconds,
        "compute_seconds": found.compute_seconds,
        "memory_seconds": found.hbm_seconds,
        "hbm_bytes": counts.hbm_bytes,
        "costly": [dataclasses.asdict(item) for item in found.costly],
        "uncounted_loops": list(counts.uncounted_loops),
    }
