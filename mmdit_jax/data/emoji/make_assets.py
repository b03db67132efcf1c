"""Make the emoji assets from two npm packages, both MIT. Only needed to change them: the result ships.

    npm pack @iconify-json/fluent-emoji-flat@1.2.6 emojibase-data@17.0.0
    mkdir fluent emojibase
    tar xzf iconify-json-fluent-emoji-flat-1.2.6.tgz -C fluent
    tar xzf emojibase-data-17.0.0.tgz -C emojibase
    pip install resvg-py
    python -m mmdit_jax.data.emoji.make_assets fluent/package emojibase/package

Writes images.npz (uint8 [3139, 64, 64, 3], on white) and emoji.tsv (a row an image) beside this file, in a minute.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdit_jax.data.emoji.assets import IMAGES, RESOLUTION, TABLE, Emoji, normal_code


def texts(emojibase: Path) -> dict[str, dict[str, Any]]:
    """Label, tags and group by normalised code, skin-tone variants included, from emojibase's English data."""
    entries = json.loads((emojibase / "en" / "data.json").read_text(encoding="utf-8"))
    messages = json.loads((emojibase / "en" / "messages.json").read_text(encoding="utf-8"))
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        # A skin-tone variant has a label of its own, but its tags are those of the plain emoji.
        for variant in [entry, *entry.get("skins", [])]:
            found[normal_code(variant["hexcode"])] = {
                "label": variant["label"],
                "tags": entry.get("tags", []),
                "group": groups.get(variant.get("group"), ""),
            }
    return found


def render(svg: str, size: int) -> np.ndarray:
    """An SVG on white, uint8 [size, size, 3], centred where its view box isn't square."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = Image.new("RGBA", (size, size), (255, 255, 255, 255))
    canvas.alpha_composite(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
    return np.asarray(canvas.convert("RGB"))


def collect(fluent: Path, emojibase: Path) -> tuple[list[Emoji], np.ndarray]:
    """Every icon that has text, in the order of its code: rows and images [N, RESOLUTION, RESOLUTION, 3]."""
    icons = json.loads((fluent / "icons.json").read_text(encoding="utf-8"))
    characters = json.loads((fluent / "chars.json").read_text(encoding="utf-8"))
    known = texts(emojibase)
    codes: dict[str, str] = {}
    for code, name in sorted(characters.items()):
        if normal_code(code) in known:
            codes.setdefault(name, normal_code(code))
    side = icons.get("width", 16), icons.get("height", 16)
    made = []
    for name, icon in icons["icons"].items():
        if name not in codes:
            continue
        box = f"0 0 {icon.get('width', side[0])} {icon.get('height', side[1])}"
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}">{icon["body"]}</svg>'
        )
        text = known[codes[name]]
        made.append((Emoji(codes[name], text["label"], tuple(text["tags"]), text["group"]), render(svg, RESOLUTION)))
    made.sort(key=lambda pair: pair[0].code)
    return [row for row, _ in made], np.stack([image for _, image in made])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fluent", type=Path, help="folder of @iconify-json/fluent-emoji-flat (with icons.json)")
    parser.add_argument("emojibase", type=Path, help="folder of emojibase-data (with en/data.json)")
    arguments = parser.parse_args()
    rows, images = collect(arguments.fluent, arguments.emojibase)
    np.savez_compressed(IMAGES, images=images)
    with open(TABLE, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["code", "label", "tags", "group"])
        writer.writerows([row.code, row.label, "|".join(row.tags), row.group] for row in rows)
    print(
        f"{len(rows)} emoji; {IMAGES.name} {IMAGES.stat().st_size:,} bytes; {TABLE.name} {TABLE.stat().st_size:,} bytes"
    )


if __name__ == "__main__":
    main()
