"""GenEval's metadata: one JSON line a prompt, which says what its images must show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit_jax.errors import UserError, unknown
from mmdit_jax.evaluation.official.classes import COLOURS, RELATIONS, TASKS


@dataclass(frozen=True)
class Clause:
    """So many objects of a class; among what is excluded, so many or more."""

    name: str
    """Class of the objects. Any word: a detector says later whether it knows it."""
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | None = None
    """(relation, number of an earlier clause): the objects stand ``relation`` those of that clause."""

    def to_dict(self) -> dict[str, Any]:
        """GenEval's keys: class, count and, where asked for, color and position."""
        entry: dict[str, Any] = {"class": self.name, "count": self.count}
        if self.colour is not None:
            entry["color"] = self.colour
        if self.position is not None:
            entry["position"] = list(self.position)
        return entry


@dataclass(frozen=True)
class Question:
    """One prompt, and what an image must show to pass it."""

    task: str
    include: tuple[Clause, ...]
    prompt: str
    exclude: tuple[Clause, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """GenEval's keys in its order."""
        entry: dict[str, Any] = {"tag": self.task, "include": [clause.to_dict() for clause in self.include]}
        if self.exclude:
            entry["exclude"] = [clause.to_dict() for clause in self.exclude]
        return {**entry, "prompt": self.prompt}

    def to_json(self) -> str:
        """One line of GenEval's metadata."""
        return json.dumps(self.to_dict())


def read_metadata(path: Path) -> list[Question]:
    """The questions of a file with one a line.

    Raises:
        UserError: there is no such file, no line in it, or one that is not GenEval's: which, and what is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark before the first line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"geneval={path}: can't be read ({error}); expected GenEval's metadata, JSON lines") from error
    lines = text.rstrip().split("\n")  # not splitlines: JSON may hold other ends of lines, as U+2028, as they are
    if not text.strip():
        raise UserError(f"geneval={path}: empty; expected GenEval's metadata, one JSON object a line")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(parse(line))
        except UserError as error:
            raise UserError(f"geneval={path}: line {number}: {error}") from error
    return found


def parse(line: str) -> Question:
    """One line of metadata.

    Raises:
        UserError: it is not GenEval's.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:  # of too many digits, or too deep
        raise UserError(f"{line.strip()[:80]!r}: not JSON ({error})") from error
    if not isinstance(entry, dict):
        raise UserError(f'{line.strip()[:80]!r}: expected a JSON object with "tag", "include" and "prompt"')
    task, prompt = (_words(entry.get(name), name) for name in ("tag", "prompt"))
    if task not in TASKS:
        unknown("tag", task, TASKS)
    include, exclude = (_clauses(entry.get(name, []), name) for name in ("include", "exclude"))
    if not include and not exclude:
        raise UserError("include=[]: expected one object or more")
    return Question(task, include, prompt, exclude)


def _clauses(items: Any, where: str) -> tuple[Clause, ...]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f'{where}={items!r}: expected a list of objects with "class" and "count"')
    return tuple(_clause(item, number, where) for number, item in enumerate(items))


def _clause(item: dict[str, Any], number: int, where: str) -> Clause:
    name, count = _words(item.get("class"), f"{where}.class"), item.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"{where}.count={count!r}: expected a whole number, 1 or more")
    colour, position = item.get("color"), item.get("position")
    if colour is not None and colour not in COLOURS:
        unknown(f"{where}.color", str(colour), COLOURS)
    if position is None:
        return Clause(name, count, colour)
    if not isinstance(position, list) or len(position) != 2:
        raise UserError(f'{where}.position={position!r}: expected ["left of", 0], a relation and an earlier clause')
    relation, target = position
    if relation not in RELATIONS:
        unknown(f"{where}.position", str(relation), RELATIONS)
    if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < number:
        raise UserError(f"{where}.position={position!r}: expected the number of an earlier clause, below {number}")
    return Clause(name, count, colour, (relation, target))


def _words(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{field}={value!r}: expected words")
    return value
