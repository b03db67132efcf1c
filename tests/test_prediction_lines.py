"""The file of predictions: what was changed in it is seen, which lines are none is said, old ones are still read."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.errors import TableError
from scaling.law_kinds import JOINT
from scaling.laws import fit_law
from scaling.predictions import FILE, added, parse, prediction, read_predictions, table_digest, with_truth

OLD = Path(__file__).parents[1] / "docs" / "results" / "ladder_small"


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """Of three runs by one law."""
    law = fit_law(
        JOINT, [np.geomspace(1e5, 1e7, 12), np.geomspace(1e4, 1e5, 12)[::-1]], np.geomspace(1, 2, 12), draws=0
    )
    base = prediction(law, {"N": 1e7, "D": 1e5})
    of_table = {**base, "loss_column": "val_loss", "table_sha256": ""}
    return [{**of_table, "run_id": str(k), "name": str(k), "registered": f"day {k}"} for k in range(3)]


def test_a_changed_file_is_seen(records: list[dict[str, Any]], tmp_path: Path) -> None:
    text = added("", records)
    assert [record["run_id"] for record in parse(text)] == ["0", "1", "2"]
    lines = text.splitlines(keepends=True)
    for wrong in (
        text.replace('"registered": "day 1"', '"registered": "day 0"'),
        lines[0] + lines[2],
        lines[1] + lines[2],
        lines[0] + lines[2] + lines[1],
        lines[0] + "not a line\n",
    ):
        with pytest.raises(TableError, match="line"):
            parse(wrong)
    (tmp_path / FILE).write_text(text)
    told = with_truth(read_predictions(tmp_path), pd.DataFrame({"run_id": ["1"], "val_loss": [records[0]["loss"] / 2]}))
    assert list(told["actual"].notna()) == [False, True, False]
    assert told["error"][1] == pytest.approx(1.0) and told["inside"][1] is False


@pytest.mark.parametrize("count", [1, 3])
def test_the_last_line_holds_its_own_digest(records: list[dict[str, Any]], count: int) -> None:
    """It is the only line after one prediction, and no other line holds its digest."""
    text = added("", records[:count])
    last = text.splitlines()[-1]
    told = json.loads(last)
    body = re.sub(r', "digest": "[0-9a-f]+"', "", last)
    assert told["digest"] == hashlib.sha256(body.encode()).hexdigest()
    rest = text.removesuffix(last + "\n")
    for name in ("loss", "low", "high"):
        changed = last.replace(f'"{name}": {told[name]!r}', f'"{name}": {1.01 * told[name]!r}')
        assert json.loads(changed)[name] != told[name]
        with pytest.raises(TableError, match=f"line {count} was changed"):
            parse(f"{rest}{changed}\n")
    with pytest.raises(TableError, match=f"line {count} was changed"):
        parse(rest + json.dumps({**told, "loss": 1.0}, sort_keys=True) + "\n")
    if count > 1:  # the digest taken away: the lines before have theirs
        with pytest.raises(TableError, match=f"line {count} was changed"):
            parse(f"{rest}{body}\n")


def test_lines_from_before_are_read_and_followed(records: list[dict[str, Any]]) -> None:
    """Their last line has no digest until another follows, and the file goes on with lines that have one."""
    text = (OLD / FILE).read_text()
    before = read_predictions(OLD)
    assert len(before) == 10 and not any("digest" in record for record in before)
    longer = added(text, records)
    assert longer.startswith(text) and parse(longer)[:10] == before and "digest" in parse(longer)[10]
    last = text.splitlines()[-1]
    with pytest.raises(TableError, match="line 11 does not follow from line 10"):
        parse(longer.replace(last, last.replace('"rows": 34', '"rows": 35')))
    # An editor that takes the last line's end away changes nothing that was said, and the next has a line of its own.
    assert len(parse(added(text.rstrip("\n"), records))) == 13


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'{"before": "none"}\n', "line 1 is not a prediction ('run_id' is missing)"),
        (b"[1]\n", "line 1 is not a prediction;"),
        (b'"words"\n', "line 1 is not a prediction;"),
        (b"\xff\xfe\n", "not UTF-8 text (byte 1)"),
    ],
)
def test_what_is_no_prediction_is_one_clear_line(tmp_path: Path, text: bytes, told: str) -> None:
    (tmp_path / FILE).write_bytes(text)
    with pytest.raises(TableError, match=re.escape(told)) as error:
        read_predictions(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_an_old_line_with_a_word_for_a_number(records: list[dict[str, Any]]) -> None:
    line = json.dumps({**records[0], "before": "none", "loss": "0.1"}, sort_keys=True)
    with pytest.raises(TableError, match=r"line 1 has loss='0\.1'"):
        parse(line)


def test_the_same_rows_have_one_digest(tmp_path: Path) -> None:
    """In another order, or read from a file in which whole numbers are floats and last digits are lost."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"params": np.arange(1, 60) * 1000, "val_loss": rng.uniform(0.1, 1, 59), "name": "a"})
    columns = ["params", "val_loss"]
    digest = table_digest(table, columns)
    assert table_digest(table.sample(frac=1, random_state=1), columns) == digest
    table.astype({"params": float}).to_csv(tmp_path / "t.csv", index=False, float_format="%.16g")
    assert table_digest(pd.read_csv(tmp_path / "t.csv"), columns) == digest
    other = table.assign(val_loss=table["val_loss"].to_numpy()[::-1])  # the same numbers in other rows
    assert table_digest(other, columns) != digest
    assert table_digest(table[1:], columns) != digest
    assert table_digest(table, columns[::-1]) != digest
