"""Goodput of a study: the sum of its runs, the table, and its section of the report."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from goodput_cases import FakeRun, check_sum, story
from PIL import Image

from scaling.errors import TableError
from scaling.goodput import GOODPUT_COLUMNS, LOST, Goodput, goodput, goodput_table, study_goodput
from scaling.goodput_section import MOST_BARS, goodput_section
from scaling.report import write_report


def test_a_study_is_the_sum_of_its_runs() -> None:
    runs = [found for seed in range(5) if (found := goodput(FakeRun(seed).events)) is not None]
    total = study_goodput(runs)
    check_sum(total)
    assert total.wall_seconds == pytest.approx(sum(run.wall_seconds for run in runs))
    assert total.attempts == total.restarts + len(runs)
    empty = study_goodput([])
    assert empty.wall_seconds == 0 and math.isnan(empty.share)


def test_rows_of_the_table() -> None:
    known, unknown = goodput_table([("0a", "d2-rf", goodput(story())), ("0b", "d2-old", None)])
    assert list(known) == list(unknown) == ["run_id", "name", *GOODPUT_COLUMNS]
    assert known["goodput"] == pytest.approx(0.19) and known["down_seconds"] == 30 and known["steps_lost"] == 8
    parts = [known["useful_seconds"], *(known[f"{name}_seconds"] for name in LOST)]
    assert sum(parts) == pytest.approx(known["wall_seconds"])
    assert unknown["name"] == "d2-old" and all(unknown[name] is None for name in GOODPUT_COLUMNS)


def small_study(folder: Path, runs: list[tuple[str, str, Goodput | None]]) -> Path:
    """A folder with a curve a run, as little as a report is made of, and goodput.csv."""
    rows = [
        {"run_id": run_id, "name": name, "formulation": "rf", "depth": 1, "dataset": "scenes", "step": step}
        | {"train_flops": 1e9 * step, "val_loss": 1 / step}
        for run_id, name, _ in runs
        for step in (1, 2, 4)
    ]
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "curves.csv", index=False)
    pd.DataFrame(goodput_table(runs)).to_csv(folder / "goodput.csv", index=False)
    return folder


def test_the_report_has_a_section(tmp_path: Path) -> None:
    runs = [(f"{seed:08x}", f"d1-seed{seed}", goodput(FakeRun(seed).events)) for seed in range(4)]
    folder = small_study(tmp_path / "s", [*runs, ("ff", "d1-old", None)])
    page = write_report(folder, title="s", draws=20).read_text(encoding="utf-8")
    part = page.split('id="goodput"')[1].split("</section>")[0]
    total = study_goodput([found for _, _, found in runs if found is not None])
    name, seconds = total.largest
    assert f"Goodput is {100 * total.share:.1f} % of" in part and "over 4 runs" in part
    assert f"the largest loss is “{name}” with {100 * seconds / total.wall_seconds:.1f} %" in part
    assert "1 of 5 runs, whose events do not tell it" in part and "unaccounted" in part
    with Image.open(folder / "figures" / "goodput.png") as image:
        assert image.width > image.height
    assert (folder / "figures" / "goodput.pdf").read_bytes().startswith(b"%PDF")


def test_no_section_without_the_table(tmp_path: Path) -> None:
    folder = small_study(tmp_path / "s", [("0a", "d1-old", None)])
    for text in (None, "", "run_id,name\n"):
        if text is not None:
            (folder / "goodput.csv").write_text(text)
        assert goodput_section(folder / "goodput.csv", folder / "figures") == []
    (folder / "goodput.csv").unlink()
    page = write_report(folder, title="s", draws=20).read_text(encoding="utf-8")
    assert 'id="goodput"' not in page and not (folder / "figures" / "goodput.png").exists()
    (folder / "goodput.csv").write_text("run_id,name,wall_seconds\n0a,a,12\n")
    with pytest.raises(TableError, match="column='attempts'"):
        goodput_section(folder / "goodput.csv", folder / "figures")


def test_of_many_runs_the_worst_are_drawn(tmp_path: Path) -> None:
    found = goodput(story())
    runs = [(f"{i:02x}", f"run{i}", found) for i in range(MOST_BARS + 3)]
    folder = small_study(tmp_path / "s", runs)
    (part,) = goodput_section(folder / "goodput.csv", folder / "figures")
    assert f"the {MOST_BARS} runs of lowest goodput" in part.broad[0][1]
    assert f"over {MOST_BARS + 3} runs" in part.findings[0]
