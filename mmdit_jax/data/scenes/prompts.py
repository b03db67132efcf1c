"""Evaluation prompts: GenEval's six tasks in the words of `scenes`.

Source: GenEval (Ghosh et al. 2023, arXiv:2310.11513) and its metadata, one JSON object a prompt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from mmdit_jax.data.scenes.geometry import SHAPES
from mmdit_jax.data.scenes.vocabulary import COLOURS, MAX_OBJECTS, RELATIONS, phrase
from mmdit_jax.errors import UserError, unknown

TASKS: Final = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@dataclasses.dataclass(frozen=True)
class Requirement:
    """Objects that must be there (or, in ``Prompt.exclude``, must not be there in this number or more)."""

    shape: str
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | None = None
    """(relation, index of the requirement it refers to): these objects stand ``relation`` those."""

    def to_dict(self) -> dict[str, Any]:
        """GenEval's keys: class, count and, where asked for, color and position."""
        entry: dict[str, Any] = {"class": self.shape, "count": self.count}
        if self.colour is not None:
            entry["color"] = self.colour
        if self.position is not None:
            entry["position"] = list(self.position)
        return entry

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Requirement:
        position = entry.get("position")
        requirement = cls(
            shape=entry["class"],
            count=entry["count"],
            colour=entry.get("color"),
            position=(position[0], position[1]) if position is not None else None,
        )
        _check(requirement)
        return requirement


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt and what an image must show to pass it. ``task`` is GenEval's tag, one of ``TASKS``."""

    task: str
    include: tuple[Requirement, ...]
    prompt: str
    exclude: tuple[Requirement, ...] = ()

    def to_json(self) -> str:
        """One line of GenEval's metadata.jsonl."""
        entry: dict[str, Any] = {"tag": self.task, "include": [r.to_dict() for r in self.include]}
        if self.exclude:
            entry["exclude"] = [r.to_dict() for r in self.exclude]
        entry["prompt"] = self.prompt
        return json.dumps(entry)

    @classmethod
    def from_json(cls, line: str) -> Prompt:
        """Read one line of GenEval's metadata.

        Raises:
            UserError: not such a line, or a shape, colour or relation that scenes do not have.
        """
        try:
            entry = json.loads(line)
            return cls(
                task=entry["tag"],
                include=tuple(Requirement.from_dict(item) for item in entry["include"]),
                prompt=entry["prompt"],
                exclude=tuple(Requirement.from_dict(item) for item in entry.get("exclude", ())),
            )
        except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f'metadata={line.strip()[:80]!r}: expected a JSON object with "tag", "include" and "prompt"'
            ) from error


def prompts(count_per_task: int, seed: int = 0) -> list[Prompt]:
    """``count_per_task`` prompts of each task, in the order of ``TASKS``; the same for the same arguments.

    A task has only so many different prompts (5, 20, 15, 40, 80 and 1120). They come in random order, and all of them
    come once before any comes again; a repeated prompt stands for another sample of the same question.

    These are questions about the training distribution, not about unseen compositions: the same phrases occur among
    the training captions. What is new in evaluation is the noise the image is sampled from.

    Raises:
        UserError: ``count_per_task`` is less than 1.
    """
    if count_per_task < 1:
        raise UserError(f"count_per_task={count_per_task}: expected 1 or more")
    chosen: list[Prompt] = []
    for number, task in enumerate(TASKS):
        rng = np.random.default_rng((seed, number))
        every = list(all_prompts(task))
        order: list[int] = []
        while len(order) < count_per_task:
            order.extend(rng.permutation(len(every)).tolist())
        chosen.extend(every[i] for i in order[:count_per_task])
    return chosen


def all_prompts(task: str) -> Iterator[Prompt]:
    """Every different prompt of a task.

    Raises:
        UserError: an unknown task.
    """
    if task not in TASKS:
        unknown("task", task, TASKS)
    pairs = [(first, second) for first in SHAPES for second in SHAPES if first != second]
    colour_pairs = [(first, second) for first in COLOURS for second in COLOURS if first != second]
    if task == "single_object":
        for shape in SHAPES:
            yield Prompt(task, (Requirement(shape),), phrase(shape))
    elif task == "two_object":
        for first, second in pairs:
            yield Prompt(task, (Requirement(first), Requirement(second)), f"{phrase(first)} and {phrase(second)}")
    elif task == "counting":
        for shape in SHAPES:
            for count in range(2, MAX_OBJECTS + 1):
                more = Requirement(shape, count + 1)
                yield Prompt(task, (Requirement(shape, count),), phrase(shape, count), exclude=(more,))
    elif task == "colors":
        for shape in SHAPES:
            for colour in COLOURS:
                yield Prompt(task, (Requirement(shape, 1, colour),), phrase(shape, 1, colour))
    elif task == "position":
        for first, second in pairs:
            for relation in RELATIONS:  # GenEval lists the object of reference first
                include = (Requirement(second), Requirement(first, position=(relation, 0)))
                yield Prompt(task, include, f"{phrase(first)} {relation} {phrase(second)}")
    else:
        for first, second in pairs:
            for colour, other in colour_pairs:
                include = (Requirement(first, 1, colour), Requirement(second, 1, other))
                yield Prompt(task, include, f"{phrase(first, 1, colour)} and {phrase(second, 1, other)}")


def _check(requirement: Requirement) -> None:
    if requirement.shape not in SHAPES:
        unknown("class", requirement.shape, SHAPES)
    if requirement.colour is not None and requirement.colour not in COLOURS:
        unknown("color", requirement.colour, COLOURS)
    if requirement.position is not None and requirement.position[0] not in RELATIONS:
        unknown("position", requirement.position[0], RELATIONS)
