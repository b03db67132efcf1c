"""The fastest layout that fits: counting puts all of them in order, the compiler tries the first ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launch.planning.estimate import Estimate, estimate
from launch.planning.layout import Layout, layout_of, layouts, why_not
from launch.planning.target import Target
from mmdit_jax.chips import GIB
from mmdit_jax.config import Run
from mmdit_jax.errors import UserError

ROOM = 1.1
"""Counted memory over the device's, up to which the compiler is asked all the same."""


@dataclass(frozen=True)
class Tried:
    """A layout, and why it is not the one; ``why`` is empty for the one that is."""

    layout: Layout
    estimate: Estimate
    plan: dict[str, Any] | None
    """What the compiler said, where it was asked."""
    why: str


def ranked(run: Run, target: Target) -> tuple[list[tuple[Layout, Estimate]], list[Tried]]:
    """Layouts that may fit, the fastest by counting first, of equals the plainest; and those too large, smallest first.

    Raises:
      UserError: the run can't be laid out on the target in any way; the message has a reason.
    """
    possible, refused = [], []
    reasons: list[str] = []
    for layout in layouts(run, target.devices):
        reason = why_not(run, layout, target.devices)
        if reason is not None:
            reasons.append(reason)
            continue
        found = estimate(run, layout, target)
        if found.bytes > ROOM * target.usable_bytes:
            over = f"counted {found.bytes / GIB:.1f} GiB of {target.usable_bytes / GIB:.1f}"
            refused.append(Tried(layout, found, None, over))
        else:
            possible.append((layout, found))
    if not possible and not refused:
        batch = f"batch={run.batch}: does not divide over {target.devices} devices of {target.name}"
        raise UserError(reasons[0] if reasons else batch)
    possible.sort(key=lambda item: (_coarse(item[1].seconds), _plainness(item[0]), item[1].bytes))
    return possible, sorted(refused, key=lambda item: item.estimate.bytes)


def _coarse(seconds: float) -> float:
    """To two digits and a half: nearer than that counting does not know."""
    return float(f"{seconds:.1e}") if seconds else 0.0


def _plainness(layout: Layout) -> tuple[int, int]:
    return layout.tensor * layout.sequence, layout.accumulation


def search(
    run: Run, target: Target, compile: Callable[[Run], dict[str, Any]], tries: int, say: Callable[[str], None]
) -> tuple[dict[str, Any] | None, list[Tried]]:
    """The best plan (none if nothing fits) and all that was tried, the best first.

    Args:
      compile: gives the plan of a run (``ask``).
      tries: compilations at most.
      say: told of each.
    """
    possible, refused = ranked(run, target)
    tried: list[Tried] = []
    best: Tried | None = None
    waiting = possible
    while waiting and len(tried) < tries:
        layout, counted = waiting[0]
        if best is not None and best.plan is not None and counted.seconds > 1.25 * best.plan["step_seconds"]:
            break
        plan = compile(layout.of(run))
        tried.append(Tried(layout, counted, plan, ""))
        if plan["fits"]:
            if best is None or best.plan is None or plan["step_seconds"] < best.plan["step_seconds"]:
                best = tried[-1]
            say(f"{layout}: fits, {plan['step_seconds']:.3f} s at best, MFU {100 * plan['mfu_bound']:.0f} %")
            waiting = _others(waiting[1:], layout)
        else:
            say(f"{layout}: needs {plan['peak_gib']:.1f} GiB of {plan['hbm_gib']:.1f}")
            # What counts more memory in the same way of working will not fit either.
            waiting = [
                item for item in waiting[1:] if item[0].remat != layout.remat or item[1].bytes < 0.95 * counted.bytes
            ]
    told = [_judged(item, best) for item in tried]
    told.sort(key=lambda item: (item.why != "", item.plan["step_seconds"] if item.plan and item.plan["fits"] else 1e9))
    left = [Tried(layout, counted, None, f"counted {counted.seconds:.3f} s") for layout, counted in waiting[:3]]
    return (None if best is None else best.plan), [*told, *left, *refused[:3]]


def _others(waiting: list[tuple[Layout, Estimate]], done: Layout) -> list[tuple[Layout, Estimate]]:
    """Those that differ from ``done`` in more than one step of its accumulation come first."""
    alike = [item for item in waiting if (item[0].fsdp, item[0].remat) == (done.fsdp, done.remat)]
    return [item for item in waiting if item not in alike] + alike


def _judged(item: Tried, best: Tried | None) -> Tried:
    """With the reason why it lost."""
    plan = item.plan
    if plan is None or item is best:
        return item
    if not plan["fits"]:
        return Tried(item.layout, item.estimate, plan, f"needs {plan['peak_gib']:.1f} GiB of {plan['hbm_gib']:.1f}")
    worst = max(("compute", "hbm", "interconnect"), key=lambda name: plan[f"{name}_seconds"])
    told = f"{plan['step_seconds']:.3f} s; most of it {worst}, {plan[f'{worst}_seconds']:.3f} s"
    return Tried(item.layout, item.estimate, plan, told)


def ways_to_fit(run: Run, target: Target, peak_gib: float) -> list[str]:
    """Up to three changes of a run that does not fit that would make it fit, the cheapest in time first, by counting.

    Args:
      peak_gib: what the compiler says it needs, by which the counting is corrected.
    """
    now = layout_of(run)
    base = estimate(run, now, target)
    scale = peak_gib * GIB / base.bytes
    changes: dict[tuple[str, ...], tuple[float, str]] = {}
    for layout in layouts(run, target.devices):
        if why_not(run, layout, target.devices) is not None:
            continue
        found = estimate(run, layout, target)
        if found.bytes * scale > 0.95 * target.usable_bytes:
            continue
        fields = tuple(name for name in vars(now) if vars(now)[name] != vars(layout)[name])
        told = ", ".join(f"{name} {vars(layout)[name]}" for name in fields)
        line = f"{told}: about {found.bytes * scale / GIB:.1f} GiB, {found.seconds / base.seconds:.2f}x the time"
        # The fewer things change the better: each counts as 5 % of the time.
        cost = found.seconds * (1 + 0.05 * len(fields))
        if fields and (fields not in changes or cost < changes[fields][0]):
            changes[fields] = (cost, line)
    return [line for _, line in sorted(changes.values())[:3]]
