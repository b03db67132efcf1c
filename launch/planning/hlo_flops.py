"""FLOPs of the matrix products of an HLO program: a multiplication and an addition count as two."""

from __future__ import annotations

import math
import re
from functools import cache

from launch.planning.hlo_text import Array, Computation, Instruction, width

GEMM = ("__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8")
"""Custom calls of the GPU backend whose configuration says what they contract."""


def custom_call_target(instruction: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return found.group(1) if found else ""


def matrix_flops(computation: Computation, instruction: Instruction) -> tuple[str, float] | None:
    """Type of the factors and FLOPs of a product, or None of other instructions.

    The type is the wider factor's, with ``:high`` or ``:highest`` where float32 factors are to keep their precision
    (a TPU then multiplies three or six times in bfloat16).
    """
    if instruction.operation not in ("dot", "convolution") and custom_call_target(instruction) not in GEMM:
        return None
    left, right = (computation.instructions[name].array for name in instruction.operands[:2])
    result = computation.results(instruction)[0]
    if instruction.operation == "convolution":
        flops = _convolution(instruction, left, right, result)
    else:
        contracted = instruction.integers("lhs_contracting_dims")
        if instruction.operation == "custom-call":
            config = instruction.backend_config
            config = config.get("gemm_backend_config", config)
            contracted = tuple(map(int, config["dot_dimension_numbers"]["lhs_contracting_dimensions"]))
        flops = 2 * result.elements * math.prod(left.dims[i] for i in contracted)
    return _factors(instruction, left, right), float(flops)


def _factors(instruction: Instruction, left: Array, right: Array) -> str:
    wider = max(left.type, right.type, key=width)
    asked = re.search(r"operand_precision=\{([a-z0-9_,]*)\}", instruction.attributes)
    if wider == "f32" and asked:
        return next((f"f32:{p}" for p in ("highest", "high") if p in asked.group(1).split(",")), wider)
    return wider


def _convolution(instruction: Instruction, left: Array, right: Array, result: Array) -> int:
    """TPU programs write every product as a convolution, also with batches as dilated spatial dimensions.

    As XLA's HloCostAnalysis, products with padding and with the zeros that dilation puts in do not count.
    """
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", instruction.attributes)
    if not labels:
        raise ValueError(f"{instruction.name}: convolution without dim_labels")
    of_left, of_right, of_out = labels.groups()
    spatial = [label for label in of_out if label.isdigit()]
    window = _window(instruction, len(spatial))
    pairs = 1
    for label in spatial:
        axis = int(label)
        pairs *= _pairs(
            left.dims[of_left.index(label)],
            right.dims[of_right.index(label)],
            result.dims[of_out.index(label)],
            window["stride"][axis][0],
            window["pad"][axis][0],
            window["lhs_dilate"][axis][0],
            window["rhs_dilate"][axis][0],
        )
    batch_groups = int((re.search(r"batch_group_count=(\d+)", instruction.attributes) or [0, 1])[1])
    # The kernel's input features are already those of one group.
    inputs, outputs = right.dims[of_right.index("i")], right.dims[of_right.index("o")]
    batch = left.dims[of_left.index("b")] // batch_groups
    return 2 * batch * inputs * outputs * pairs


def _window(instruction: Instruction, axes: int) -> dict[str, list[tuple[int, ...]]]:
    """Of each spatial axis: stride, padding (low, high) and dilations, with the defaults of what is not written."""
    window: dict[str, list[tuple[int, ...]]] = {
        "stride": [(1,)] * axes,
        "pad": [(0, 0)] * axes,
        "lhs_dilate": [(1,)] * axes,
        "rhs_dilate": [(1,)] * axes,
    }
    text = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    for key, value in re.findall(r"(\w+)=(\S+)", text.group(1) if text else ""):
        if key in window:
            window[key] = [tuple(map(int, part.split("_"))) for part in value.split("x")]
    return window


@cache
def _pairs(size: int, kernel: int, out: int, stride: int, pad: int, dilate: int, kernel_dilate: int) -> int:
    """Pairs of a kernel's and an output's position that meet a value of the input, along one axis."""
    count = 0
    last = (size - 1) * dilate
    for k in range(kernel):
        # The output at o reads o * stride + offset of the dilated input.
        offset = k * kernel_dilate - pad
        low = max(0, -(offset // stride))
        high = min(out - 1, (last - offset) // stride)
        if high < low:
            continue
        if dilate == 1:
            count += high - low + 1
        else:
            count += sum((o * stride + offset) % dilate == 0 for o in range(low, high + 1))
    return count
