"""Scores of single images to battles: every pair of players on every image they share."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping

from mmdit_jax.evaluation.battles import Battle, verdict

Key = tuple[str, int]
"""(prompt, sample)."""


def pair(scores: Mapping[str, Mapping[Key, float]], *, judge: str, question: str, tie: float) -> list[Battle]:
    """Battles of every pair of players on every (prompt, sample) that both have a score of.

    Who stands left is a coin that depends on the names, prompt and sample alone. Rows are in the order of the names,
    then of the first player's scores.

    Args:
        scores: by player, by (prompt, sample).
        judge, question: what the rows say.
        tie: a lead of at most this is a tie.
    """
    rows = []
    for first, second in itertools.combinations(sorted(scores), 2):
        for (prompt, sample), score in scores[first].items():
            other = scores[second].get((prompt, sample))
            if other is None:
                continue
            lead, left, right = score - other, first, second
            if _flip(first, second, prompt, sample):
                lead, left, right = -lead, second, first
            rows.append(Battle(prompt, left, right, verdict(lead, tie), question, judge, sample))
    return rows


def _flip(first: str, second: str, prompt: str, sample: int) -> bool:
    text = "\n".join([first, second, prompt, str(sample)])
    return bool(hashlib.blake2b(text.encode(), digest_size=1).digest()[0] & 1)
