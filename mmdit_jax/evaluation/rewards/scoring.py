"""Scores of many images by one judge: what is known is not scored again, what is new is kept batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmdit_jax.errors import Preempted, UserError
from mmdit_jax.evaluation.rewards.cache import Score, ScoreFile
from mmdit_jax.evaluation.rewards.interface import Judge
from mmdit_jax.evaluation.rewards.pairing import Key
from mmdit_jax.evaluation.rewards.trees import Picture, read_image


@dataclass(frozen=True)
class Counts:
    """Of images."""

    scored: int
    """Now."""
    known: int
    """From before, or another image of the same bytes."""
    unseen: int
    """Whose prompts the judge has nothing to say of."""


def score_pictures(
    judge: Judge,
    pictures: Sequence[Picture],
    hashes: Mapping[Path, str],
    file: ScoreFile,
    *,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, dict[Key, float]], Counts]:
    """Scores by player, by (prompt, sample), in the pictures' order.

    Args:
        judge: loaded only if there is something to score.
        pictures: of all players.
        hashes: of their files, by path.
        file: asked first, and told of each batch.
        stop: asked before each batch; whether to end.
        tell: called after each batch with the images scored and to be scored.

    Raises:
        UserError: an image can't be read, or a score is not finite.
        Preempted: ``stop`` said so; what was scored is kept.
    """
    seen = [picture for picture in pictures if judge.sees(picture)]
    wanted: dict[tuple[str, str], Picture] = {}
    for picture in seen:
        image = hashes[picture.path]
        if file.get(judge.name, judge.fingerprint, picture.prompt, image) is None:
            wanted.setdefault((picture.prompt, image), picture)
    new = list(wanted.values())
    load = judge.load() if new else None
    for start in range(0, len(new), judge.batch):
        if stop():
            raise Preempted(
                f"{start} of {len(new)} images scored by {judge.name} and kept in {file.path}; run me again"
            )
        part = new[start : start + judge.batch]
        assert load is not None
        found = load([read_image(picture.path) for picture in part], part)
        for picture, score in zip(part, found, strict=True):
            if not math.isfinite(score):
                raise UserError(f"judge={judge.name}: score={score} of {picture.path}; are its weights damaged?")
        file.add(_row(judge, picture, hashes, float(score)) for picture, score in zip(part, found, strict=True))
        tell(start + len(part), len(new))

    scores: dict[str, dict[Key, float]] = {}
    rows = []
    for picture in seen:
        known = file.get(judge.name, judge.fingerprint, picture.prompt, hashes[picture.path])
        assert known is not None
        rows.append(_row(judge, picture, hashes, known))
        scores.setdefault(picture.name, {})[picture.prompt, picture.sample] = known
    file.add(rows)
    return scores, Counts(len(new), len(seen) - len(new), len(pictures) - len(seen))


def _row(judge: Judge, picture: Picture, hashes: Mapping[Path, str], score: float) -> Score:
    return Score(
        picture.name, picture.prompt, picture.sample, judge.name, score, hashes[picture.path], judge.fingerprint
    )
