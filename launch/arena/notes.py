"""What a board says below its ratings: which of them votes tell little of. In whole sentences."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

FEW_PROMPTS = 10
"""Intervals from fewer are rough, and told to be."""
MOST = 8
"""Names in a sentence; of more, how many."""


def one_way(battles: pd.DataFrame, separated: Sequence[Sequence[str]]) -> list[str]:
    """Of whom all votes say one thing: ``EloTable.separated`` of these battles, in words.

    Groups are told from the largest one, if that is more than a single run.
    """
    groups = sorted(separated, key=len, reverse=True)
    alone: dict[str, list[str]] = {"won": [], "lost": [], "both": []}
    told = []
    for group in groups[1:] if groups and len(groups[0]) > 1 else groups:
        ours = battles["left"].isin(group)
        outward = ours != battles["right"].isin(group)
        won = (battles["outcome"].eq("left") == ours)[outward]  # no ties: they would join the groups
        kind = "won" if won.all() else "both" if won.any() else "lost"
        if len(group) == 1:
            alone[kind].append(group[0])
        else:
            told.append(_sentence(group, kind, but=", but for votes between them,"))
    return [*(_sentence(names, kind) for kind, names in alone.items() if names), *told]


def few_prompts(battles: pd.DataFrame) -> list[str]:
    """Whose intervals are rough, being of few prompts."""
    total = battles["prompt"].nunique()
    if total < FEW_PROMPTS:
        return [f"Votes on {total} prompt{'s' * (total != 1)} only: the intervals are rough yet."]
    sides = [battles[["prompt", side]].set_axis(["prompt", "run"], axis=1) for side in ("left", "right")]
    counts = pd.concat(sides).groupby("run")["prompt"].nunique()
    few = [f"{run} ({count})" for run, count in counts.items() if count < FEW_PROMPTS]
    return [f"On fewer than {FEW_PROMPTS} prompts, so that intervals are rough yet: {listed(few)}."] if few else []


def _sentence(names: Sequence[str], kind: str, but: str = "") -> str:
    one = len(names) == 1
    have, they_stand = ("has", "it stands") if one else ("have", "they stand")
    end = "end of its interval" if one else "end of each of their intervals"
    kinds = {
        "won": ("only won", f"how far above the others {they_stand}", f"the upper {end}"),
        "lost": ("only lost", f"how far below the others {they_stand}", f"the lower {end}"),
        "both": (
            "only won or only lost against each of the others",
            f"how far off {they_stand}",
            "its interval" if one else "each of their intervals",
        ),
    }
    done, distance, ends = kinds[kind]
    return f"{listed(names)} {have}{but} {done}: {distance} is the prior's word, and so is {ends}."


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more
