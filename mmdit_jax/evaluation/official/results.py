"""GenEval's result file, one JSON line an image, and the table of it: pass rates by task with intervals."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.geneval import mean_interval, rate_interval
from mmdit_jax.evaluation.official.classes import TASKS
from mmdit_jax.evaluation.official.metadata import Question
from mmdit_jax.evaluation.official.provenance import fingerprint_of_files
from mmdit_jax.evaluation.official.rules import Found, Verdict

UNKNOWN = ("graded", "graded_low", "graded_high", "chance", "chance_graded")
"""Columns of a study's geneval.csv that detectors say nothing about."""
_TEXTS = ("filename", "tag", "metadata")


class Result(NamedTuple):
    """One image: the prompt's task, what tells the prompt from others, the image among all, whether it passed."""

    task: str
    prompt: tuple[str, str]
    image: str
    correct: bool
    fingerprint: str | None = None
    """Of the image's file, where we scored it."""


def line(
    image: Path, question: Question, verdict: Verdict, objects: Mapping[str, Sequence[Found]], fingerprint: str
) -> str:
    """What the public scorer writes about an image, in its fields, and the file's fingerprint; with the line's end."""
    boxes = {name: [[*found.box.tolist(), float(found.score)] for found in some] for name, some in objects.items()}
    return (
        json.dumps(
            {
                "filename": str(image),
                "tag": question.task,
                "prompt": question.prompt,
                "correct": verdict.correct,
                "reason": verdict.reason,
                "metadata": question.to_json(),
                "details": json.dumps(boxes),
                "fingerprint": fingerprint,
            }
        )
        + "\n"
    )


def image_key(filename: str) -> str:
    """What an image is called within its tree: NNNNN/samples/NNNN.png."""
    return "/".join(Path(filename).parts[-3:])


def read_results(path: Path) -> list[Result]:
    """The results in a file of the public scorer's or of ours.

    Raises:
        UserError: there is none, or a line that is no result: which.
    """
    found = _results(path, whole_lines=False)
    if not found:
        raise UserError(f"results={path}: empty; expected GenEval's results, one JSON object a line")
    return found


def _results(path: Path, *, whole_lines: bool) -> list[Result]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"results={path}: can't be read ({error}); expected GenEval's results, JSON lines") from error
    numbered = enumerate(lines[:-1] if whole_lines else lines, start=1)
    return [_result(path, number, text) for number, text in numbered if text.strip()]


def _result(path: Path, number: int, text: str) -> Result:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:  # of too many digits, or too deep
        raise UserError(f"results={path}: line {number}: not JSON ({error})") from error
    if (
        not isinstance(entry, dict)
        or not all(isinstance(entry.get(name), str) for name in _TEXTS)
        or entry.get("correct") not in (True, False)
    ):
        raise UserError(
            f"results={path}: line {number}: expected filename, tag and metadata in words and correct, true or false"
        )
    if entry["tag"] not in TASKS:
        raise UserError(f"results={path}: line {number}: tag={entry['tag']!r}: expected one of {', '.join(TASKS)}")
    key = image_key(entry["filename"])
    prompt = (key.split("/")[0], entry["metadata"])
    return Result(entry["tag"], prompt, key, bool(entry["correct"]), entry.get("fingerprint"))


def table(results: Iterable[Result], name: str, run_id: str = "") -> list[dict[str, Any]]:
    """A row a task, then "overall", the mean of the tasks; the columns of a study's geneval.csv.

    Intervals are 95 %: samples of one prompt are alike, and count accordingly (``rate_interval``); the overall's is
    that of a mean of independent rates (``mean_interval``).

    Raises:
        UserError: an image that comes twice, or prompts with fewer images than others.
    """
    by_prompt: dict[tuple[str, str], list[Result]] = {}
    seen: set[str] = set()
    for result in results:
        if result.image in seen:
            raise UserError(f"results of {name}: {result.image} comes twice; give each image's result once")
        seen.add(result.image)
        by_prompt.setdefault(result.prompt, []).append(result)
    most = max(map(len, by_prompt.values()))
    lacking = [prompt for prompt, found in by_prompt.items() if len(found) < most]
    if lacking:
        folder = lacking[0][0]
        raise UserError(
            f"results of {name}: {len(lacking)} of {len(by_prompt)} prompts lack images, as {folder} with "
            f"{len(by_prompt[lacking[0]])} of {most}; score all of the tree (its parts in one call)"
        )
    rows: list[dict[str, Any]] = []
    for task in TASKS:
        passed = [[float(one.correct) for one in found] for found in by_prompt.values() if found[0].task == task]
        if passed:
            array = np.array(passed)
            rows.append(_row(run_id, name, task, array.size, float(array.mean()), rate_interval(array)))
    rates = [row["rate"] for row in rows]
    interval = mean_interval(rates, [(row["low"], row["high"]) for row in rows])
    return [*rows, _row(run_id, name, "overall", len(seen), float(np.mean(rates)), interval)]


def _row(run_id: str, name: str, task: str, n: int, rate: float, interval: tuple[float, float]) -> dict[str, Any]:
    low, high = interval
    row = {"run_id": run_id, "name": name, "task": task, "n": n, "rate": rate, "low": low, "high": high}
    return row | dict.fromkeys(UNKNOWN)


def begin_results(path: Path, images: Mapping[str, Path]) -> set[str]:
    """The images whose results are in the file already; half a line, that a killed process left, is cut off.

    Args:
        path: of the results; there may be none.
        images: the tree's, by ``image_key``. Those that have no results yet may be new.

    Raises:
        UserError: a line that is no result, or one of an image that the tree doesn't have, or has another of by that
            name; the file is left as it is.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return set()
    found = _results(path, whole_lines=True)
    strange = [
        one.image
        for one in found
        if one.image not in images or one.fingerprint != fingerprint_of_files(images[one.image])
    ]
    if strange:
        raise UserError(
            f"results={path}: {len(strange)} of {len(found)} are not of this tree's images, as {strange[0]} (it is "
            "gone, or another one is there); give another --out"
        )
    data = path.read_bytes()
    os.truncate(path, data.rfind(b"\n") + 1)
    return {result.image for result in found}
