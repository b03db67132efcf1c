"""Figures that answer: runs' facts and samples for a page's script, and marks in SVG that it finds them by."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.look import run_mark
from scaling.study import StudyTables, values

MOST_IMAGES = 360
"""On the whole page, shared evenly between its runs."""
MOST_OF_A_RUN = 12
EACH = 2
"""Images of one task, where there are several tasks."""
SIDE = 96
"""Pixels; larger images are made smaller."""
_MARK = re.compile(r'<g id="(run-[0-9a-f]{12})(-bar)?">')


@dataclass(frozen=True)
class Panel:
    """A figure of a grid: SVG in which runs have their marks as ids, or ``why`` there is none. ``curve``: a run's
    points are its validations."""

    name: str
    svg: str
    why: str = ""
    curve: bool = False


def panel_html(panel: Panel, names: Mapping[str, str]) -> str:
    """The panel as HTML; each run's points can be pointed at, reached by keys and opened. ``names`` by mark."""
    label = html.escape(panel.name, quote=True)
    if not panel.svg:
        why = html.escape(panel.why)
        return (
            f'<figure class="panel"><p class="empty"><b>{label}</b>: {why}</p><figcaption>{label}</figcaption></figure>'
        )
    first = True

    def marked(found: re.Match[str]) -> str:
        nonlocal first
        if found[2]:
            return f'<g class="bar" data-run="{found[1]}">'
        name = html.escape(names.get(found[1], ""), quote=True)
        reach, first = (0 if first else -1), False
        return f'<g class="run" data-run="{found[1]}" tabindex="{reach}" role="button" aria-label="{name}">'

    curve = " data-curve" if panel.curve else ""
    svg = _MARK.sub(marked, panel.svg).replace("<svg ", f'<svg role="group" aria-label="{label}"{curve} ', 1)
    return f'<figure class="panel">{svg}<figcaption>{label}</figcaption></figure>'


def run_facts(tables: StudyTables, folder: Path) -> dict[str, Any]:
    """What the page's script knows, as JSON: ``runs`` by mark (facts, points of the curve, samples), ``prompts``.

    Samples are read from ``folder/<run_id>/samples`` in GenEval's layout, the same prompts of every run; a run without
    has none.
    """
    runs: dict[str, Any] = {}
    prompts: dict[str, int] = {}
    results = tables.results.set_index("run_id") if len(tables.results) else pd.DataFrame()
    count = min(MOST_OF_A_RUN, MOST_IMAGES // max(len(tables.runs), 1))
    for run in tables.runs.itertuples(index=False):
        row = results.loc[run.run_id] if run.run_id in results.index else pd.Series(dtype=object)
        facts = [("formulation", str(run.formulation)), ("depth", f"{run.depth:g}"), *_numbers(row)]
        own = tables.curves[tables.curves["run_id"] == run.run_id] if len(tables.curves) else pd.DataFrame()
        runs[run_mark(run.name)] = {
            "name": run.name,
            "facts": facts,
            "points": _points(own),
            "samples": [
                [prompts.setdefault(prompt, len(prompts)), address]
                for prompt, address in samples(folder / run.run_id / "samples", count)
            ],
        }
    return {"runs": runs, "prompts": list(prompts)}


def island(facts: Mapping[str, Any]) -> str:
    """JSON that may stand in a script element: nothing in it ends that, or is a tag."""
    text = json.dumps(facts, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def samples(folder: Path, count: int) -> list[tuple[str, str]]:
    """Prompt and image (a data URI) of ``count`` prompts of a tree in GenEval's layout: EACH of every task first."""
    if count <= 0 or not folder.is_dir():
        return []
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(folder.glob("*/metadata.jsonl")):
        try:
            told = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
            prompt, task = str(told["prompt"]), str(told.get("tag", ""))
        except (ValueError, IndexError, KeyError, TypeError):
            continue  # a tree that is being written
        images = sorted((path.parent / "samples").glob("*.png"))
        if images:
            found.setdefault(task, []).append((prompt, images[0]))
    each = EACH if len(found) > 1 else count
    chosen = [pair for pairs in found.values() for pair in pairs[:each]][:count]
    return [(prompt, _thumbnail(path)) for prompt, path in chosen]


def _thumbnail(path: Path) -> str:
    """Small images as they are, in PNG; larger ones shrunk to SIDE, in JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if max(image.size) <= SIDE:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, format="JPEG", quality=80, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _numbers(row: pd.Series) -> list[tuple[str, str]]:
    shown: Sequence[tuple[str, str, str]] = (
        ("seed", "seed", "{:.0f}"),
        ("steps", "steps", "{:,.0f}"),
        ("params", "parameters", "{:,.0f}"),
        ("train_flops", "FLOPs", "{:.2e}"),
        ("val_loss", "validation loss", "{:.4f}"),
        ("geneval", "GenEval", "{:.3f}"),
        ("geneval_graded", "GenEval, graded", "{:.3f}"),
        ("compbench", "CompBench", "{:.3f}"),
        ("elo", "Elo", "{:.0f}"),
    )
    found = []
    for column, label, pattern in shown:
        value = pd.to_numeric(row.get(column), errors="coerce")
        if value is not None and np.isfinite(value):
            found.append((label, pattern.format(value)))
    return found


def _points(curve: pd.DataFrame) -> list[list[float]]:
    """Step and loss of each validation that figures show, in their order."""
    if curve.empty:
        return []
    curve = curve.sort_values("step")
    loss = values(curve, "val_loss")
    keep = (loss > 0) & (values(curve, "step") > 0) & (values(curve, "train_flops") > 0)
    return [[float(step), round(float(x), 5)] for step, x in zip(curve["step"][keep], loss[keep], strict=True)]
