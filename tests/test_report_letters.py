"""Letters that matplotlib's own font lacks: by a font that has them where there is one, else one line is told."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from scaling import letters, look

LETTER = "習"


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A font of one of the usual families, whose only letter is a black square of one em."""
    pen = TTGlyphPen(None)
    for move, point in ((pen.moveTo, (0, 0)), *((pen.lineTo, p) for p in ((0, 1000), (1000, 1000), (1000, 0)))):
        move(point)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "letter"])
    font.setupCharacterMap({ord(LETTER): "letter"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "letter": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "letter": (1000, 0)})
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable({"familyName": letters.FALLBACK[0], "styleName": "Regular", "psName": "Square"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "font.ttf")
    entry = font_manager.ttfFontProperty(font_manager.get_font(str(tmp_path / "font.ttf")))
    mine = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*mine, entry])
    return letters.FALLBACK[0]


def drawn(folder: Path, text: str) -> np.ndarray:
    with look.drawing() as (figure, axes):
        axes.set_axis_off()
        axes.text(0.5, 0.5, text, fontsize=60)
        assert "<svg" in look.save_svg(figure)
    look.save(figure, folder, "f")
    return np.asarray(Image.open(folder / "f.png").convert("L"))


def test_a_font_that_has_them_is_used(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = drawn(tmp_path, LETTER)
    side = 60 / 72 * 170
    assert (image < 50).sum() == pytest.approx(side**2, rel=0.02)
    assert not caplog.records and b"Square" in (tmp_path / "f.pdf").read_bytes()


def test_without_one_a_line_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", mine)
    monkeypatch.setattr(letters, "_told", [])
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        drawn(tmp_path, LETTER + "学模型")
        with look.drawing():
            warnings.warn("another", stacklevel=1)
    assert [str(item.message) for item in caught] == ["another"]
    assert [LETTER in record.getMessage() for record in caplog.records] == [True]
    assert len(caplog.records[0].getMessage().splitlines()) == 1


def test_a_formula_beside_such_letters_is_written_in_plain_ones(caplog: pytest.LogCaptureFixture) -> None:
    equation = r"$L = 0.05 + 3.10\cdot10^{5}\,C^{-0.210}$"
    names = ("rf ελ", LETTER + r" $a")
    with look.drawing() as (figure, axes):
        texts = [axes.text(0, 0, look.formula(name, equation)) for name in names]
        look.show_formulas(texts)
        figure.draw_without_rendering()
    assert [text.get_parse_math() for text in texts] == [True, False]
    assert texts[0].get_text() == f"rf ελ: {equation}"
    assert texts[1].get_text() == f"{LETTER} $a: L = 0.05 + 3.10·10^5 C^−0.210"
    assert not [record for record in caplog.records if record.name.startswith("matplotlib")]
