"""The report: one self-contained page, the same bytes again, whole or with half of the study missing."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from scaling import findings
from scaling.analysis import analyse
from scaling.elo import rate
from scaling.errors import TableError
from scaling.laws import fit_power_law
from scaling.report import write_report
from scaling.study import load_study

TASKS = ("single_object", "counting", "overall")
KINDS = {"rf": "rf", "lognorm": "rf/lognorm(0.00,1.00)"}


def study(folder: Path) -> Path:
    """Six runs on scenes that obey L = 8·C^(−0.15), lognorm 3 % lower, and one run on emoji."""
    rng = np.random.default_rng(0)
    results, curves, scores, battles = [], [], [], []
    grid = [("scenes", depth, kind) for depth in (1, 2, 3) for kind in KINDS] + [("emoji", 2, "lognorm")]
    for number, (dataset, depth, kind) in enumerate(grid):
        name = f"d{depth}-{kind}" if dataset == "scenes" else "emoji-d2"
        run: dict[str, object] = {
            "run_id": f"{number:08x}",
            "name": name,
            "formulation": KINDS[kind],
            "depth": depth,
            "dataset": dataset,
        }
        for step in range(50, 401, 50):
            cost = 1e9 * depth**3 * step
            base = 8 * cost**-0.15 * (1 + 0.3 * abs(np.log(step / 200))) * (0.97 if kind == "lognorm" else 1)
            shape = np.linspace(1.3, 0.7, 8)
            level = dict(zip((f"val_loss_{i}" for i in range(8)), base * shape, strict=True))
            point = {**run, "step": step, "images": 32 * step, "train_flops": cost, "val_loss": base, **level}
            curves.append(point)
        extra = {"seed": 0, "params": 1000 * depth**3, "steps": 400, "batch": 32, "train_flops_6nd": 2 * cost}
        if dataset == "scenes":
            rate_overall = 0.05 * depth + (0.01 if kind == "lognorm" else 0.0)
            for task in TASKS:
                row = {"n": 100, "rate": rate_overall, "low": rate_overall - 0.02, "high": rate_overall + 0.02}
                graded = {"graded": 0.3 + rate_overall, "graded_low": 0.3, "graded_high": 0.6}
                chance = {"chance": 0.08, "chance_graded": 0.3}
                scores.append({**run, "task": task, **row, **graded, **chance})
            extra |= {"geneval": rate_overall, "geneval_graded": 0.3 + rate_overall}
        results.append({**point, **extra})
    names = [row["name"] for row in results if row["dataset"] == "scenes"]
    for judge in ("contrastive", "scorer"):
        for prompt in range(20):
            for i, left in enumerate(names):
                for j, right in enumerate(names[:i]):
                    wins = rng.random() < 1 / (1 + np.exp(0.4 * (j - i)))
                    outcome = "tie" if rng.random() < 0.2 else ("left" if wins else "right")
                    fight = {"prompt": prompt, "left": left, "right": right, "outcome": outcome}
                    battles.append({**fight, "question": "overall", "judge": judge, "seed": 0})
    (folder / "figures").mkdir(parents=True)
    for name, rows in (("results", results), ("curves", curves), ("geneval", scores), ("battles", battles)):
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(folder / "figures" / "samples.png")
    return folder


class Page(HTMLParser):
    """Every address the page would load, whether its tags close, and its text by section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.texts: dict[str, str] = {}
        self.section = ""
        self.missing = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.loads += [str(known[key]) for key in ("src", "href") if key in known]
        self.missing += known.get("class") == "missing"
        if tag == "section":
            self.section = str(known["id"])
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[self.section] = self.texts.get(self.section, "") + data


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    folder = study(tmp_path_factory.mktemp("study") / "s")
    path = write_report(folder, title="A <study>", notes=["Made & told."], draws=60)
    return folder, Page(path.read_text(encoding="utf-8"))


def test_page_is_whole_and_loads_nothing(full: tuple[Path, Page]) -> None:
    _, page = full
    assert not page.open
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.loads)
    anchors = {address[1:] for address in page.loads if address.startswith("#")}
    assert anchors <= set(page.texts)
    assert len([a for a in page.loads if a.startswith("data:")]) == 14
    assert page.missing == 0
    assert "Made & told." in page.texts["how-these-numbers-were-made"]


