"""Names with dollars: every figure shows them as they stand, and only a law's equation is mathematics."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import matplotlib.mathtext
import numpy as np
import pandas as pd
import pytest
from goodput_cases import FakeRun
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation
from matplotlib.transforms import Bbox
from test_rank_command import scores
from test_report import Page, study

from scaling import figures
from scaling.architecture_section import architecture_section
from scaling.goodput import goodput, goodput_table
from scaling.log_ticks import Powers
from scaling.look import Look, drawing, formula, legend_above, save, save_svg, show_formulas
from scaling.report import write_report
from scaling.study import load_study

BAD = {
    "rf": r"cost $\foo$",
    "rf/lognorm(0.00,1.00)": "$x_1$ and $",
    "scenes": r"$\scenes$",
    "emoji": r"_$\emoji$",
    "counting": r"$\count$",
    "contrastive": r"$\judge_{$",
}


def renamed(text: object) -> object:
    """A formulation, data set, task or judge under its BAD name; runs get two dollars too."""
    if not isinstance(text, str):
        return text
    return BAD.get(text, re.sub(r"^(d\d)-(.*)", r"\1 $\\run_\2$", text))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study with almost every table, all of its names with dollars."""
    folder = study(tmp_path / "s")
    for path in folder.glob("*.csv"):
        pd.read_csv(path).map(renamed).to_csv(path, index=False)
    names = pd.read_csv(folder / "results.csv")["name"]
    ranked = scores(["rf", "rf/lognorm(0.00,1.00)", "v/cos"]).map(renamed)
    ranked = ranked[(ranked["weights"] == "ema") & (ranked["guidance"] == 5)]
    ranked["setting"] = "$" + ranked["setting"].astype(str)
    ranked.to_csv(folder / "scores.csv", index=False)
    spent = [(f"{seed:08x}", name, goodput(FakeRun(seed).events)) for seed, name in enumerate(names[:3])]
    pd.DataFrame(goodput_table(spent)).to_csv(folder / "goodput.csv", index=False)
    return folder


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What matplotlib reads as mathematics."""
    read: list[str] = []
    parse = matplotlib.mathtext.MathTextParser.parse

    def noted(self: matplotlib.mathtext.MathTextParser, s: str, *args: object, **kwargs: object) -> object:
        read.append(s)
        return parse(self, s, *args, **kwargs)

    monkeypatch.setattr(matplotlib.mathtext.MathTextParser, "parse", noted)
    return read


def mathematics(text: str) -> list[str]:
    """What stands between its dollars, those after a backslash aside."""
    return re.split(r"(?<!\\)\$", text)[1::2]


def test_a_report_of_names_with_dollars(folder: Path, parsed: list[str]) -> None:
    text = write_report(folder, title="t", draws=20).read_text(encoding="utf-8")
    page = Page(text)
    made = {path.stem for path in (folder / "figures").glob("*.pdf")}
    assert {"figure8", "power_law", "loss_per_level_ratio", "geneval", "elo", "ranks", "fronts", "goodput"} <= made
    assert r"$\scenes$" in text and r"cost $\foo$" in page.texts["runs"]
    formulas = {found for each in parsed for found in mathematics(each)}
    assert formulas and all(found.startswith("L = ") for found in formulas)
    assert "mathdefault" not in text  # as of ticks in the page's SVG


def test_architectures_with_dollars(tmp_path: Path, parsed: list[str]) -> None:
    rows = [
        {"run_id": f"{kind}{seed}", "name": f"{kind}{seed}", "formulation": "rf", "depth": 2, "dataset": "scenes"}
        | {"architecture": kind, "seed": seed, "val_loss": 0.1 + 0.01 * seed * len(kind)}
        for kind in (r"$\a$", r"_$\bb$")
        for seed in (0, 1, 2)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    (part,) = architecture_section(load_study(tmp_path), tmp_path / "figures")
    assert part.broad and not parsed


def test_a_formula_is_mathematics_and_the_name_before_it_is_not(parsed: list[str], tmp_path: Path) -> None:
    with drawing() as (figure, axes):
        show_formulas([axes.set_title(formula(r"$\no$ \$ _", "$L = 1$"))])
        axes.set_xlabel(r"$\no$")
    save(figure, tmp_path, "f")
    assert {tuple(mathematics(text)) for text in parsed} == {("L = 1",)}
    with drawing() as (figure, axes):
        (handle,) = axes.plot([1], [1], label="_hidden")
        legend_above(figure, [handle])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" _hidden"]


@pytest.mark.parametrize(("low", "high", "base"), [(1, 1e6, 10), (2e-5, 9e-5, 10), (0.3, 40, 2), (5e11, 3e12, 10)])
def test_ticks_say_what_matplotlibs_say(low: float, high: float, base: int) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.set_xscale("log", base=base)
    axes.set_xlim(low, high)
    ours, theirs = Powers(base), LogFormatterSciNotation(base)
    signs = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
    shown = 0
    for found in (ours, theirs):
        found.set_axis(axes.xaxis)
        found.set_locs()
    for x in np.concatenate([axes.xaxis.get_majorticklocs(), axes.xaxis.get_minorticklocs()]):
        markup, text = theirs(x), ours(x)
        assert bool(markup) == bool(text) and "$" not in text and "\\" not in text
        if text:
            shown += 1
            mantissa, _, power = text.rpartition("×")
            value = float(mantissa or 1) * base ** int(power[len(str(base)) :].translate(signs))
            assert value == pytest.approx(x)
    assert shown


def test_ticks_in_files_and_in_pages_are_letters(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with drawing() as (figure, axes):
            axes.loglog([1e3, 1e7], [1, 1e4])
            inside = save_svg(figure)  # before the drawing's settings end, as the panels of a page
        save(figure, tmp_path, "f")
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert "10⁵" in labels and "<!-- 10⁵ -->" in inside and "mathdefault" not in inside


def test_a_long_label_stays_in_the_figure() -> None:
    kind = "mmdit rf/lognorm(0.00,1.00)"
    rows = [{"formulation": "dit rf", "depth": 2, "t": t, "ratio": 1 + t} for t in (0.2, 0.5, 0.8)]
    look = Look(
        (2, 3), tuple(f"{name} rf/lognorm(0.00,1.00)" for name in ("crossdit", "dit", "mmdit", "mmdit3", "uvit"))
    )
    figure = figures.level_ratios(pd.DataFrame(rows), kind, look)
    figure.draw_without_rendering()
    label: Bbox = figure.axes[0].yaxis.label.get_window_extent()
    assert label.y0 >= 0 and label.y1 <= figure.bbox.y1 and label.x0 >= 0
    assert kind in figure.axes[0].get_ylabel().replace("\n", " ")
