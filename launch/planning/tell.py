"""Plans in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.planning.fit import NOTHING, NOTHING_DRAWS
from launch.planning.search import Tried
from mmdit_jax.chips import GIB


def plan_lines(plan: dict[str, Any], tried: Sequence[Tried], *, sampling: bool, more: int = 0) -> list[str]:
    """A plan as lines of text, what else was tried, and how many layouts were not told."""
    axes = " ".join(f"{name}={size}" for name, size in plan["mesh"].items() if size > 1) or "data only"
    what = f"drawing {plan['batch']} image(s)" if sampling else f"training, batch {plan['batch']}"
    lines = [f"depth {plan['depth']}, {what}, latents of {plan['latent']}, on {plan['topology']}"]
    if not sampling:
        lines.append(f"layout        {axes}, remat {plan['remat']}, accumulation {plan['accumulation']}")
    fits = "fits" if plan["fits"] else "DOES NOT FIT"
    parts = ""
    if plan.get("argument_gib") is not None:
        parts = f" (arguments {plan['argument_gib']:.2f}, temporaries {plan['temporary_gib']:.2f})"
    lines.append(f"memory        {plan['peak_gib']:.2f} GiB{parts} of {plan['hbm_gib']:.2f} a device: {fits}")
    if plan.get("host_gib"):
        moved = f"{plan['host_bytes'] / GIB:.2f} GiB to and fro a step"
        lines.append(f"host memory   {plan['host_gib']:.2f} GiB a device, {moved}")
    if not plan["fits"]:
        lines.append(f"              over by {plan['peak_gib'] - plan['hbm_gib']:.2f} GiB")
        ways = [f"would fit: {way}" for way in plan.get("ways_to_fit", [])]
        lines += [f"              {line}" for line in ways or [NOTHING_DRAWS if sampling else NOTHING]]
    if plan.get("step_seconds") is not None:
        lines += _times(plan, sampling=sampling)
    if tried:
        lines += ["", f"{'layout':52} {'counted':>18} {'compiled':>18}"]
        lines += [_row(item) for item in tried]
        lines += [f"and {more:,} more by counting"] if more else []
    return lines


def _times(plan: dict[str, Any], *, sampling: bool) -> list[str]:
    ours = plan["flops_per_step"]
    also = f"; by 6ND {plan['flops_per_step_6nd']:.3e}" if "flops_per_step_6nd" in plan else ""
    unit = "an evaluation with guidance" if sampling else "a step"
    sent = ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in sorted(plan["collective_bytes"].items()))
    by_links = f"links {plan['interconnect_seconds']:.4f}"
    if plan["network_seconds"]:
        by_links += f" ({plan['network_seconds']:.4f} of them the network)"
    if plan["host_bytes"]:
        by_links += f", host {plan['host_seconds']:.4f}"
    lines = [
        f"FLOPs         {ours:.3e} {unit}{also}; executed {plan['device_flops']:.3e} a device",
        f"sent          {sent or 'nothing'} a device",
        f"at best       {plan['step_seconds']:.4f} s {unit}, bound by {plan['bound']}: compute "
        f"{plan['compute_seconds']:.4f}, memory {plan['hbm_seconds']:.4f}, {by_links} s",
        f"MFU at most   {100 * plan['mfu_bound']:.1f} %",
    ]
    if sampling:
        cost = f", {plan['cost']:.4g} at the price given" if "cost" in plan else ""
        lines.append(f"all images    {plan['seconds']:.2f} s for {plan['steps']} steps{cost}, at best")
        if "peak_gib_beside_t5" in plan:
            beside = f"{plan['peak_gib_beside_t5']:.2f} GiB, if its encoder (bfloat16) stays beside the network"
            lines.append(f"with T5       {beside}")
    else:
        cost = f", {plan['cost']:,.0f} at the price given" if "cost" in plan else ""
        spent = f"{plan['days']:.2f} days, {plan['device_hours']:,.0f} device-hours"
        lines.append(f"all steps     {plan['steps']:,}: {spent}{cost}, at best")
    return lines


def _row(item: Tried) -> str:
    counted = f"{item.estimate.seconds:.3f} s {item.estimate.bytes / GIB:.1f} GiB"
    plan = item.plan
    said = "" if plan is None else f"{plan['step_seconds']:.3f} s " if plan.get("step_seconds") else ""
    said += "" if plan is None else f"{plan['peak_gib']:.1f} GiB"
    return f"{item.layout!s:52} {counted:>18} {said:>18}  {item.why or 'chosen'}"


def study_lines(name: str, topology: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """A row a run of a study."""
    width = max(len(row["name"]) for row in rows)
    priced = any("cost" in row for row in rows)
    cost = f"  {'cost':>9}" if priced else ""
    lines = [
        f"study {name} on {topology}",
        f"{'run':{width}}  {'fits':5} {'GiB':>8}  {'step, s':>8}  {'MFU':>5}  {'days':>7}{cost}",
    ]
    for row in rows:
        start = f"{row['name']:{width}}  {'yes' if row['fits'] else 'NO':5}"
        if "error" in row:
            lines.append(f"{start} {row['error']}")
        elif row.get("step_seconds") is None:
            ways = "; ".join(row.get("ways_to_fit", [])[:1])
            lines.append(f"{start} {row['peak_gib']:8.2f}  of {row['hbm_gib']:.2f}; {ways or NOTHING}")
        else:
            lines.append(
                f"{start} {row['peak_gib']:8.2f}  {row['step_seconds']:8.4f}  {100 * row['mfu_bound']:4.0f}%  "
                f"{row['days']:7.2f}" + (f"  {row['cost']:9,.0f}" if priced else "")
            )
    fits = sum(bool(row["fits"]) for row in rows)
    total = f"; {sum(row.get('cost', 0) for row in rows):,.0f} in all at the price given" if priced else ""
    return [*lines, f"{fits} of {len(rows)} fit; times and MFU are bounds{total}"]
