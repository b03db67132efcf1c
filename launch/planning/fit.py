"""What would make a plan fit, by counting: other layouts, levers on memory, a smaller batch, more devices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from launch.planning.estimate import estimate
from launch.planning.layout import layout_of, layouts, why_not
from launch.planning.target import Target
from mmdit_jax.chips import GIB
from mmdit_jax.config import Run, context_tokens

NOTHING = "no layout, lever or batch would make it fit"
NOTHING_DRAWS = "no fewer images at once, and no smaller ones, would fit beside the weights"
SPARE = 0.95
"""Of the memory, what a way by counting may fill."""
GPUS_A_NODE = 8


@dataclass(frozen=True)
class _Way:
    cost: float
    """Its time, and 5 % of it for each thing that changes: the fewer the better."""
    times: float
    """Its time for an image, over that of the plan that does not fit."""
    line: str
    fields: tuple[str, ...] = ()


def ways_to_fit(run: Run, target: Target, peak_gib: float) -> list[str]:
    """Up to three changes of a training run that would make it fit, by counting; of those the fastest first.

    Layouts and levers (narrow moments and average, offloading) come before a smaller batch, which is other training,
    and that before more devices.

    Args:
      run: as it was planned, layout and all.
      peak_gib: what the compiler says it needs, by which the counting is corrected.
    """
    scale = peak_gib * GIB / estimate(run, layout_of(run), target).bytes
    best: dict[tuple[str, ...], _Way] = {}
    for changed, told in _levers(run, target):
        for way in _laid(run, changed, target, target, scale, told):
            if way.fields not in best or way.cost < best[way.fields].cost:
                best[way.fields] = way
    ways = sorted(best.values(), key=lambda way: way.cost)[:3]
    if len(ways) < 3:
        ways += [way for way in (_smaller_batch(run, target, scale), _more_devices(run, target, scale)) if way]
    return [way.line for way in sorted(ways[:3], key=lambda way: way.times)]


def _laid(run: Run, changed: Run, old: Target, new: Target, scale: float, told: list[str]) -> Iterator[_Way]:
    """Layouts in which the changed run fits the new target; times are for an image."""
    now = layout_of(run)
    before = estimate(run, now, old).seconds / run.batch
    for layout in layouts(changed, new):
        if why_not(changed, layout, new) is not None:
            continue
        found = estimate(changed, layout, new)
        fields = [name for name in vars(now) if vars(now)[name] != vars(layout)[name]]
        if found.bytes * scale > SPARE * new.usable_bytes or not (told or fields):
            continue
        times = found.seconds / changed.batch / before
        words = ", ".join([*told, *(f"{name} {vars(layout)[name]}" for name in fields)])
        line = f"{words}: about {found.bytes * scale / GIB:.1f} GiB, {times:.2f}x the time"
        line += "" if changed.batch == run.batch else " an image"
        yield _Way(times * (1 + 0.05 * len([*told, *fields])), times, line, (*told, *fields))


def _levers(run: Run, target: Target) -> Iterator[tuple[Run, list[str]]]:
    """The run as it is, and with each set of levers that it does not pull yet."""
    narrow: list[dict[str, Any]] = [{}]
    for name in ("moments", "ema_dtype"):
        if vars(run.optimizer)[name] == "float32":
            narrow += [{**fields, name: "bfloat16"} for fields in narrow]
    away = [run.hardware.offload]
    # Of TPUs the compiler may begin the copies early, and save nothing (docs/levers.md).
    if target.chip.host_bandwidth and not target.is_tpu:
        away += [items for items in (("ema",), ("optimizer", "ema")) if set(items) > set(run.hardware.offload)]
    for fields in narrow:
        for offload in away:
            optimizer: Any = replace(run.optimizer, **fields)
            changed = replace(run, optimizer=optimizer, hardware=replace(run.hardware, offload=offload))
            told = [f"optimizer.{name} {value}" for name, value in fields.items()]
            told += [] if offload == run.hardware.offload else [f"hardware.offload {','.join(offload)}"]
            yield changed, told


def _smaller_batch(run: Run, target: Target, scale: float) -> _Way | None:
    """The largest half, quarter, ... of the batch that fits."""
    batch = run.batch
    while batch % 2 == 0:
        batch //= 2
        changed = replace(run, batch=batch, hardware=replace(run.hardware, accumulation=1))
        found = min(_laid(run, changed, target, target, scale, [f"batch {batch}"]), key=_cost, default=None)
        if found is not None:
            return found
    return None


def _more_devices(run: Run, target: Target, scale: float) -> _Way | None:
    """The fewest devices of the kind, doubled and doubled again, that it fits."""
    larger = target
    for _ in range(8):
        larger = _doubled(larger)
        told = [f"about {larger.devices} devices of this kind ({larger.name})"]
        found = min(_laid(run, run, target, larger, scale, told), key=_cost, default=None)
        if found is not None:
            return found
    return None


def _doubled(target: Target) -> Target:
    """Twice the nodes (GPUs, up to a node's), or the shortest axis of the torus, or the slices."""
    shape, largest = list(target.shape), target.chip.largest
    if not target.is_tpu:
        axis = 1 if shape[0] == 1 and 2 * shape[1] <= GPUS_A_NODE else 0
    else:
        axis = shape.index(min(shape))
        if 2 * shape[axis] > max(largest) or 2 * math.prod(shape) > math.prod(largest):
            return replace(target, slices=2 * target.slices)
    shape[axis] *= 2
    return replace(target, shape=tuple(shape))


def _cost(way: _Way) -> float:
    return way.cost


def ways_to_draw(run: Run, target: Target, peak_gib: float) -> list[str]:
    """Fewer images at once, or smaller ones, that fit beside the weights, by the tokens that they have."""
    weights = run.model.num_params() * (2 if run.model.dtype == "bfloat16" else 4)
    room, needs = SPARE * target.usable_bytes - weights, max(peak_gib * GIB - weights, 0.0)

    def tokens(size: int) -> int:
        return math.prod(run.model.grid(size, size)) + context_tokens(run)

    size, patch = run.data.resolution, run.model.patch_size
    fewer = [run.batch // 2**n for n in range(1, run.batch.bit_length())]
    smaller = [size * part // (16 * patch) * 2 * patch for part in (6, 4, 3, 2, 1)]
    ways = [(needs * batch / run.batch, f"{batch} image(s) at once") for batch in fewer]
    found = [next((way for way in ways if way[0] <= room), None)]
    ways = [(needs * tokens(small) / tokens(size), f"latents of {small}") for small in smaller if small]
    found.append(next((way for way in ways if way[0] <= room), None))
    return [f"{told}: about {(taken + weights) / GIB:.1f} GiB" for taken, told in filter(None, found)]
