"""Outputs that can't be written: one line with the name that the user gave, exit code 2, and what is there stays."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from arena_cases import make_study

from launch.arena.databases import Sqlite
from launch.arena.store import prepare
from launch.cli import main


def told(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line that ``mmdit args`` says on its way out with exit code 2."""
    assert main(list(map(str, args))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    return err.strip()


@pytest.fixture
def figs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with something in it, where files are asked for."""
    monkeypatch.chdir(tmp_path)
    Path("figs").mkdir()
    Path("figs/kept").write_text("mine")
    return Path("figs")


def test_a_folder_where_a_file_is_asked_for(figs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [
        {"filename": f"t/{p:05d}/samples/{k:04d}.png", "tag": "counting", "prompt": f"{p}", "correct": True}
        for p in range(3)
        for k in range(2)
    ]
    for row in results:
        row["metadata"] = json.dumps({"tag": "counting", "include": [{"class": "cat", "count": 1}], "prompt": "a"})
    Path("r.jsonl").write_text("".join(f"{json.dumps(row | {'reason': '', 'details': '{}'})}\n" for row in results))
    study = make_study(Path("study"), runs=2, prompts=1)
    votes = Sqlite(study / "votes.sqlite")
    prepare(votes)
    votes.close()
    expected = "mmdit: figs: Is a directory; choose another place"
    assert told(capsys, "geneval", "prompts", "--out", figs, "--sizes", "2") == expected
    assert told(capsys, "geneval", "read", "a=r.jsonl", "--out", figs) == expected
    assert told(capsys, "arena", study, "--export", figs) == expected
    assert [path.name for path in figs.iterdir()] == ["kept"]
    assert sorted(path.name for path in Path().iterdir()) == ["figs", "r.jsonl", "study"]  # nothing half written


def test_a_place_where_nothing_can_be_made(figs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"prompt": ["p", "q"], "left": "a", "right": "b", "outcome": ["left", "right"]})
    table.to_csv("b.csv", index=False)
    line = told(capsys, "elo", "b.csv", "--bootstrap", "0", "--out", "/proc/x")
    assert line.startswith("mmdit: /proc/x") and line.endswith("No such file or directory; choose another place")
    line = told(capsys, "geneval", "prompts", "--sizes", "2", "--out", "/proc/x.jsonl")
    assert line == "mmdit: /proc/x.jsonl: No such file or directory; choose another place"


def test_the_option_that_was_wrong_is_named(figs: Path, tiny_study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"}
    Path("mine.jsonl").write_text(json.dumps(question) + "\n")
    Path("b.csv").write_text("in the way")
    sample = ("sample", tiny_study, "--run", "rf", "--geneval", "mine.jsonl", "--root", "s", "--out")
    line = told(capsys, *sample, "b.csv/x")
    assert line == "mmdit: out=b.csv/x: cannot be written (Not a directory); choose another --out"
    line = told(capsys, *sample, "b.csv")
    assert line == "mmdit: out=b.csv: cannot be written (File exists); choose another --out"
