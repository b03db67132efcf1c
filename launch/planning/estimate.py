"""Memory and time of a layout by counting: rough, at once, and in the right order. The compiler has the last word.

What is counted, for a training step on one device: the state and the gradients by their numbers; activations by the
tokens of a part of the batch and what the policy keeps of each block; the matrix products at the chip's peak; passes
over activations and weights at its memory's; gathers of weights, sums of gradients, and what ``tensor`` and
``sequence`` exchange, at its links'; what is offloaded, at the host's.
"""

from __future__ import annotations

from dataclasses import dataclass

from launch.planning.layout import Layout
from launch.planning.target import Target
from mmdit_jax.config import Run, context_tokens
from mmdit_jax.models.frame import UNROLLED_ON_GPUS


@dataclass(frozen=True)
class _Costs:
    """What a token costs in a block, by policy: fitted to what the compilers say of depths 15 to 38."""

    kept: dict[str, float]
    """Numbers of the model's width that it leaves for the backward pass."""
    working: float
    """Those in flight in a block whose backward pass runs, whatever was kept."""
    moved: dict[str, float]
    """Bytes of memory that it moves in a step, over the width."""


_TPU = _Costs(
    kept={"none": 30.0, "dots": 14.0, "attention": 2.5, "full": 1.0},
    working=75.0,
    moved={"none": 855.0, "dots": 930.0, "attention": 970.0, "full": 1000.0},
)
_GPU = _Costs(
    kept={"none": 21.8, "dots": 11.8, "attention": 1.8, "full": 1.0},
    working=49.0,
    moved={"none": 510.0, "dots": 435.0, "attention": 390.0, "full": 388.0},
)
_GPU_UNROLLED = _Costs(kept={"none": 22.2, "dots": 10.8}, working=0.0, moved={"none": 302.0, "dots": 370.0})
# Forward passes that a step costs, the recomputed parts of them included, backward being two.
_PASSES = {"none": 3.0, "dots": 3.05, "attention": 3.8, "full": 4.0}
# Of what unrolled blocks keep on one GPU, how much more it is on several, and for parts of a batch, by the compiler.
_ON_SEVERAL, _IN_PARTS = 0.06, 0.08
# Products and passes over memory overlap a little: a device's time over the sum of both.
_SERIAL = 0.88


@dataclass(frozen=True)
class Estimate:
    """Of one device."""

    bytes: float
    """Of its memory, at the fullest."""
    seconds: float
    """Of a step, all parts overlapping but for what the device does itself."""
    interconnect_seconds: float


def estimate(run: Run, layout: Layout, target: Target) -> Estimate:
    """Of the run, laid out so."""
    model, chip, optimizer = run.model, target.chip, run.optimizer
    params, width, size = model.num_params(), model.width, run.data.resolution
    parts = target.devices // (layout.sequence * layout.tensor) * layout.accumulation
    images = run.batch / parts
    rows, columns = model.grid(size, size)
    tokens = images * (rows * columns + context_tokens(run)) / layout.sequence
    unrolled = not target.is_tpu and layout.remat in UNROLLED_ON_GPUS and model.scan is not True
    costs = _TPU if target.is_tpu else _GPU_UNROLLED if unrolled else _GPU
    each = 2 if model.dtype == "bfloat16" else 4
    numbers = {"float32": 4, "bfloat16": 2}

    own = params / layout.shards
    parts_of_state = {"ema": own * numbers[optimizer.ema_dtype], "optimizer": 2 * own * numbers[optimizer.moments]}
    away = sum(parts_of_state[name] for name in run.hardware.offload)
    state = own * 4 + sum(parts_of_state.values()) - away
    gradients = own * 4
    summed = gradients if layout.accumulation > 1 else 0.0  # of the parts before
    block = params / model.depth / layout.tensor
    kept = tokens * width * each * costs.kept[layout.remat] / layout.tensor * model.depth
    working = tokens * width * each * costs.working / layout.tensor
    if unrolled:
        # What a block keeps makes room for its gradients. On one device its weights, cast, are kept, too; on several
        # three quarters of a byte a parameter are on their way, and a little more of a token is kept.
        more = _ON_SEVERAL + (_IN_PARTS if layout.accumulation > 1 else 0.0)
        one = layout.shards == 1 and layout.remat == "none"
        working += params * each if one else 0.77 * params / layout.tensor + more * kept
        memory = state + summed + max(kept + working, 2 * gradients)
    else:
        working += block * (2 * each + 4)
        memory = state + max(summed + gradients + kept + working, 2 * (summed + gradients))

    products = _PASSES[layout.remat] * model.flops_per_image(size, size, context_tokens(run)) * run.batch
    compute = products / target.devices / chip.bf16_flops
    passes = layout.accumulation * (3 if layout.remat == "none" else 3.3)
    moved = layout.accumulation * tokens * width * model.depth * costs.moved[layout.remat] / layout.tensor
    hbm = (moved * each / 2 + passes * params * each / layout.tensor + 30 * own) / chip.hbm_bandwidth
    links = _links(target, layout.fsdp * layout.sequence)
    whole = params * each / layout.tensor * (1 - 1 / (layout.fsdp * layout.sequence))
    wire = layout.accumulation * whole * 3 / links
    data = target.devices // layout.shards
    inside = data // target.slices
    summed = 2 * own * 4 * (1 - 1 / inside) / _links(target, target.devices // target.slices)
    # Of those in a slice each has its own part of the network between slices, at the same time.
    wire += max(summed, 2 * own * 4 * (1 - 1 / target.slices) / inside / chip.network_bandwidth)
    exchanged = layout.accumulation * tokens * width * each * model.depth * _PASSES[layout.remat] / 2
    inner = _links(target, layout.tensor * layout.sequence)
    # The next product waits for these, so they hide behind nothing.
    waits = exchanged * 4 * 2 * (1 - 1 / layout.tensor) / inner
    waits += exchanged * 2 * layout.sequence / layout.tensor * (1 - 1 / layout.sequence) / inner
    # What is offloaded comes and goes at once, each way at the link's rate.
    host = away / chip.host_bandwidth if chip.host_bandwidth else 0.0
    return Estimate(memory, max(_SERIAL * (compute + hbm), wire, host) + waits, wire + waits)


def _links(target: Target, group: int) -> float:
    """Bytes/s of a device in a ring of so many."""
    chip = target.chip
    if target.is_tpu:
        return chip.link_bandwidth * (2 if group <= 16 else 0.75 * chip.links)
    inside = target.shape[1]
    return chip.link_bandwidth if group <= inside else min(chip.link_bandwidth, chip.network_bandwidth * inside)
