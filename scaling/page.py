"""One self-contained HTML page: a first screen, then sections of a sentence, figures, tables; no outside resource."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.interactive import Panel, island, panel_html

STATIC = Path(__file__).parent / "static"
PAPER = "paper"
"""What headings of columns and rows begin with whose numbers are the paper's; they are set apart."""


@dataclass
class Lead:
    """The first screen: a sentence, answers (lines) by question, and what to do next, with commands."""

    headline: str
    answers: list[tuple[str, Sequence[str]]]
    question: str
    steps: list[tuple[str, str]]


@dataclass
class Section:
    """One part of the page, in the order it is shown: sentences, what is missing, figures, tables, notes.

    ``figures``: (PNG bytes, caption), ``broad`` ones take a row of their own, shrunk to the page where they are wider,
    ``wide`` ones too, at natural size. ``tables``: (frame of
    ready strings, caption); in a cell, what follows a line break is set smaller. ``panels``: a grid of SVG whose runs
    can be pointed at, under a ``legend`` of (colour, sign, text).
    """

    title: str
    findings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    figures: list[tuple[bytes, str]] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    legend: list[tuple[str, str, str]] = field(default_factory=list)
    broad: list[tuple[bytes, str]] = field(default_factory=list)
    wide: list[tuple[bytes, str]] = field(default_factory=list)
    tables: list[tuple[pd.DataFrame, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The section's id in the page."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower()).strip("-")


def formatted(numbers: pd.Series, pattern: str) -> list[str]:
    """A column of a table: numbers by a pattern of ``str.format``, a dash where there is none."""
    return [pattern.format(value) if np.isfinite(value) else "–" for value in numbers.astype(float)]


def render(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    *,
    lead: Lead | None = None,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """The whole page as text; every string is escaped, every image a data URI.

    ``facts`` are what panels tell of their runs (``interactive.run_facts``); without them the page has no script.
    """
    links = "".join(f'<a href="#{part.anchor}">{html.escape(part.title)}</a>' for part in sections)
    names = {mark: run["name"] for mark, run in facts["runs"].items()} if facts else {}
    body = "\n".join(_section(part, names) for part in sections)
    style = (STATIC / "report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n"
        f"{_lead(lead) if lead else ''}<p>{html.escape(subtitle)}</p>\n<nav>{links}</nav>\n{body}\n</main>\n"
        f"{_script(facts) if facts else ''}</body>\n</html>\n"
    )


def _lead(lead: Lead) -> str:
    parts = [
        f"<div><dt>{html.escape(name)}</dt>" + "".join(f"<dd>{html.escape(text)}</dd>" for text in lines) + "</div>"
        for name, lines in lead.answers
    ]
    steps = ""
    for text, command in lead.steps:
        steps += html.escape(text) + (f"<code>{html.escape(command)}</code>" if command else "<br>")
    parts.append(f"<div><dt>{html.escape(lead.question)}</dt><dd>{steps}</dd></div>")
    return (
        f'<section class="lead" id="first">\n<p class="headline">{html.escape(lead.headline)}</p>\n'
        f"<dl>{''.join(parts)}</dl>\n</section>\n"
    )


def _script(facts: Mapping[str, Any]) -> str:
    """What panels need to answer. The data are inert: a script element of JSON."""
    code = (STATIC / "report.js").read_text(encoding="utf-8")
    return (
        '<div id="tip" role="status" hidden></div>\n<aside id="side" aria-labelledby="side-name" hidden>'
        '<button id="close" type="button">Close</button><h2 id="side-name"></h2><dl id="side-facts"></dl>'
        '<div id="side-samples"></div></aside>\n'
        f'<script type="application/json" id="facts">{island(facts)}</script>\n<script>{code}</script>\n'
    )


def _section(part: Section, names: Mapping[str, str]) -> str:
    lines = [f'<section id="{part.anchor}">', f"<h2>{html.escape(part.title)}</h2>"]
    if len(part.findings) > 2:
        lines.append("<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in part.findings) + "</ul>")
    else:
        lines += [f'<p class="finding">{html.escape(text)}</p>' for text in part.findings]
    lines += [f'<p class="missing">{html.escape(text)}</p>' for text in part.missing]
    if part.panels:
        lines += [_legend(part.legend), '<div class="panels">']
        lines += [panel_html(panel, names) for panel in part.panels]
        lines.append("</div>")
        if names and any(panel.svg for panel in part.panels):
            lines.append(
                '<p class="note">Point at a run for its numbers; click it, or press Enter, for its samples.</p>'
            )
            lines.append("<noscript><p>Without scripts figures are still; samples stand below.</p></noscript>")
    if part.figures:
        lines.append('<div class="figures">' + "".join(_figure(png, text) for png, text in part.figures) + "</div>")
    lines += [_figure(png, text, "broad") for png, text in part.broad]
    lines += [_figure(png, text, "wide") for png, text in part.wide]
    lines += [_table(frame, caption) for frame, caption in part.tables]
    lines += [f'<p class="note">{html.escape(text)}</p>' for text in part.notes]
    return "\n".join([*lines, "</section>"])


def _legend(entries: Sequence[tuple[str, str, str]]) -> str:
    items = [
        f'<li><span style="color:{html.escape(colour or "inherit", quote=True)}">{html.escape(sign)}</span> '
        f"{html.escape(text)}</li>"
        for colour, sign, text in entries
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _figure(png: bytes, caption: str, kind: str = "") -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = f'<img src="{source}" alt="{html.escape(caption, quote=True)}">'
    text = f"<figcaption>{html.escape(caption)}</figcaption>"
    if kind == "wide":
        image = f'<div class="scroll">{image}</div>'
    return f'<figure class="{kind}">{image}{text}</figure>' if kind else f"<figure>{image}{text}</figure>"


def _cell(text: str) -> str:
    """A cell's text; what follows a line break (an interval under its value) is set smaller."""
    first, *rest = text.split("\n")
    return html.escape(first) + "".join(f"<br><small>{html.escape(line)}</small>" for line in rest)


def _table(frame: pd.DataFrame, caption: str) -> str:
    def kind(text: str, printed: bool) -> str:
        names = ["paper"] if printed else []
        if len(text) > 60:
            names.append("prose")
        elif not (text[:1] and text[:1] in "0123456789−-–+"):
            names.append("text")
        return f' class="{" ".join(names)}"' if names else ""

    texts = [[str(value) for value in row] for row in frame.itertuples(index=False)]
    first = texts[0] if texts else [""] * len(frame.columns)
    printed = [str(name).startswith(f"{PAPER}:") for name in frame.columns]
    head = "".join(
        f"<th{kind(first[i], printed[i])}>{html.escape(str(name))}</th>" for i, name in enumerate(frame.columns)
    )
    rows = ""
    for row in texts:
        theirs = row[0].startswith(f"{PAPER}:")
        rows += "<tr>" + "".join(f"<td{kind(t, theirs or printed[i])}>{_cell(t)}</td>" for i, t in enumerate(row))
        rows += "</tr>\n"
    return (
        f'<div class="scroll"><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>"
    )
