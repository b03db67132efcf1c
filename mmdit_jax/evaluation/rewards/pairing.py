"""Scores of single images to battles: pairs of players on the images that they share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from mmdit_jax.evaluation.battles import Battle, verdict
from mmdit_jax.evaluation.meetings import MOST, meetings

Key = tuple[str, int]
"""(prompt, sample)."""


def pair(
    scores: Mapping[str, Mapping[Key, float]], *, judge: str, question: str, tie: float, most: int = MOST
) -> list[Battle]:
    """Battles of pairs of players on the (prompt, sample) that both have a score of: all, or those of ``meetings``.

    Who stands left is a coin that depends on the names, prompt and sample alone. Rows are in the order of the names,
    then of the first player's scores.

    Args:
        scores: by player, by (prompt, sample).
        judge, question: what the rows say.
        tie: a lead of at most this is a tie.
        most: battles.
    """
    rows = []
    for (first, second), keys in meetings(shown(scores), most).items():
        for prompt, sample in keys:
            lead, left, right = scores[first][prompt, sample] - scores[second][prompt, sample], first, second
            if _flip(first, second, prompt, sample):
                lead, left, right = -lead, second, first
            rows.append(Battle(prompt, left, right, verdict(lead, tie), question, judge, sample))
    return rows


def shown(scores: Mapping[str, Mapping[Key, float]]) -> dict[Key, list[str]]:
    """By image the players that have a score of it."""
    found: dict[Key, list[str]] = {}
    for name in sorted(scores):
        for key in scores[name]:
            found.setdefault(key, []).append(name)
    return found


def _flip(first: str, second: str, prompt: str, sample: int) -> bool:
    text = "\n".join([first, second, prompt, str(sample)])
    return bool(hashlib.blake2b(text.encode(), digest_size=1).digest()[0] & 1)
