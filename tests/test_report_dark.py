"""The report in a dark scheme: every sign of its legend can be seen."""

from __future__ import annotations

import re
from importlib.resources import files

import pandas as pd
from matplotlib.colors import to_rgb

from scaling.look import HUES, MOST_KINDS, OTHER, Look

LEAST = 3.0
"""Contrast of graphics that are to be seen (WCAG 2.2, success criterion 1.4.11)."""


def luminance(colour: str) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def dark(style: str) -> str:
    """What stands in the media queries of dark schemes."""
    found = ""
    for start in re.finditer(r"@media \(prefers-color-scheme: dark\) \{", style):
        depth, end = 1, start.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(style[end], 0)
            end += 1
        found += style[start.end() : end - 1]
    return found


def test_signs_of_the_legend_are_told_from_a_dark_page() -> None:
    rules = dark(files("scaling").joinpath("static/report.css").read_text(encoding="utf-8"))
    page = re.search(r"--page: (#\w+)", rules)
    outline = re.search(r"\.legend span\[style\*=\"#\"\] \{ text-shadow: ([^;]+);", rules)
    assert page and outline
    sides = re.findall(r"(-?\d)(?:px)? (-?\d)(?:px)? (#\w+)", outline[1])
    assert {(x, y) for x, y, _ in sides} == {("1", "0"), ("-1", "0"), ("0", "1"), ("0", "-1")}
    assert all(contrast(colour, page[1]) >= LEAST for _, _, colour in sides)
    runs = pd.DataFrame({"formulation": [f"k{i}" for i in range(MOST_KINDS)], "depth": range(MOST_KINDS)})
    shades = [colour for colour, _, _ in Look.of(runs).entries() if colour]
    unseen = [colour for colour in (*shades, *HUES, OTHER) if contrast(colour, page[1]) < LEAST]
    assert "#440154" in unseen and "#000000" in unseen  # so that outlines are needed
