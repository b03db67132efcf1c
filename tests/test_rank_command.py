"""``mmdit rank`` and ``mmdit efficiency``: text, JSON, figures and tables; names of figures that don't overlap."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from launch.cli import main
from mmdit_jax.diffusion import STUDY_61
from scaling import published
from scaling.labels import label_front
from scaling.look import panels
from scaling.names import families, short
from scaling.rank_figures import panel_titles, shown_panels
from scaling.rank_tables import shown_settings
from scaling.ranking import rank


def scores(names: list[str], draws: int = 3) -> pd.DataFrame:
    """The paper's protocol: 24 settings, two data sets, EMA and raw weights, six Euler samplers."""
    rng = np.random.default_rng(0)
    rows = []
    quality = {name: rng.normal() for name in names}
    samplers = ((50, 1.0), (50, 2.5), (50, 5.0), (5, 5.0), (10, 5.0), (25, 5.0))
    for name, dataset, weights, (steps, guidance), draw in itertools.product(
        names, ("scenes", "emoji"), ("ema", "raw"), samplers, range(draws + 1)
    ):
        rows.append(
            {
                "name": name,
                "setting": f"{dataset}/{weights}/euler-{steps}-g{guidance:g}",
                "dataset": dataset,
                "weights": weights,
                "method": "euler",
                "steps": steps,
                "guidance": guidance,
                "draw": draw,
                "depth": 4,
                "clip": 0.25 + 0.01 * quality[name] - 0.05 / steps + 0.002 * rng.normal(),
                "fid": 50 - 3 * quality[name] + 20 / steps + rng.normal() + 5 * (weights == "raw"),
                "path_length": 190 + rng.normal(),
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scores") / "scores.parquet"
    scores(list(published.TABLE_1)).to_parquet(path)
    return path


def test_rank_prints_tables_and_writes_files(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    assert main(["rank", str(table), "--reference", "sd3", "--bootstrap", "100", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    found = rank(pd.read_parquet(table), bootstrap=100)
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("name"))
    assert head.split("  ")[-1].strip() == "50 steps" and " 5 steps" in head and "25 steps" in head
    assert lines[2].startswith(found.names[0]) and f"{found.places[0].all.rank:.2f} [" in lines[2]
    assert "16 names, 24 settings; 95 % intervals from 100 resamples of the prompts; one training each" in text
    assert "scores at scenes/ema/euler-25-g5, emoji/ema/euler-25-g5" in text
    assert f"{found.names[0]}: over {found.names[1]} {found.pairs[0, 1]:.2f}, " in text
    assert "Spearman with sd3 over 16 names: " in text and "over the prompts" in text
    assert "over its settings of steps=5: " in lines[-1] and ", 50: " in lines[-1]
    assert {path.name for path in out.iterdir()} == {
        *(f"{stem}.{kind}" for stem in ("fronts", "ranks") for kind in ("png", "pdf")),
        *(f"{stem}.csv" for stem in ("table1", "table2", "pairs")),
    }
    first = pd.read_csv(out / "table1.csv")
    assert list(first["name"]) == found.names and {"rank_5", "low_50", "p_best"} <= set(first.columns)
    # the tables go in again: the paper's protocol against one's own earlier ranks
    assert main(["rank", str(table), "--reference", str(out / "table1.csv"), "--bootstrap", "0"]) == 0
    assert "over 16 names: +1.00" in capsys.readouterr().out
    for stem in ("fronts", "ranks"):
        with Image.open(out / f"{stem}.png") as image:
            assert np.asarray(image.convert("L")).std() > 10


def test_rank_json_is_the_contract(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["rank", str(table), "--where", "guidance=5", "--by", "weights", "--bootstrap", "100", "--json"]
    assert main([*args, "--reference", "sd3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"name", "rank", "low", "high"} <= set(told["rows"][0]) and len(told["settings"]) == 16
    assert [row["name"] for row in told["rows"]] == told["names"]
    assert [row["rank"] for row in told["rows"]] == sorted(row["rank"] for row in told["rows"])
    assert told["resampled"] == "prompts" and told["draws"] == 100 and set(told["rows"][0]["groups"]) == {"ema", "raw"}
    assert np.array(told["pairs"], dtype=float).shape == (16, 16)
    assert set(told["reference"]) == {
        *("source", "column", "names", "spearman", "over_names", "over_measurement", "groups")
    }
    assert main(["rank", "sd3-table2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resampled"] == "settings"


def test_among_leaves_the_others_out_before_peeling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [*list(published.TABLE_1)[:6], "rf/shift(3.00)", "mine"]
    path = tmp_path / "scores.csv"
    table = scores(names, draws=0).drop(columns="draw")
    table.to_csv(path, index=False)
    assert main(["rank", str(path), "--among", "sd3", "--reference", "sd3", "--bootstrap", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = rank(table[table["name"].isin(names[:6])], bootstrap=0)
    assert told["names"] == expected.names and told["reference"]["names"] == expected.names
    assert [row["rank"] for row in told["rows"]] == [place.all.rank for place in expected.places]
    everyone = {place.name: place.all.rank for place in rank(table, bootstrap=0).places}
    assert any(row["rank"] < everyone[row["name"]] for row in told["rows"])
    mine = tmp_path / "mine.csv"
    mine.write_text("name\nmine\nrf/shift(3.00)\n")
    assert main(["rank", str(path), "--among", str(mine), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["names"]) == {"mine", "rf/shift(3.00)"}
    mine.write_text("name\nmine\nyours\n")
    assert main(["rank", str(path), "--among", str(mine)]) == 2
    assert "1 of the table's names in it; expected 2 or more (it has 'mine', 'yours')" in capsys.readouterr().err


def test_efficiency_command(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = [word for part in ("dataset=scenes", "weights=ema", "guidance=5") for word in ("--where", part)]
    args = ["efficiency", str(table), "--group", "name", *only, "--bootstrap", "100"]
    assert main([*args, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "5/50 steps" in text and "path length" in text and "of the prompts" in text
    assert {path.name for path in tmp_path.iterdir()} == {"efficiency.png", "efficiency.pdf", "efficiency.csv"}
    assert list(pd.read_csv(tmp_path / "efficiency.csv")["name"]) == sorted(published.TABLE_1)
    assert main([*args, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == [5, 10, 25, 50] and set(told["rows"][0]["loss"]) == {"5", "10", "25"}
    assert main(["efficiency", str(table)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "for depth=4 steps=50" in line and "--where" in line


def test_bad_input_is_one_line(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    for args, expected in (
        (["rank", str(table), "--out", str(tmp_path / "file")], "is a file; expected a folder"),
        (["rank", str(table), "--up", "clap"], "did you mean 'clip'"),
        (["rank", str(table), "--by", "wieghts"], "did you mean 'weights'"),
        (["rank", str(table), "--reference", "sd4"], "no such file"),
        (["rank", "missing.csv"], "no such file"),
    ):
        assert main(args) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and expected in err

    for option in ("--bootstrap", "--seed"):
        for command in ("rank", "efficiency"):
            with pytest.raises(SystemExit) as stopped:
                main([command, str(table), option, "-1"])
            out, err = capsys.readouterr()
            assert stopped.value.code == 2 and out == "" and err.count("\n") == 1
            assert f"{option}: '-1': expected a whole number, 0 or more" in err


@pytest.mark.parametrize("command", ["rank", "efficiency", "elo", "winrate"])
def test_too_few_resamples_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one, or a dozen, the interval's ends would leave out its own estimate."""
    needed = {"winrate": ["--against", "a"]}.get(command, [])
    for draws in ("1", "2", "99"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "table.csv", *needed, "--bootstrap", draws])
        out, err = capsys.readouterr()
        assert stopped.value.code == 2 and out == "" and err.count("\n") == 1
        assert f"'{draws}': too few for an interval; expected 100 or more, or 0 for none" in err
    for draws in ("0", "100"):  # the table comes next
        assert main([command, "table.csv", *needed, "--bootstrap", draws]) == 2
        assert "no such file" in capsys.readouterr().err


def test_what_is_complete_can_be_ranked(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = pd.read_parquet(table)
    path = tmp_path / "half.parquet"
    whole[(whole["name"] != "rf") | (whole["dataset"] == "emoji")].to_parquet(path)
    assert main(["rank", str(path), "--bootstrap", "0"]) == 2
    assert "none for name=rf setting=scenes/" in (line := capsys.readouterr().err) and "--complete" in line
    assert main(["rank", str(path), "--bootstrap", "0", "--complete", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "rf" not in json.loads(out)["names"] and len(json.loads(out)["names"]) == 15
    assert err == "name rf left out: not scored everywhere that most are\n"


def test_settings_are_chosen_as_said() -> None:
    table = rank(scores(["a", "b"], draws=0))
    shown = shown_settings(table)
    assert [table.settings["setting"][place] for place in shown.values()] == [
        "scenes/ema/euler-25-g5",
        "emoji/ema/euler-25-g5",
    ]
    without = scores(["a", "b"], draws=0)
    few = rank(without[without["steps"] != 25])
    assert few.settings["setting"][shown_settings(few)["scenes"]] == "scenes/ema/euler-50-g5"
    places = shown_panels(table.settings)
    assert len(places) == 12 and set(table.settings["weights"][places]) == {"ema"}
    assert panel_titles(table.settings, places)[0] == "emoji, 5 steps, guidance 5"
    assert len(shown_panels(pd.DataFrame({"setting": range(40)}))) == 12


def test_names_along_a_front_never_overlap() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 5, 12):
        x, y = np.sort(rng.random((2, count)) ** 3)
        with panels(1, 1, (3.1, 2.75)) as (figure, grid):
            axes = grid[0, 0]
            axes.plot(x, y)
            axes.set_xlim(-0.8, 1.1)
            axes.set_ylim(-0.1, 1.6)
            figure.draw_without_rendering()
            assert label_front(axes, x, y, [short(name) for name in STUDY_61[20 : 20 + count]]) == 0
            texts = [text for text in axes.texts if text.get_text()]
            boxes = [text.get_window_extent() for text in texts]
            frame = axes.get_window_extent()
        assert len(texts) == count
        for first, second in itertools.combinations(boxes, 2):
            assert not first.shrunk(0.98, 0.98).overlaps(second.shrunk(0.98, 0.98))
        points = axes.transData.transform(np.column_stack([x, y]))
        assert not any(box.contains(*point) for box in boxes for point in points)
        assert all(frame.x0 - 1 <= box.x0 and box.y1 <= frame.y1 + 1 for box in boxes)


def test_short_names_and_families() -> None:
    assert short("rf/lognorm(-0.50,1.00)") == "lognorm(−0.5,1)" and short("d2 rf") == "d2 rf" and short("rf") == "rf"
    assert len({short(name) for name in STUDY_61}) == 61
    assert set(families(STUDY_61)) == {"rf", "rf/mode", "rf/lognorm", "rf/cosmap", "edm", "eps", "v"}
    assert set(families([f"run {i}" for i in range(20)])) == {""}
