"""Letters in figures that matplotlib's own font lacks, as in Chinese names: by other fonts, where they are there."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

OWN = "DejaVu Sans"
"""The font that comes with matplotlib, of mathematics too."""
FALLBACK = (
    *(f"Noto Sans CJK {place}" for place in ("SC", "JP", "KR", "TC")),
    *("Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "IPAexGothic", "Arial Unicode MS"),
)
"""Families with Chinese, Japanese or Korean letters; of these, what is there."""
_MISSING = re.compile(r"Glyph (\d+) .*missing from font")
_MATHEMATICS = re.compile(r"(?<!\\)\$(.*?)(?<!\\)\$")
_POWER = re.compile(r"\^\{([^}]*)\}")
_told: list[str] = []


def families() -> list[str]:
    """Value of ``font.family``: matplotlib's own first."""
    from matplotlib.font_manager import fontManager

    there = set(fontManager.get_font_names())
    return ["sans-serif", *(name for name in FALLBACK if name in there)]


@contextmanager
def boxes_told() -> Iterator[None]:
    """In here one line, the first time in a process, stands for matplotlib's warnings of letters that no font has."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def shown(message: Warning | str, *told: Any, **options: Any) -> None:
            letter = _MISSING.match(str(message))
            if letter is None:
                show(message, *told, **options)
                return
            if not _told:
                text = "figures: no font here has %r; boxes stand for such letters (a Noto Sans CJK would do)"
                log.warning(text, chr(int(letter[1])))
            _told.append(letter[1])

        warnings.showwarning = shown
        yield


def in_own_font(text: str) -> bool:
    """Whether the font of mathematics has all of its letters: it has no other beside it."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(OWN))
    return all(letter.isspace() or font.get_char_index(ord(letter)) for letter in text)


def without_mathematics(text: str) -> str:
    """What stands between dollars, as ``Law.equation`` writes it, in plain letters: ``C^{-0.2}`` is C^−0.2."""

    def plain(found: re.Match[str]) -> str:
        shown = found[1].replace(r"\,", " ").replace(r"\cdot", "·")
        return _POWER.sub(lambda power: f"^{power[1]}".replace("-", "−"), shown)

    return _MATHEMATICS.sub(plain, text).replace(r"\$", "$")
