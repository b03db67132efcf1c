"""Grids of images with labels: the same prompts and noise, one run a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmdit_jax.data.scenes.prompts import Prompt
from mmdit_jax.errors import UserError

CELL = 112
"""Least side of a picture in the grid, in pixels; smaller images are enlarged by a whole factor."""
EACH, ALONE = 2, 12
FONT_SIZE, GAP, MARGIN = 13, 6, 10
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


def samples_png(images: Mapping[str, np.ndarray], prompts: Sequence[Prompt], path: Path) -> None:
    """A row of the same prompts for each of ``images`` [P, K, H, W, 3], by label; the first of a prompt's K images."""
    columns = _shown([item.task for item in prompts])
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = np.stack([own[columns, 0] for own in images.values()])
    grid_png(pictures, list(images), [prompts[i].prompt for i in columns], path)


def _shown(tasks: Sequence[str]) -> list[int]:
    """Columns of a grid: the first EACH prompts of every task; the first ALONE where there is one task only."""
    kinds = list(dict.fromkeys(tasks))
    count = EACH if len(kinds) > 1 else ALONE
    return [i for kind in kinds for i in [j for j, task in enumerate(tasks) if task == kind][:count]]


def grid_png(images: np.ndarray, row_labels: Sequence[str], col_labels: Sequence[str], path: Path) -> None:
    """Write a labelled grid as PNG.

    Args:
        images: uint8 [rows, columns, H, W, 3]; enlarged by nearest neighbour, so a pixel stays a square.
        row_labels: one a row, to its left (run names).
        col_labels: one a column, above it (captions); long ones wrap.
        path: the file; its folder exists.

    Raises:
        UserError: the labels are not as many as the rows and columns, or the images no such array.
    """
    grid_image(images, row_labels, col_labels).save(path, format="PNG", optimize=True)


def grid_image(images: np.ndarray, row_labels: Sequence[str], col_labels: Sequence[str]) -> Image.Image:
    """The grid that ``grid_png`` writes."""
    images = np.asarray(images)
    if images.ndim != 5 or images.shape[-1] != 3 or images.dtype != np.uint8 or images.size == 0:
        raise UserError(f"images={images.dtype}{list(images.shape)}: expected uint8 [rows, columns, H, W, 3]")
    rows, columns, height, width, _ = images.shape
    for field, labels, count in (("row_labels", row_labels, rows), ("col_labels", col_labels, columns)):
        if len(labels) != count:
            raise UserError(f"{field}={len(labels)} labels: expected {count}")

    factor = max(1, -(-CELL // max(height, width)))
    height, width = height * factor, width * factor
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + 4
    left = [wrap(label, font, 2 * CELL) for label in row_labels]
    top = [wrap(label, font, width) for label in col_labels]
    x0 = 2 * MARGIN + round(max(font.getlength(text) for lines in left for text in lines))
    y0 = 2 * MARGIN + line * max(len(lines) for lines in top)
    size = (x0 + columns * (width + GAP) - GAP + MARGIN, y0 + rows * (height + GAP) - GAP + MARGIN)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)

    for column, lines in enumerate(top):
        y = y0 - MARGIN - line * len(lines)  # headings stand on their pictures
        for i, text in enumerate(lines):
            x = x0 + column * (width + GAP) + (width - font.getlength(text)) / 2
            draw.text((x, y + i * line), text, _INK, font)
    for row, lines in enumerate(left):
        y = y0 + row * (height + GAP) + (height - line * len(lines)) / 2
        for i, text in enumerate(lines):
            draw.text((x0 - MARGIN - font.getlength(text), y + i * line), text, _INK, font)
        for column in range(columns):
            enlarged = images[row, column].repeat(factor, axis=0).repeat(factor, axis=1)
            corner = (x0 + column * (width + GAP), y0 + row * (height + GAP))
            canvas.paste(Image.fromarray(enlarged), corner)
    return canvas


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken at spaces and, where a word is longer, within it."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
