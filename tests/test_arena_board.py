"""What the board shows: ratings of runs that have met, each group apart, and how little some votes tell."""

from __future__ import annotations

import pandas as pd
import pytest

from launch.arena.board import DRAWS, board
from launch.arena.gallery import Item
from launch.arena.notes import few_prompts, one_way
from launch.arena.store import Vote
from scaling.elo import rate

QUESTION = "aesthetics"


def votes_of(rows: list[tuple[str, str, str, str]]) -> list[Vote]:
    """Of (prompt, left, right, outcome)."""
    return [
        Vote(str(number), "v", Item(prompt, 0), left, right, QUESTION, outcome, 0.0)
        for number, (prompt, left, right, outcome) in enumerate(rows)
    ]


def groups_of(rows: list[tuple[str, str, str, str]]) -> list[dict[str, object]]:
    (told,) = board(votes_of(rows), (QUESTION,))["questions"]
    assert told["votes"] == len(rows)
    groups: list[dict[str, object]] = told["groups"]
    return groups


def even(first: str, second: str, prompts: int = 20) -> list[tuple[str, str, str, str]]:
    """Each wins as often."""
    return [(f"p{n}", first, second, ("left", "right")[n % 2]) for n in range(prompts)]


def table(rows: list[tuple[str, str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["prompt", "left", "right", "outcome"])


def test_a_run_that_has_only_won_is_told() -> None:
    """Three wins: a rating with an interval, whose upper end no vote tells."""
    rows = even("a", "b") + even("b", "c") + [("p0", "new", "a", "left"), ("p1", "b", "new", "right")]
    (group,) = groups_of([*rows, ("p2", "new", "c", "left")])
    assert group["title"] == ""
    assert group["note"] == (
        "new has only won: how far above the others it stands is the prior's word, and so is the upper end of its "
        "interval. On fewer than 10 prompts, so that intervals are rough yet: new (3)."
    )
    (group,) = groups_of([*rows, ("p2", "c", "new", "left")])
    assert group["note"] == "On fewer than 10 prompts, so that intervals are rough yet: new (3)."
    assert groups_of(even("a", "b"))[0]["note"] == ""


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("p", "x", "y", "left")], ["x has only won: how far above", "y has only lost: how far below"]),
        ([("p", "x", "y", "tie")], []),
        (
            [*even("a", "b"), ("p", "a", "x", "left"), ("p", "y", "b", "right")],
            ["x, y have only lost: how far below the others they stand is the prior's word, and so is the lower end"],
        ),
        (
            [*even("a", "b"), ("p", "a", "m", "left"), ("p", "m", "z", "left")],
            ["z has only lost", "m has only won or only lost against each of the others"],
        ),
        (
            [*even("a", "b"), *even("a", "e"), *even("c", "d"), ("p", "c", "a", "left")],
            ["c, d have, but for votes between them, only won"],
        ),
        (
            [("p", f"r{number:02d}", "low", "left") for number in range(12)],
            ["r00, r01, r02, r03, r04, r05, r06, r07 and 4 more have only won", "low has only lost"],
        ),
    ],
)
def test_who_has_only_won_or_lost(rows: list[tuple[str, str, str, str]], told: list[str]) -> None:
    found = one_way(table(rows), rate(table(rows), draws=0).separated)
    assert len(found) == len(told)
    assert all(line.startswith(start) for line, start in zip(found, told, strict=True)), found


def test_few_prompts_are_counted_by_run() -> None:
    rows = even("a", "b") + [(f"p{n % 9}", "c", "a", "tie") for n in range(40)]
    assert few_prompts(table(rows)) == ["On fewer than 10 prompts, so that intervals are rough yet: c (9)."]
    assert few_prompts(table([*rows, ("p9", "b", "c", "tie")])) == []
    assert few_prompts(table(rows[:1])) == ["Votes on 1 prompt only: the intervals are rough yet."]


def test_runs_that_never_met_are_rated_apart() -> None:
    """As if each group's votes were all there are."""
    one, two = even("a", "b") + even("b", "c") + even("a", "c")[1:], even("x", "y", 13)
    first, second = groups_of(one + two)
    for group, rows, number in ((first, one, 1), (second, two, 2)):
        alone = rate(table(rows), draws=DRAWS).ratings
        assert group["title"] == f"Group {number} of 2, rated apart: these runs have not met the others"
        assert [(row["name"], row["elo"], row["low"]) for row in group["rows"]] == [
            (rating.name, rating.elo, rating.low) for rating in alone
        ]
    joined = groups_of([*one, *two, ("p0", "x", "a", "left"), ("p0", "x", "a", "right")])
    assert len(joined) == 1 and len(joined[0]["rows"]) == 5
    assert groups_of([]) == [{"title": "", "rows": [], "note": "No votes yet."}]
