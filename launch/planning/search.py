"""The fastest layout that fits: counting puts all of them in order, the compiler tries the first ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from launch.planning.ask import CompilerDied
from launch.planning.estimate import Estimate, estimate
from launch.planning.layout import Layout, layouts, why_not
from launch.planning.target import Target
from mmdit_jax.chips import GIB
from mmdit_jax.config import Run
from mmdit_jax.errors import UserError

LIKELY = 1.05
"""Counted memory over the device's, up to which the compiler is asked in turn."""
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


def ranked(
    run: Run, target: Target, asked: Mapping[str, Any] = MappingProxyType({})
) -> tuple[list[tuple[Layout, Estimate]], list[Tried]]:
    """Layouts that may fit, the fastest by counting first, of equals the plainest; and those too large, smallest first.

    What by counting does not fit, and by more than counting errs as a rule, comes after all others.

    Args:
      asked: fields of the layout that are fixed.

    Raises:
      UserError: the run can't be laid out on the target in any such way; the message has a reason.
    """
    possible, refused = [], []
    for layout in layouts(run, target, asked):
        if why_not(run, layout, target) is not None:
            continue
        found = estimate(run, layout, target)
        if found.bytes > ROOM * target.usable_bytes:
            over = f"counted {found.bytes / GIB:.1f} GiB of {target.usable_bytes / GIB:.1f}"
            refused.append(Tried(layout, found, None, over))
        else:
            possible.append((layout, found))
    if not possible and not refused:
        told = ", ".join(f"{name}={value}" for name, value in asked.items())
        reason = why_not(run, Layout(**asked), target) or f"no layout of batch={run.batch} on {target.name}"
        raise UserError(reason if reason.startswith(told) else f"{told}: {reason}")
    possible.sort(
        key=lambda item: (
            item[1].bytes > LIKELY * target.usable_bytes,
            _coarse(item[1].seconds),
            _plainness(item[0]),
            item[1].bytes,
        )
    )
    return possible, sorted(refused, key=lambda item: item.estimate.bytes)


def _coarse(seconds: float) -> float:
    """To two digits and a half: nearer than that counting does not know."""
    return float(f"{seconds:.1e}") if seconds else 0.0


def _plainness(layout: Layout) -> tuple[int, int]:
    return layout.tensor * layout.sequence, layout.accumulation


def outcome(plan: dict[str, Any]) -> str:
    """A plan in half a line."""
    if plan["fits"]:
        return f"fits, {plan['step_seconds']:.3f} s at best, MFU {100 * plan['mfu_bound']:.0f} %"
    return f"needs {plan['peak_gib']:.1f} GiB of {plan['hbm_gib']:.1f}"


def search(
    run: Run,
    target: Target,
    compile: Callable[[Run], dict[str, Any]],
    tries: int,
    say: Callable[[str], None],
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[dict[str, Any] | None, list[Tried]]:
    """The best plan (none if nothing fits) and all that was tried, the best first.

    Args:
      compile: gives the plan of a run (``ask``).
      tries: compilations at most.
      say: told of each.
      asked: fields of the layout that are fixed.
    """
    possible, refused = ranked(run, target, asked)
    tried: list[Tried] = []
    best: Tried | None = None
    waiting = possible
    while waiting and len(tried) < tries:
        layout, counted = waiting[0]
        if best is not None and best.plan is not None and counted.seconds > 1.25 * best.plan["step_seconds"]:
            break
        try:
            plan = compile(layout.of(run))
        except CompilerDied as error:
            tried.append(Tried(layout, counted, None, str(error)))
            say(f"{layout}: {error}")
            waiting = waiting[1:]
            continue
        tried.append(Tried(layout, counted, plan, ""))
        say(f"{layout}: {outcome(plan)}")
        if plan["fits"]:
            if best is None or best.plan is None or plan["step_seconds"] < best.plan["step_seconds"]:
                best = tried[-1]
            waiting = _others(waiting[1:], layout)
        else:
            # What counts more memory in the same way of working will not fit either.
            waiting = [
                item for item in waiting[1:] if item[0].remat != layout.remat or item[1].bytes < 0.95 * counted.bytes
            ]
    told = [_judged(item, best) for item in tried]
    told.sort(key=lambda item: (item.why != "", item.plan["step_seconds"] if item.plan and item.plan["fits"] else 1e9))
    left = [Tried(layout, counted, None, f"counted {counted.seconds:.3f} s") for layout, counted in waiting[:3]]
    return (None if best is None else best.plan), [*told, *left, *refused[:3]]


def _others(waiting: list[tuple[Layout, Estimate]], done: Layout) -> list[tuple[Layout, Estimate]]:
    """Those of another ``fsdp`` or policy than ``done`` come first."""
    alike = [item for item in waiting if (item[0].fsdp, item[0].remat) == (done.fsdp, done.remat)]
    return [item for item in waiting if item not in alike] + alike


def _judged(item: Tried, best: Tried | None) -> Tried:
    """With the reason why it lost."""
    plan = item.plan
    if plan is None or item is best:
        return item
    if not plan["fits"]:
        return Tried(item.layout, item.estimate, plan, outcome(plan))
    worst = max(("compute", "hbm", "interconnect", "host"), key=lambda name: plan.get(f"{name}_seconds", 0.0))
    told = f"{plan['step_seconds']:.3f} s; most of it {worst}, {plan[f'{worst}_seconds']:.3f} s"
    return Tried(item.layout, item.estimate, plan, told)
