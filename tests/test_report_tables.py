"""The paper's tables from a study's runs: numbers as pandas has them, the paper's own marked, LaTeX that is whole."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling import published
from scaling.efficiency import efficiency
from scaling.latex import escaped, tabular
from scaling.page import Section, render
from scaling.paper_tables import MOST_ROWS, PaperTable, table_1, table_2, table_5, table_6, tables_section, write_tables
from scaling.ranking import rank

NAMES = ("rf", "rf/lognorm(0.00,1.00)", "v/cos", "my_own {50%}")
TASKS = (*published.GENEVAL_TASKS, "overall")


def scores() -> pd.DataFrame:
    """Two data sets × three numbers of steps, three trainings of each name."""
    rng = np.random.default_rng(0)
    rows = []
    for place, name in enumerate(NAMES):
        for dataset in ("scenes", "emoji"):
            for steps in (5, 25, 50):
                for seed in range(3):
                    setting = {"dataset": dataset, "weights": "ema", "method": "euler", "steps": steps, "guidance": 5.0}
                    own = {"clip": 0.3 - 0.2 / steps - 0.01 * place + 0.003 * rng.normal(), "path_length": 190 + place}
                    rows.append(
                        {
                            "name": name,
                            "setting": f"{dataset}/ema/euler-{steps}-g5",
                            "seed": seed,
                            "depth": 2,
                            **setting,
                            **own,
                            "fid": 0.05 + 0.01 * place + 0.001 * rng.normal(),
                        }
                    )
    return pd.DataFrame(rows)


def geneval(runs: int = 3, rate: float = 0.1) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, results = [], []
    for run in range(runs):
        name = f"run {run}"
        results.append({"run_id": str(run), "name": name, "formulation": "rf", "depth": 1 + run, "dataset": "scenes"})
        for place, task in enumerate(TASKS):
            value = rate * (1 + run + 0.1 * place)
            ends = {"rate": value, "low": 0.9 * value, "high": 1.1 * value}
            graded = {"graded": 0.3 + 0.01 * place, "graded_low": 0.2, "graded_high": 0.5}
            rows.append({"name": name, "task": task, **ends, **graded})
    return pd.DataFrame(rows), pd.DataFrame(results)


@pytest.fixture(scope="module")
def ranking() -> tuple[pd.DataFrame, PaperTable, PaperTable]:
    frame = scores()
    table = rank(frame, bootstrap=60)
    second = table_2(table)
    assert second is not None
    return frame, table_1(table), second


def peeled(frame: pd.DataFrame) -> dict[str, float]:
    """Average rank over settings by a naive peeling of fronts of the means over seeds."""
    found: dict[str, list[int]] = {}
    for _, part in frame.groupby("setting"):
        left = part.groupby("name")[["clip", "fid"]].mean()
        front = 1
        while len(left):
            best = [
                name
                for name, own in left.iterrows()
                if not any(
                    other["clip"] >= own["clip"] and other["fid"] <= own["fid"] and not other.equals(own)
                    for _, other in left.iterrows()
                )
            ]
            for name in best:
                found.setdefault(str(name), []).append(front)
            left, front = left.drop(best), front + 1
    return {name: float(np.mean(fronts)) for name, fronts in found.items()}


def test_table_1(ranking: tuple[pd.DataFrame, PaperTable, PaperTable]) -> None:
    frame, first, _ = ranking
    numbers = first.numbers().set_index("name")
    assert dict(numbers["all"]) == pytest.approx(peeled(frame))
    assert dict(numbers["5 steps"]) == pytest.approx(peeled(frame[frame["steps"] == 5]))
    assert {"all_low", "50 steps_high"} <= set(numbers.columns) and "25 steps" not in numbers.columns
    assert tuple(numbers.loc["v/cos", ["paper: all", "paper: 5 steps", "paper: 50 steps"]]) == (9.17, 12.25, 8.75)
    assert numbers.loc[NAMES[3], [c for c in numbers.columns if c.startswith("paper")]].isna().all()
    assert list(first.page().columns) == ["name", "all", "5 steps", "50 steps", *list(first.columns[4:])]


def test_the_papers_numbers_stand_by_no_formulation_at_several_depths() -> None:
    frame = scores()
    papers = {"rf": 5.67, "v/cos": 9.17, "rf/lognorm(0.00,1.00)": 1.54}
    two = pd.concat([frame.assign(name=f"d{depth} " + frame["name"], depth=depth) for depth in (2, 3)])
    plain = frame[frame["name"] == "v/cos"].assign(fid=0.2)
    table = rank(pd.concat([two[two["name"] != "d3 v/cos"], plain], ignore_index=True), bootstrap=20)
    numbers = table_1(table).numbers().set_index("name")["paper: all"]
    assert numbers["v/cos"] == 9.17  # as the paper ranked it
    assert numbers.drop("v/cos").isna().all()
    second = table_2(table)
    assert second is not None
    clip = second.numbers().set_index("name")["paper: ImageNet CLIP"]
    assert clip["v/cos"] == 0.244 and clip.drop("v/cos").isna().all()
    assert all("at several depths has none" in found.note for found in (table_1(table), second))
    one = table_1(rank(two[two["depth"] == 3].reset_index(drop=True), bootstrap=20))
    assert "several depths" not in one.note
    numbers = one.numbers().set_index("name")["paper: all"]
    assert {name: numbers[f"d3 {name}"] for name in papers} == papers


def test_table_2(ranking: tuple[pd.DataFrame, PaperTable, PaperTable]) -> None:
    frame, _, second = ranking
    numbers = second.numbers().set_index("name")
    mean = frame[frame["steps"] == 25].groupby(["name", "dataset"])[["clip", "fid"]].mean()
    for dataset in ("scenes", "emoji"):
        for score in ("clip", "fid"):
            expected = {name: mean.loc[(name, dataset), score] for name in NAMES}
            assert dict(numbers[f"{dataset} {score}"]) == pytest.approx(expected)
    assert numbers.loc["rf", "paper: ImageNet FID"] == 49.70 and numbers.loc["rf", "paper: CC12M CLIP"] == 0.217


def test_table_5() -> None:
    frame, results = geneval()
    table = table_5(frame, results)
    assert table is not None
    assert table.columns == (
        "model",
        "measure",
        "overall",
        "single",
        "two",
        "counting",
        "colors",
        "position",
        "attribution",
        "depth",
    )
    numbers = table.numbers().set_index("model")
    wide = frame.pivot_table(index="name", columns="task", values="rate")
    assert dict(numbers["attribution"].iloc[:3]) == pytest.approx(dict(wide["color_attr"]))
    assert list(numbers["source"]) == ["ours"] * 3 + ["paper"] * 6
    assert numbers.loc["paper: depth 38, 1024², DPO", "overall"] == 0.74
    assert set(numbers["measure"]) == {"pass rate"}
    assert "Share of images" in table.note
    page = table.page()
    assert page["overall"].iloc[0] == "0.16\n0.14 to 0.18" and page["overall"].iloc[-1] == "0.74"


def test_table_5_where_nothing_passes_is_of_graded_scores() -> None:
    table = table_5(*geneval(rate=0.0))
    assert table is not None and "most runs pass no strict test" in table.note
    assert table.numbers()["overall"].iloc[0] == pytest.approx(0.36)
    assert list(table.numbers()["measure"]) == ["graded"] * 3 + ["pass rate"] * 6
    rows = [line.split(" & ") for line in table.latex().splitlines() if line.endswith(r"\\")]
    assert [row[1] for row in rows] == ["measure", *["graded"] * 3, *["pass rate"] * 6]
    many = table_5(*geneval(runs=MOST_ROWS + 5))
    assert many is not None and len(many.numbers()) == MOST_ROWS + 5 + 6
    shown = many.page()
    assert len(shown) == MOST_ROWS + 6 and "run 0" not in set(shown["model"]) and "run 44" in set(shown["model"])
    assert table_5(pd.DataFrame(), pd.DataFrame()) is None


def test_table_6() -> None:
    frame = scores()
    part = frame[(frame["dataset"] == "scenes") & (frame["name"].isin(NAMES[:3]))]
    depths = part.assign(depth=part["name"].map({"rf": 15, "rf/lognorm(0.00,1.00)": 30, "v/cos": 38}))
    table = table_6(efficiency(depths.drop(columns=["name", "setting"]), bootstrap=50), "depth", "scenes")
    assert table.columns == ("depth", "5/50 steps", "10/50 steps", "20/50 steps", "25/50 steps", "path length")
    numbers = table.numbers().set_index("depth")
    wide = depths.pivot_table(index=["depth", "seed"], columns="steps", values="clip")
    lost = (100 * (wide[50] - wide[5]) / wide[50]).groupby("depth").mean()
    assert list(numbers["5/50 steps"].iloc[:3]) == pytest.approx(list(lost))
    assert numbers.loc["paper: depth 38", "20/50 steps"] == 0.08 and np.isnan(numbers["10/50 steps"].iloc[0])
    assert list(numbers["path length"])[:4] == pytest.approx([190, 191, 192, 191.13])


def test_the_papers_numbers_are_set_apart(ranking: tuple[pd.DataFrame, PaperTable, PaperTable]) -> None:
    fifth = table_5(*geneval())
    assert fifth is not None
    page = render("t", "", tables_section([ranking[1], fifth]))
    assert re.search(r'<th class="paper">paper: all</th>', page)
    cells = dict(re.findall(r"<tr><td[^>]*>([^<]+)</td><td( class=\"paper\")?", page))
    assert cells["rf"] == cells["v/cos"] == ""
    rows = re.findall(r"<tr><td([^>]*)>([^<]+)</td><td([^>]*)>", page.split("Table 5")[1])
    printed = {name: ("paper" in label, "paper" in cell) for label, name, cell in rows}
    assert printed["paper: depth 18, 512²"] == (True, True) and printed["run 0"] == (False, False)
    assert tables_section([]) == []
    plain = Section("p", tables=[(pd.DataFrame({"paper trail": ["1"]}), "")])
    assert 'class="paper"' not in render("t", "", [plain])


def test_files_are_csv_and_latex_that_is_whole(
    ranking: tuple[pd.DataFrame, PaperTable, PaperTable], tmp_path: Path
) -> None:
    fifth = table_5(*geneval())
    assert fifth is not None
    write_tables([*ranking[1:], fifth], tmp_path / "tables")
    assert {p.name for p in (tmp_path / "tables").iterdir()} == {
        f"table{k}.{kind}" for k in (1, 2, 5) for kind in ("csv", "tex")
    }
    read = pd.read_csv(tmp_path / "tables" / "table1.csv")
    pd.testing.assert_frame_equal(read, ranking[1].numbers())
    for path in (tmp_path / "tables").glob("*.tex"):
        body = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("%"))
        assert body.count(r"\begin{tabular}") == body.count(r"\end{tabular}") == 1
        columns = len(re.search(r"\\begin\{tabular\}\{(l+r*)\}", body)[1])  # type: ignore[index]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}
        bare = re.sub(r"\\[{}%&$#_]", "", body)
        assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
        assert "%" not in bare and "_" not in bare and "#" not in bare
        assert all(body.count(rule) == 1 for rule in (r"\toprule", r"\bottomrule"))


def test_escapes() -> None:
    assert escaped(r"a_b & 5 % {x}\y") == r"a\_b \& 5 \% \{x\}\textbackslash{}y"
    text = tabular("one\ntwo", ["a", "b"], [["1", "2"], ["3", "−4"]], apart=1)
    assert text.splitlines()[0] == "% one two" and text.count(r"\midrule") == 2 and "3 & $-$4" in text


def test_what_is_printed_in_the_paper() -> None:
    for _, _, _, row in published.TABLE_5:
        assert np.mean(row[1:]) == pytest.approx(row[0], abs=0.011)  # overall is the mean of tasks, both rounded
    assert [row[0] for row in published.TABLE_6.values()] == sorted((4.30, 3.59, 2.71), reverse=True)
