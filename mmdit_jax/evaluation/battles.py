"""Pairwise battles between runs, on the same prompts and the same noise: what an Elo rating is made of.

SD3 asked people three questions; here each has judges that need nobody. Prompt following: "contrastive", the image more
similar to the prompt wins, a tie where the difference is within what two equally right images differ by
(``Judge.tie``); and on scenes "scorer", the higher graded score of the analytic scorer. Aesthetics: "statistics", the
image more like real ones (``Aesthetics``), a tie where two real ones differ by as much. Typography, on signs:
"template" and "ocr", by whom more letters of the prompt's word are read.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.data.scenes.prompts import Prompt
from mmdit_jax.data.scenes.scorer import score_all
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.aesthetics import Aesthetics
from mmdit_jax.evaluation.judge import Judge
from mmdit_jax.evaluation.latent import for_judge
from mmdit_jax.evaluation.meetings import MOST, meetings
from mmdit_jax.evaluation.typography import TASKS as SPELLED
from mmdit_jax.evaluation.typography import letter_scores, readers
from mmdit_jax.files import write_atomic

QUESTION = "prompt following"
"""The first of SD3's three questions to people, which ``elo`` in a table of results is about."""
AESTHETICS, TYPOGRAPHY = "aesthetics", "typography"


@dataclasses.dataclass(frozen=True)
class Battle:
    """One comparison, as a row of battles.csv."""

    prompt: str
    left: str
    """Name of a run."""
    right: str
    outcome: str
    """Which won: "left", "right" or "tie"."""
    question: str
    judge: str
    """ "contrastive", "scorer", "statistics", "template" or "ocr"."""
    seed: int
    """Which of a prompt's images: they share the noise across runs."""


@dataclasses.dataclass(frozen=True)
class Decider:
    """A judge's answer to one question: scores, and the lead up to which it is a tie."""

    question: str
    judge: str
    score: Callable[[np.ndarray], np.ndarray]
    """From images uint8 [P, K, H, W, 3] to float [P, K]; higher is better."""
    tie: float = 0.0


def deciders(prompts: Sequence[Prompt], judge: Judge, aesthetics: Aesthetics | None = None) -> list[Decider]:
    """Who decides about images of these prompts, question by question.

    The contrastive judge knows no signs, so that on these nobody says how well a prompt is followed but for its word.
    The scorer needs prompts that ask for something in particular, the readers some that spell a word, aesthetics real
    images.
    """
    found = []
    spelled = all(prompt.task in SPELLED for prompt in prompts)
    if not spelled:
        found.append(Decider(QUESTION, "contrastive", lambda images: _similarities(images, prompts, judge), judge.tie))
    if all(prompt.include for prompt in prompts):
        found.append(Decider(QUESTION, "scorer", lambda images: graded(images, prompts)))
    if aesthetics is not None:
        found.append(Decider(AESTHETICS, "statistics", lambda images: _looks(images, aesthetics), aesthetics.tie))
    if spelled:
        for name, reader in sorted(readers().items()):
            score = functools.partial(letter_scores, prompts=prompts, reader=reader)
            found.append(Decider(TYPOGRAPHY, name, score))
    return found


def battles(
    images_by_run: Mapping[str, np.ndarray],
    prompts: Sequence[Prompt],
    judge: Judge,
    aesthetics: Aesthetics | None = None,
    most: int = MOST,
) -> list[Battle]:
    """Every pair of runs on every image, or those that ``meetings`` chooses, decided by all ``deciders``.

    The order of rows, and who stands left, depend on names and prompts only.

    Args:
        images_by_run: by name, uint8 [P, K, H, W, 3], image [p, k] from the same noise in every run.
        prompts: P prompts.
        judge: the contrastive judge.
        aesthetics: of the set's real images; None: nobody is asked for aesthetics.
        most: battles a judge; see ``meetings``.

    Raises:
        UserError: fewer than two runs, or images that do not match the prompts or each other.
    """
    names = sorted(images_by_run)
    if len(names) < 2:
        raise UserError(f"runs={names}: expected two or more")
    shape = images_by_run[names[0]].shape
    for name in names:
        found = images_by_run[name].shape
        if len(found) != 5 or found[0] != len(prompts) or found != shape:
            raise UserError(
                f"images of {name!r}={list(found)}: expected [{len(prompts)}, K, H, W, 3], equal in all runs"
            )
    shown = {(prompt.prompt, p, k): names for p, prompt in enumerate(prompts) for k in range(shape[1])}
    fought = [
        (second, first, image) if _flip(first, second, *image) else (first, second, image)
        for (first, second), images in meetings(shown, most).items()
        for image in images
    ]
    rows = []
    for decider in deciders(prompts, judge, aesthetics):
        scores = {name: decider.score(images_by_run[name]).tolist() for name in names}
        for left, right, (prompt, p, k) in fought:
            outcome = verdict(scores[left][p][k] - scores[right][p][k], decider.tie)
            rows.append(Battle(prompt, left, right, outcome, decider.question, decider.judge, k))
    return rows


def verdict(lead: float, tie: float) -> str:
    """Outcome of a battle: "left" or "right" by the sign of left's lead, a "tie" where it is within ``tie``."""
    return "tie" if abs(lead) <= tie else "left" if lead > 0 else "right"


def write_battles(rows: Sequence[Any], path: Path, kind: type = Battle) -> None:
    """Write rows, dataclasses of that ``kind``, as CSV in their order; the file appears whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(kind)])
    writer.writerows(vars(row).values() for row in rows)  # astuple would copy every cell
    write_atomic(path, text.getvalue())


def _similarities(images: np.ndarray, prompts: Sequence[Prompt], judge: Judge) -> np.ndarray:
    flat = images.reshape(-1, *images.shape[2:])
    texts = [prompt.prompt for prompt in prompts for _ in range(images.shape[1])]
    return judge.similarity(for_judge(flat), texts).reshape(images.shape[:2])


def _looks(images: np.ndarray, aesthetics: Aesthetics) -> np.ndarray:
    return aesthetics.score(images.reshape(-1, *images.shape[2:])).reshape(images.shape[:2])


def graded(images: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """The scorer's graded score of each image [P, K, H, W, 3]: float64 [P, K]."""
    flat = images.reshape(-1, *images.shape[2:])
    asked = [prompt for prompt in prompts for _ in range(images.shape[1])]
    return np.array([score.graded for score in score_all(flat, asked)]).reshape(images.shape[:2])


def _flip(first: str, second: str, prompt: str, number: int, seed: int) -> bool:
    """A coin for who stands left, the same in every process and for every judge."""
    text = "\n".join([first, second, prompt, str(number), str(seed)])
    return bool(hashlib.blake2b(text.encode(), digest_size=1).digest()[0] & 1)