def test_figures_are_png_and_pdf(full: tuple[Path, Page]) -> None:
    folder, _ = full
    made = {path.stem for path in (folder / "figures").glob("*.pdf")}
    assert {"loss_step", "loss_flops", "power_law", "loss_per_level", "geneval", "elo", "correlation_elo"} <= made
    for name in made:
        with Image.open(folder / "figures" / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 10, name  # not blank
        pdf = (folder / "figures" / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"CreationDate" not in pdf


def test_only_one_data_set_is_compared(full: tuple[Path, Page]) -> None:
    folder, page = full
    tables = load_study(folder)
    assert tables.dataset == "scenes" and len(tables.runs) == 6 and set(tables.others["dataset"]) == {"emoji"}
    for section in ("in-short", "runs", "validation-loss", "power-law-over-compute", "elo-proxy"):
        assert "emoji" not in page.texts[section]
    assert "emoji-d2" in page.texts["other-data-sets"]
    found = analyse(tables, draws=40)
    assert {found.correlations[name].found.rows for name in found.correlations} == {6}


def test_sentences_come_from_the_numbers(full: tuple[Path, Page]) -> None:
    folder, page = full
    results = pd.read_csv(folder / "results.csv")
    scenes = results[results["dataset"] == "scenes"]
    best = scenes.loc[scenes["val_loss"].idxmin()]
    loss = page.texts["validation-loss"]
    assert f"lowest final validation loss is {best['val_loss']:.4f}, of d3-lognorm" in loss
    assert "falls at every step of the ladder in both formulations" in loss
    level = page.texts["loss-per-t-bin"]
    assert "lower at all 3 depths" in level and "3.0 % lower on average" in level and "One seed a setting" in level
    assert "intervals of 1 of the other 5 runs overlap" in page.texts["genEval-proxy".lower()]
    assert "holds zero" not in page.texts["does-loss-predict-quality"]
    law = analyse(load_study(folder), draws=60).fits["all formulations"][0]
    text = page.texts["power-law-over-compute"]
    assert f"C^−{law.params['b']:.3f}" in text and f"multiplies loss by {10 ** -law.params['b']:.2f}" in text


def test_sentences_turn_cautious() -> None:
    compute = np.repeat(np.logspace(12, 14, 6), 2)
    flat = fit_power_law(compute, np.exp(np.random.default_rng(0).normal(0, 0.2, 12)), draws=100)
    assert "do not yet show a law" in findings.law_finding({"rf": (flat, pd.DataFrame())}, "all")
    rows = {"prompt": range(8), "left": "a", "right": "b", "outcome": ["left", "right"] * 4}
    assert "first place is not settled" in findings.elo_finding(rate(pd.DataFrame(rows), draws=100))
    score = {"task": "overall", "chance": 0.05}
    geneval = pd.DataFrame(
        [
            {"name": "a", **score, "rate": 0.06, "low": 0.03, "high": 0.1},
            {"name": "b", **score, "rate": 0.04, "low": 0.02, "high": 0.08},
        ]
    )
    text = findings.task_finding(geneval)
    assert "1 of the other 1 runs overlap" in text and "not told apart from the 0.050" in text
    worse = pd.DataFrame({"name": ["a", "b"], "formulation": "rf", "depth": [1, 2], "val_loss": [0.1, 0.2]})
    assert "does not fall at every step" in findings.depth_finding(worse)


def test_same_tables_same_bytes(full: tuple[Path, Page], tmp_path: Path) -> None:
    folder, _ = full
    again = study(tmp_path / "again")
    write_report(again, title="A <study>", notes=["Made & told."], draws=60)
    for path in sorted([folder / "report.html", *(folder / "figures").iterdir()]):
        other = (again / path.relative_to(folder)).read_bytes()
        assert path.read_bytes() == other.replace(str(again).encode(), str(folder).encode()), path.name


def test_a_run_that_went_to_infinity_does_not_stop_the_report(tmp_path: Path) -> None:
    """One validation of a curve is infinite, and nothing was scored."""
    folder = study(tmp_path / "s")
    curves, geneval = (pd.read_csv(folder / f"{name}.csv") for name in ("curves", "geneval"))
    curves.loc[curves.index[3], "val_loss"] = np.inf
    curves.to_csv(folder / "curves.csv", index=False)
    geneval.assign(rate=np.nan, low=np.nan, high=np.nan).to_csv(folder / "geneval.csv", index=False)
    page = Page(write_report(folder, title="s", draws=20).read_text(encoding="utf-8"))
    assert "No run has an overall score yet" in page.texts["genEval-proxy".lower()]
    assert "loss follows C" in page.texts["power-law-over-compute"]


def test_partial_studies_say_what_is_missing(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    for name in ("geneval.csv", "battles.csv", "figures/samples.png"):
        (folder / name).unlink()
    for name in ("results", "curves"):
        table = pd.read_csv(folder / f"{name}.csv")
        table[table["name"] == "d2-rf"].to_csv(folder / f"{name}.csv", index=False)
    page = Page(write_report(folder, title="one run", draws=20).read_text(encoding="utf-8"))
    assert "needs two runs" in page.texts["elo-proxy"] or "no battles" in page.texts["elo-proxy"]
    assert "no run has been scored" in page.texts["geneval-proxy"]
    assert "has not been made" in page.texts["samples"]
    assert "depth cannot be compared" in page.texts["validation-loss"]
    assert "not to be relied on" in page.texts["power-law-over-compute"]
    (folder / "results.csv").unlink()
    page = Page(write_report(folder, title="still training", draws=20).read_text(encoding="utf-8"))
    assert "no run has finished" in page.texts["runs"]
    (folder / "curves.csv").unlink()
    with pytest.raises(TableError, match=r"no results\.csv or curves\.csv"):
        write_report(folder, title="nothing")
    (folder / "curves.csv").write_text("run_id,name\n1,a\n")
    with pytest.raises(TableError, match="column='formulation'"):
        write_report(folder, title="malformed")
