"""Pairwise battles between runs, on the same prompts and the same noise: what an Elo rating is made of.

Two judges decide every battle. "contrastive": the image more similar to the prompt wins, a tie where the difference is
within what two equally right images differ by (``Judge.tie``). "scorer": the higher graded score of the analytic
scorer wins, a tie where they are equal.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.data.scenes.prompts import Prompt
from mmdit_jax.data.scenes.scorer import score_all
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.judge import Judge
from mmdit_jax.evaluation.latent import for_judge
from mmdit_jax.files import write_atomic

QUESTION = "prompt following"
"""The one of SD3's three questions to people (prompt following, aesthetics, typography) that both judges can answer."""


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
    """ "contrastive" or "scorer"."""
    seed: int
    """Which of a prompt's images: they share the noise across runs."""


def battles(images_by_run: Mapping[str, np.ndarray], prompts: Sequence[Prompt], judge: Judge) -> list[Battle]:
    """Every pair of runs on every image, decided by both judges.

    The order of rows, and who stands left, depend on names and prompts only. Prompts that ask for nothing in
    particular (captions of another set than `scenes`) are decided by the contrastive judge alone.

    Args:
        images_by_run: by name, uint8 [P, K, H, W, 3], image [p, k] from the same noise in every run.
        prompts: P prompts.
        judge: the contrastive judge.

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
    scores = {"contrastive": {name: _similarities(images_by_run[name], prompts, judge) for name in names}}
    ties = {"contrastive": judge.tie, "scorer": 0.0}
    if all(prompt.include for prompt in prompts):
        scores["scorer"] = {name: graded(images_by_run[name], prompts) for name in names}

    rows = []
    for asked, (first, second) in itertools.product(sorted(scores), itertools.combinations(names, 2)):
        for number, prompt in enumerate(prompts):
            for seed in range(shape[1]):
                left, right = (second, first) if _flip(first, second, prompt.prompt, number, seed) else (first, second)
                lead = float(scores[asked][left][number, seed] - scores[asked][right][number, seed])
                outcome = verdict(lead, ties[asked])
                rows.append(Battle(prompt.prompt, left, right, outcome, QUESTION, asked, seed))
    return rows


def verdict(lead: float, tie: float) -> str:
    """Outcome of a battle: "left" or "right" by the sign of left's lead, a "tie" where it is within ``tie``."""
    return "tie" if abs(lead) <= tie else "left" if lead > 0 else "right"


def write_battles(rows: Sequence[Any], path: Path, kind: type = Battle) -> None:
    """Write rows, dataclasses of that ``kind``, as CSV in their order; the file appears whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(kind)])
    writer.writerows(dataclasses.astuple(row) for row in rows)
    write_atomic(path, text.getvalue())


def _similarities(images: np.ndarray, prompts: Sequence[Prompt], judge: Judge) -> np.ndarray:
    flat = images.reshape(-1, *images.shape[2:])
    texts = [prompt.prompt for prompt in prompts for _ in range(images.shape[1])]
    return judge.similarity(for_judge(flat), texts).reshape(images.shape[:2])


def graded(images: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """The scorer's graded score of each image [P, K, H, W, 3]: float64 [P, K]."""
    flat = images.reshape(-1, *images.shape[2:])
    asked = [prompt for prompt in prompts for _ in range(images.shape[1])]
    return np.array([score.graded for score in score_all(flat, asked)]).reshape(images.shape[:2])


def _flip(first: str, second: str, prompt: str, number: int, seed: int) -> bool:
    """A coin for who stands left, the same in every process and for every judge."""
    text = "\n".join([first, second, prompt, str(number), str(seed)])
    return bool(hashlib.blake2b(text.encode(), digest_size=1).digest()[0] & 1)
