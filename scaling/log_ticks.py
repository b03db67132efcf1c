"""Ticks of logarithmic axes in letters (10⁵, 3×10⁵), since figures read no text as mathematics."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from matplotlib.ticker import LogFormatterMathtext, LogFormatterSciNotation

from scaling.findings import SUPERSCRIPTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHELL = re.compile(r"^\$\\mathdefault\{(.*)\}\$$")
_POWER = re.compile(r"\^\{(-?\d+)\}")


class Powers(LogFormatterSciNotation):
    """matplotlib's own labels of such an axis, without its markup."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The tick's label; empty where matplotlib gives none."""
        text = _SHELL.sub(r"\1", super().__call__(x, pos)).replace(r"\times", "×")
        return _POWER.sub(lambda found: found[1].translate(SUPERSCRIPTS), text).replace("-", "−")


def spell_out(figure: Figure) -> None:
    """Give Powers to every axis of ``figure`` that has matplotlib's labels of a logarithmic one."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            major, minor = axis.get_major_formatter(), axis.get_minor_formatter()
            base = getattr(axis.get_transform(), "base", 10.0)
            if isinstance(major, LogFormatterMathtext):
                axis.set_major_formatter(Powers(base, labelOnlyBase=major.labelOnlyBase))
            if isinstance(minor, LogFormatterMathtext):
                axis.set_minor_formatter(Powers(base, labelOnlyBase=minor.labelOnlyBase))
