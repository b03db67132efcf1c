"""One self-contained HTML page: sections of a sentence, figures and tables; no script, no outside resource."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5c6470; --line: #d9dde3; --page: #ffffff; --head: #f4f6f8;
  --accent: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a3abb6; --line: #3a404a; --page: #15181c;
  --head: #1f242a; --accent: #7db8f0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p, ul { max-width: 46rem; margin: .4rem 0 .8rem; }
nav { font-size: .9rem; margin: .6rem 0; } nav a { margin-right: 1rem; display: inline-block; }
a { color: var(--accent); }
.finding { font-size: 1.05rem; }
.missing, .note, figcaption, caption { color: var(--soft); }
.note, figcaption, caption { font-size: .85rem; }
.missing::before { content: "Missing: "; font-weight: 600; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: .4rem 0; flex: 1 1 24rem; max-width: 36rem; min-width: 0; }
figure.wide { flex-basis: 100%; max-width: 100%; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
figure.wide .scroll img { width: auto; max-width: none; }
figure.broad { max-width: 100%; } figure.broad img { width: auto; max-width: 100%; }
.scroll { overflow-x: auto; max-width: 100%; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .2rem 0; caption-side: top; }
th, td { padding: .28rem .55rem; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { background: var(--head); font-weight: 600; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td small { color: var(--soft); }
td.prose { white-space: normal; min-width: 16rem; text-align: left; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --head: #eee;
  --accent: #000; } body { font-size: 10pt; } nav { display: none; } main { padding: 0; max-width: none; }
  figure, table, tr { break-inside: avoid; } h2, .finding { break-after: avoid; } .scroll { overflow: visible; }
  table { font-size: 7pt; } th, td { padding: .12rem .3rem; white-space: normal; overflow-wrap: anywhere; }
  figure { flex-basis: 45%; } figure.wide .scroll img { max-width: 100%; } }
"""


@dataclass
class Section:
    """One part of the page, in the order it is shown: sentences, what is missing, figures, tables, notes.

    ``figures``: (PNG bytes, caption), ``broad`` ones take a row of their own, shrunk to the page where they are wider,
    ``wide`` ones too, at natural size. ``tables``: (frame of
    ready strings, caption); in a cell, what follows a line break is set smaller.
    """

    title: str
    findings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    figures: list[tuple[bytes, str]] = field(default_factory=list)
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


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page as text; every string is escaped, every image a data URI."""
    links = "".join(f'<a href="#{part.anchor}">{html.escape(part.title)}</a>' for part in sections)
    body = "\n".join(_section(part) for part in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n"
        f"<p>{html.escape(subtitle)}</p>\n<nav>{links}</nav>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _section(part: Section) -> str:
    lines = [f'<section id="{part.anchor}">', f"<h2>{html.escape(part.title)}</h2>"]
    if len(part.findings) > 2:
        lines.append("<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in part.findings) + "</ul>")
    else:
        lines += [f'<p class="finding">{html.escape(text)}</p>' for text in part.findings]
    lines += [f'<p class="missing">{html.escape(text)}</p>' for text in part.missing]
    if part.figures:
        lines.append('<div class="figures">' + "".join(_figure(png, text) for png, text in part.figures) + "</div>")
    lines += [_figure(png, text, "broad") for png, text in part.broad]
    lines += [_figure(png, text, "wide") for png, text in part.wide]
    lines += [_table(frame, caption) for frame, caption in part.tables]
    lines += [f'<p class="note">{html.escape(text)}</p>' for text in part.notes]
    return "\n".join([*lines, "</section>"])


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
    def kind(text: str) -> str:
        if len(text) > 60:
            return ' class="prose"'
        return "" if text[:1] and text[:1] in "0123456789−-–+" else ' class="text"'

    texts = [[str(value) for value in row] for row in frame.itertuples(index=False)]
    first = texts[0] if texts else []
    head = "".join(
        f"<th{kind(first[i]) if first else ''}>{html.escape(str(name))}</th>" for i, name in enumerate(frame.columns)
    )
    rows = "".join("<tr>" + "".join(f"<td{kind(t)}>{_cell(t)}</td>" for t in row) + "</tr>\n" for row in texts)
    return (
        f'<div class="scroll"><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>"
    )
