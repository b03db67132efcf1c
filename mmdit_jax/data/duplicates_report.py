"""What duplicates a source has: counts, groups, and examples that a person can judge."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mmdit_jax.data import duplicates
from mmdit_jax.data.encode.scan import Scan

_THUMB = 96
_PAIRS, _GROUPS, _MEMBERS = 8, 12, 12
"""Examples a distance, groups, and members of each, that the page shows."""


@dataclass(frozen=True)
class Duplicates:
    """What was found among N images, by their numbers in the scan."""

    images: int
    unusable: int
    """Damaged or without a caption: not compared."""
    files: int
    """Images that are copies of another's bytes and captions."""
    exact: tuple[tuple[int, ...], ...]
    """Groups of equal pixels, the largest first."""
    near: tuple[tuple[int, ...], ...]
    """Groups of near duplicates among images whose pixels differ, the largest first."""
    pairs: np.ndarray
    """Near duplicates, int64 [P, 2]: one image of each group of equal pixels stands for it."""
    distances: np.ndarray
    """Bits in which the pairs differ, [P]."""
    other_colours: int
    """Pairs whose hashes are near, and whose colours are not: not counted as duplicates."""

    @property
    def exact_extra(self) -> int:
        """Images that ``--dedupe exact`` drops."""
        return sum(len(group) - 1 for group in self.exact)

    @property
    def near_extra(self) -> int:
        """Images that ``--dedupe perceptual`` drops besides."""
        return sum(len(group) - 1 for group in self.near)


def find(scan: Scan, distance: int, colour: float = duplicates.COLOUR) -> Duplicates:
    """Look for duplicates.

    Args:
        scan: of a whole source.
        distance: bits that perceptual hashes may differ.
        colour: levels that grids of colours may differ.
    """
    usable = np.flatnonzero([not problem for problem in scan.problems])
    exact_root = duplicates.groups(len(usable), duplicates.exact_pairs(scan.pixels[usable]))
    single = usable[np.unique(exact_root)]
    candidates = duplicates.near_pairs(scan.perceptual[single], distance)
    close = candidates[duplicates.same_colours(candidates, scan.colours[single], colour)]
    hashes = scan.perceptual[single]
    return Duplicates(
        images=len(scan),
        unusable=len(scan) - len(usable),
        files=len(usable) - len(np.unique(scan.content[usable])),
        exact=_grouped(usable, exact_root),
        near=_grouped(single, duplicates.groups(len(single), close)),
        pairs=single[close],
        distances=duplicates.hamming(hashes[close[:, 0]], hashes[close[:, 1]]),
        other_colours=len(candidates) - len(close),
    )


def _grouped(items: np.ndarray, root: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Groups of two or more items, the largest first."""
    order = np.argsort(root, kind="stable")
    edges = np.flatnonzero(np.diff(root[order])) + 1
    found = [tuple(items[piece].tolist()) for piece in np.split(order, edges) if len(piece) > 1]
    return tuple(sorted(found, key=lambda group: (-len(group), group)))


def summary(found: Duplicates) -> str:
    """A few lines of text."""
    lines = [
        f"{found.images:,} images, {found.unusable:,} of them not usable",
        f"same pixels: {len(found.exact):,} groups, {found.exact_extra:,} images too many "
        f"({found.files:,} with the same bytes and captions)",
        f"near duplicates besides: {len(found.near):,} groups, {found.near_extra:,} images too many, "
        f"the largest group {max((len(group) for group in found.near), default=0):,}",
    ]
    counts = [f"{bits}: {int((found.distances == bits).sum()):,}" for bits in np.unique(found.distances)]
    lines.append(
        f"pairs by bits that differ: {', '.join(counts) or 'none'}; {found.other_colours:,} more in other colours"
    )
    return "\n".join(lines)


def as_json(found: Duplicates, scan: Scan, distance: int) -> dict[str, Any]:
    """Counts, and the keys of every group."""

    def keys(groups: tuple[tuple[int, ...], ...]) -> list[list[str]]:
        return [[scan.entries[item].key for item in group] for group in groups]

    return {
        "images": found.images,
        "unusable": found.unusable,
        "distance": distance,
        "identical_files": found.files,
        "exact_extra": found.exact_extra,
        "near_extra": found.near_extra,
        "pairs_by_bits": {str(bits): int((found.distances == bits).sum()) for bits in np.unique(found.distances)},
        "pairs_of_other_colours": found.other_colours,
        "exact": keys(found.exact),
        "near": keys(found.near),
    }


def page(found: Duplicates, scan: Scan, name: str, distance: int, picture: Callable[[int], np.ndarray]) -> str:
    """A page to judge by: pairs at each distance, and the largest groups.

    Args:
        found: what to show.
        scan: where it was found.
        name: of the source.
        distance: that was asked for.
        picture: from an item's number to its pixels.
    """

    def figure(item: int) -> str:
        thumb = Image.fromarray(picture(item))
        thumb.thumbnail((_THUMB, _THUMB))
        buffer = io.BytesIO()
        thumb.save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        key, (height, width) = html.escape(scan.entries[item].key), scan.sizes[item]
        return (
            f'<figure><img alt="{key}" src="data:image/png;base64,{data}">'
            f"<figcaption>{key[-28:]}<br>{height}×{width}</figcaption></figure>"
        )

    sections = []
    for bits in np.unique(found.distances):
        rows = found.pairs[found.distances == bits]
        # Spread over all, the same ones each time.
        some = rows[np.unique(np.linspace(0, len(rows) - 1, min(_PAIRS, len(rows))).astype(int))]
        shown = "".join(f'<div class="pair">{figure(int(a))}{figure(int(b))}</div>' for a, b in some)
        sections.append(f"<h2>{bits} of 64 bits differ: {len(rows):,} pairs</h2><div class=row>{shown}</div>")
    for title, groups in (("Near duplicates", found.near), ("Same pixels", found.exact)):
        sections.append(f"<h2>{title}: the largest of {len(groups):,} groups</h2>")
        for group in groups[:_GROUPS]:
            more = f"<p>and {len(group) - _MEMBERS:,} more</p>" if len(group) > _MEMBERS else ""
            shown = "".join(figure(item) for item in group[:_MEMBERS])
            sections.append(f"<div class=row>{shown}{more}</div>")
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in summary(found).splitlines())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>Duplicates in {html.escape(name)}</title><style>{_STYLE}</style>"
        f"<h1>Duplicates in {html.escape(name)}</h1><ul>{lines}</ul>"
        f"<p>Near: perceptual hashes differ in at most {distance} of 64 bits, and mean colours on a 4 by 4 grid "
        f"in at most {duplicates.COLOUR:g} levels. Choose <code>--distance</code> where pairs "
        "cease to be the same picture.</p>" + "".join(sections) + "</html>\n"
    )


_STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222}"
    "h2{font-size:1.1em;margin:1.6em 0 .4em}.row{display:flex;flex-wrap:wrap;gap:10px;margin-bottom:12px;"
    "align-items:end}"
    ".pair{display:flex;gap:4px;padding:4px;border:1px solid #ddd;border-radius:4px}"
    "figure{margin:0;width:104px}img{min-width:64px;max-width:96px;max-height:96px;display:block;margin:auto}"
    "figcaption{font-size:11px;color:#555;overflow-wrap:anywhere;text-align:center}"
)
