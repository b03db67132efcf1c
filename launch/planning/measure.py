"""From what a compiler said of a program to what a plan says: memory, times, the MFU that they allow."""

from __future__ import annotations

import math
import re
from typing import Any

from launch.planning.hlo import Counts, Opaque, count
from launch.planning.links import Fabric, gpu_fabric, tpu_fabric
from launch.planning.request import Request, described
from launch.planning.roofline import roofline
from mmdit_jax.chips import GIB
from mmdit_jax.config import context_tokens

TOP = 12


def measured(request: Request, said: dict[str, Any]) -> dict[str, Any]:
    """The plan, from the child's answer; plain values.

    ``step_seconds`` and all that follows from it are bounds of the hardware: no real step is faster.
    """
    chip, target = request.target.chip, request.target
    hbm = target.usable_bytes
    plan: dict[str, Any] = {**described(request), "hbm_gib": hbm / GIB}
    if "needs_bytes" in said:
        needs = said["needs_bytes"] / GIB
        return plan | {"fits": False, "peak_gib": needs, "hbm_gib": said["hbm_bytes"] / GIB, **_model_flops(request)}
    counts = count(said["text"])
    temporary = said["temp_bytes"] + scratch_bytes(counts)
    peak = said["argument_bytes"] + said["output_bytes"] - said["alias_bytes"] + temporary
    fabric = _fabric(request, said["places"])
    supplied = counts.supply(opaque_flops)
    found = roofline(supplied, chip, fabric, top=TOP)
    flops = _model_flops(request)
    devices = len(said["places"])
    return plan | {
        "fits": peak <= hbm,
        "peak_gib": peak / GIB,
        "argument_gib": said["argument_bytes"] / GIB,
        "temporary_gib": temporary / GIB,
        "host_gib": said["host_bytes"] / GIB,
        "devices": devices,
        **flops,
        "device_flops": supplied.flops,
        "device_flops_by_type": supplied.flops_by_type,
        "hbm_bytes": supplied.hbm_bytes,
        "host_bytes": supplied.host_bytes,
        "step_seconds": found.step_seconds,
        "compute_seconds": found.compute_seconds,
        "hbm_seconds": found.hbm_seconds,
        "device_seconds": found.device_seconds,
        "interconnect_seconds": found.interconnect_seconds,
        "network_seconds": found.network_seconds,
        "host_seconds": found.host_seconds,
        "bound": found.bound,
        "mfu_bound": found.mfu(flops["flops_per_step"] / devices, chip),
        "collective_bytes": counts.wire_bytes,
        "collective_seconds": found.by_kind,
        "costly": found.to_json()["costly"],
        "compile_seconds": said["compile_seconds"],
        "uncounted_loops": list(counts.uncounted_loops),
    }


def _model_flops(request: Request) -> dict[str, float]:
    """Model FLOPs of a step by the per-stream count, and by 6ND; of drawing, of one evaluation with guidance."""
    run = request.run
    if request.sampling:
        once = run.model.flops_per_image(run.data.resolution, run.data.resolution, context_tokens(run))
        return {"flops_per_step": 2.0 * once * run.batch}
    return {"flops_per_step": run.train_flops(1), "flops_per_step_6nd": run.train_flops_6nd(1)}


def _fabric(request: Request, places: list[Any]) -> Fabric:
    if request.target.is_tpu:
        return tpu_fabric([(domain, tuple(coordinates)) for domain, coordinates in places])
    return gpu_fabric(len(places), request.target.shape[1])


def _sizes(operand: str) -> list[int]:
    found = re.search(r"\[([\d,]*)\]", operand)
    return [int(size) for size in found[1].split(",") if size] if found else []


_FLOATS = ("bf16", "f16", "f32")
# Products of queries x keys x head size that each kernel does, forward and backward: scores and their use; of the
# gradients again the scores, and one for each of dv, dp, dq, dk that it makes.
_SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


def opaque_flops(kernel: Opaque) -> tuple[str, float]:
    """Factors' type and FLOPs of one execution of a fused attention, by its operands' shapes; 0 of other kernels."""
    shapes = [_sizes(operand) for operand in kernel.operands]
    if "fmha" in kernel.target:  # [batch, tokens, heads, size]
        (batch, queries, heads, size), keys = shapes[0], shapes[1][1]
        products = 5 if "Backward" in kernel.target else 2
        return _type(kernel.operands[0]), 2.0 * products * batch * heads * queries * keys * size
    name = next((name for name in _SPLASH if name in kernel.op_name), None)
    if name is None:
        return "bf16", 0.0
    # Queries and keys come first of what is not whole numbers: [batch, heads, tokens, size], without axes of size 1.
    floats = [operand for operand in kernel.operands if _type(operand) in _FLOATS]
    if len(floats) < 2 or len(_sizes(floats[0])) < 2:
        raise ValueError(f"{kernel.op_name}: expected queries and keys among {', '.join(kernel.operands)}")
    (*rows, queries, size), keys = _sizes(floats[0]), _sizes(floats[1])[-2]
    return _type(floats[0]), 2.0 * _SPLASH[name] * math.prod(rows) * queries * keys * size


def _type(operand: str) -> str:
    return operand.split("[")[0]


def scratch_bytes(counts: Counts) -> float:
    """What kernels take at run time beside what the compiler assigns: cuDNN's, one at a time."""
    return max((_cudnn_scratch(kernel) for kernel in counts.opaque), default=0.0)


def _cudnn_scratch(kernel: Opaque) -> float:
    """Bytes of cuDNN's backward pass, which no compiler knows of: dq in float32, and row sums."""
    if "fmha" not in kernel.target or "Backward" not in kernel.target:
        return 0.0
    batch, queries, heads, size = _sizes(kernel.operands[0])
    return 4.0 * math.prod((batch, queries, heads)) * (size + 1)
