"""From answers to a table: rates, floors, shares, goals; standard library and data sheets only."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import markdown
from benchmarks.on_device.jobs import Job
from mmdit_jax.chips import GIB


def rates(answer: dict[str, Any]) -> dict[str, float]:
    """FLOP/s of the product and bytes/s of the copy, by the medians of the ceilings."""
    return {
        "flops_per_second": answer["product_flops"] / statistics.median(answer["product_seconds"]),
        "bytes_per_second": answer["copy_bytes"] / statistics.median(answer["copy_seconds"]),
    }


def floor(flops: float, bytes_: float, measured: dict[str, float]) -> tuple[float, str]:
    """The least seconds at the rates measured, and whether "compute" or "memory" sets them."""
    compute, memory = flops / measured["flops_per_second"], bytes_ / measured["bytes_per_second"]
    return (compute, "compute") if compute >= memory else (memory, "memory")


def row(
    job: Job, answer: dict[str, Any], measured: dict[str, float] | None, device: dict[str, Any] | None
) -> dict[str, Any]:
    """What is told of a measurement; what it needs and was not measured is None. ``why`` of one that has no figures."""
    if "error" in answer:
        return {"what": job.name, "why": answer["error"]}
    seconds = statistics.median(answer["seconds"])
    speed = answer["flops"] / seconds
    sheet = None if device is None else device["datasheet_flops_per_second"]
    least, of = (None, None) if measured is None else floor(answer["flops"], answer["floor_bytes"], measured)
    program = answer["bound"]
    found = {
        "what": job.name,
        "batch": answer["batch"],
        "seconds": seconds,
        "fastest_seconds": min(answer["seconds"]),
        "slowest_seconds": max(answer["seconds"]),
        "images_per_second": answer["batch"] / seconds,
        "flops_per_second": speed,
        "product_share": None if measured is None else speed / measured["flops_per_second"],
        "datasheet_share": None if sheet is None else speed / sheet,
        "floor_seconds": least,
        "floor_of": of,
        "kernels_seconds": None if program is None else program.get("seconds"),
        "peak_bytes": answer["peak_bytes"] or answer["analysis_bytes"],
        "peak_measured": answer["peak_bytes"] is not None,
    }
    return {**found, "goals": [_goal(name, value, found) for name, value in job.goals.items()]}


def _goal(name: str, value: float, found: dict[str, Any]) -> dict[str, Any]:
    reached = {"product_share": found["product_share"], "seconds": found["seconds"], "bytes": found["peak_bytes"]}[name]
    met = reached is not None and (reached >= value if name == "product_share" else reached <= value)
    return {"goal": name, "value": value, "reached": reached, "met": None if reached is None else met}


COLUMNS = (
    "what",
    "batch",
    "ms (fastest–slowest)",
    "images/s",
    "TFLOP/s",
    "of the product",
    "of the data sheet",
    "floor, ms",
    "its kernels at least, ms",
    "peak GiB",
    "goal",
)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table; a row without figures has its reason."""
    return markdown.table(COLUMNS, map(_cells, rows))


def _cells(one: dict[str, Any]) -> list[str]:
    if "why" in one:
        told = " ".join(one["why"].split()).replace("|", "/")
        return [one["what"], "–", told, *["–"] * (len(COLUMNS) - 3)]
    spread = f"{1e3 * one['fastest_seconds']:,.1f}–{1e3 * one['slowest_seconds']:,.1f}"
    return [
        one["what"],
        str(one["batch"]),
        f"{1e3 * one['seconds']:,.1f} ({spread})",
        f"{one['images_per_second']:,.2f}",
        f"{one['flops_per_second'] / 1e12:,.3g}",
        _percent(one["product_share"]),
        _percent(one["datasheet_share"]),
        "–" if one["floor_seconds"] is None else f"{1e3 * one['floor_seconds']:,.1f} ({one['floor_of']})",
        "–" if one["kernels_seconds"] is None else f"{1e3 * one['kernels_seconds']:,.1f}",
        f"{one['peak_bytes'] / GIB:.1f}" + ("" if one["peak_measured"] else " (by the compiler)"),
        "; ".join(_told(goal) for goal in one["goals"]) or "–",
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _told(goal: dict[str, Any]) -> str:
    value = {
        "product_share": f"{100 * goal['value']:g} % of the product",
        "seconds": f"{goal['value']:g} s",
        "bytes": f"{goal['value'] / 1e9:g} GB",
    }[goal["goal"]]
    return f"{value}: {'not known' if goal['met'] is None else 'met' if goal['met'] else 'MISSED'}"
