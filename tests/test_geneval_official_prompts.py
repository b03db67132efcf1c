"""GenEval's metadata, line by line, and prompt sets of its kind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from launch.cli import main
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.official.classes import COLOURS, OBJECTS, RELATIONS, TASKS, object_named
from mmdit_jax.evaluation.official.metadata import Question, parse, read_metadata
from mmdit_jax.evaluation.official.prompts import SIZES, generate, phrase

LINE = (
    '{"tag": "position", "include": [{"class": "teddy bear", "count": 1}, '
    '{"class": "dog", "count": 1, "position": ["right of", 0]}], "prompt": "a photo of a dog right of a teddy bear"}'
)
COUNTING = (
    '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], '
    '"prompt": "a photo of two clocks"}'
)
MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def facts(question: Question) -> frozenset:
    """What a question asks, whatever its words and the order of its clauses."""
    found = set()
    for clause in question.include:
        if clause.position is None:
            found.add((clause.name, clause.count, clause.colour))
        else:
            relation, target = clause.position
            other = question.include[target].name
            found |= {(clause.name, relation, other), (other, MIRRORED[relation], clause.name), (clause.name, 1, None)}
    return frozenset(found)


def test_lines_come_back_as_they_were() -> None:
    for line in (LINE, COUNTING):
        assert parse(line).to_json() == line


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tag": "positions"}, "tag='positions': unknown; did you mean 'position'"),
        ({"tag": None}, "tag=None: expected words"),
        ({"prompt": " "}, "prompt=' ': expected words"),
        ({"include": []}, "include=.*expected one object or more"),
        ({"include": "dog"}, "include='dog': expected a list"),
        ({"include": [{"class": "dog"}]}, "include.count=None: expected a whole number"),
        ({"include": [{"class": "dog", "count": True}]}, "include.count=True"),
        ({"include": [{"class": "dog", "count": 1, "color": "mauve"}]}, "include.color='mauve': unknown"),
        ({"include": [{"class": "dog", "count": 1, "position": ["left of", 0]}]}, "expected the number of an earlier"),
        ({"include": [{"class": "dog", "count": 1, "position": "above"}]}, "include.position='above': expected"),
        ({"exclude": [{"count": 3}]}, "exclude.class=None: expected words"),
    ],
)
def test_a_broken_line_is_told_by_its_number(changes: dict, told: str, tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text(f"{LINE}\n{json.dumps({**json.loads(LINE), **changes})}\n")
    with pytest.raises(UserError, match=rf"geneval=.*metadata.jsonl: line 2: .*{told}"):
        read_metadata(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("{", "JSON"),
        (f"\n{LINE}\n\n[", "line 4: .*JSON"),
        ("[" * 100_000, "line 1: .*JSON"),
        (LINE.replace(": 1", f": {'9' * 5000}"), "line 1: .*JSON"),
    ],
)
def test_a_file_that_is_none(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        read_metadata(path)
    with pytest.raises(UserError, match="can't be read"):
        read_metadata(tmp_path / "nowhere")


def test_lines_end_where_json_lines_do(tmp_path: Path) -> None:
    """Ends of lines of Windows, a mark before the first; U+2028 and U+0085, within a prompt, are no ends."""
    path = tmp_path / "metadata.jsonl"
    prompt = 'a photo of a \u2028"teddy\x85bear" – ours'
    other = json.dumps({**json.loads(LINE), "prompt": prompt}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{LINE}\r\n{other}\r\n\r\n".encode())
    assert [question.prompt for question in read_metadata(path)] == [parse(LINE).prompt, prompt]
    assert parse(read_metadata(path)[1].to_json()).prompt == prompt


def test_blank_lines_are_none(tmp_path: Path) -> None:
    """Before the first, between, and after the last."""
    path = tmp_path / "metadata.jsonl"
    path.write_text(f"\n{LINE}\n \n\n{LINE}\n\n")
    assert read_metadata(path) == [parse(LINE)] * 2


def test_a_set_has_the_official_shape() -> None:
    found = generate(seed=0)
    assert Counter(question.task for question in found) == dict(zip(TASKS, SIZES, strict=True)) and len(found) == 553
    assert [question.task for question in found] == sorted((q.task for q in found), key=TASKS.index)
    assert {question.include[0].name for question in found if question.task == "single_object"} == set(OBJECTS)
    for question in found:
        entry = json.loads(question.to_json())
        assert parse(question.to_json()) == question and question.prompt.startswith("a photo of ")
        assert {clause["class"] for clause in entry["include"]} <= set(OBJECTS)
        names = [clause.name for clause in question.include]
        assert len(set(names)) == len(names) == (1 if question.task in ("single_object", "counting", "colors") else 2)
        painted = [clause.colour for clause in question.include if clause.colour is not None]
        assert len(painted) == {"colors": 1, "color_attr": 2}.get(question.task, 0) == len(set(painted))
        assert set(painted) <= set(COLOURS) and not (painted and "person" in names)
        if question.task == "counting":
            (clause,), (more,) = question.include, question.exclude
            assert clause.count in (2, 3, 4) and (more.name, more.count) == (clause.name, clause.count + 1)
        else:
            assert not question.exclude and {clause.count for clause in question.include} == {1}
        if question.task == "position":
            reference, clause = question.include
            assert reference.position is None and clause.position is not None and clause.position[1] == 0
            assert question.prompt == f"a photo of {phrase(clause.name)} {clause.position[0]} {phrase(reference.name)}"


def test_no_question_comes_twice_in_other_words() -> None:
    found = generate((80, 3160, 240, 789, 4000, 4000), seed=3)
    assert len({(question.task, facts(question)) for question in found}) == len(found)
    relations = Counter(q.include[1].position[0] for q in found if q.task == "position")
    assert set(relations) == set(RELATIONS) and min(relations.values()) > 800


def test_seeds_and_sizes() -> None:
    assert generate(seed=1) == generate(seed=1) != generate(seed=2)
    large, small = generate((80, 50, 50, 50, 50, 50), seed=1), generate((0, 20, 0, 20, 0, 20), seed=1)
    for task in ("two_object", "colors", "color_attr"):
        of_large, of_small = ([q for q in some if q.task == task] for some in (large, small))
        assert of_large[:20] == of_small
    with pytest.raises(UserError, match="sizes=81 of single_object: expected 0 to 80"):
        generate((81, 1, 1, 1, 1, 1))
    with pytest.raises(UserError, match="sizes=1,2: expected 6 numbers"):
        generate((1, 2))


def test_words() -> None:
    assert phrase("orange") == "an orange" and phrase("couch", 1, "orange") == "an orange couch"
    assert [phrase(name, 3) for name in ("bench", "bus", "knife", "sheep", "person", "sandwich", "kite", "skis")] == [
        "three benches", "three buses", "three knives", "three sheep", "three people", "three sandwiches",
        "three kites", "three pairs of skis",
    ]  # fmt: skip
    assert phrase("scissors", 1, "red") == "a red pair of scissors"
    assert [object_named(name) for name in ("Mouse", "tvmonitor", "wine_glass", "N/A", "sofa")] == [
        "computer mouse", "tv", "wine glass", None, "couch",
    ]  # fmt: skip
    assert all(object_named(name) == name for name in OBJECTS) and len(set(OBJECTS)) == 80


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sets" / "mine.jsonl"
    assert main(["geneval", "prompts", "--out", str(out), "--seed", "7", "--sizes", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"path": str(out), "prompts": 30, "tasks": dict.fromkeys(TASKS, 5)}
    assert read_metadata(out) == generate((5,) * 6, 7)
    assert main(["geneval", "prompts", "--out", str(out), "--sizes", "5,x"]) == 2
    assert "sizes=5,x: expected 6 whole numbers" in capsys.readouterr().err
