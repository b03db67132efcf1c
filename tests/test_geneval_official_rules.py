"""GenEval's decisions, case by case: what is expected here is written by hand, after the public scorer's code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.official.metadata import Clause, Question
from mmdit_jax.evaluation.official.rules import Detections, Found, Rules, Verdict, judge, kept, overlap, relations

RULES = Rules()
Seen = tuple[str, float, Sequence[float]]
"""A class, its score, and a box."""
BOX = (10, 10, 30, 30)


def detections(*seen: Seen) -> Detections:
    boxes = np.array([box for _, _, box in seen], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([score for _, score, _ in seen], np.float32), tuple(name for name, _, _ in seen))


def decided(question: Question, *seen: Seen, colours: dict[float, str] | None = None, rules: Rules = RULES) -> Verdict:
    """The verdict where objects have the colours given by their boxes' left sides."""

    def colour(name: str, found: Sequence[Found]) -> list[str]:
        assert colours is not None, f"asked for the colour of a {name}"
        return [colours[float(one.box[0])] for one in found]

    return judge(question, kept(detections(*seen), question.task, rules), colour, rules)


def asked(task: str, *include: Clause, exclude: tuple[Clause, ...] = ()) -> Question:
    return Question(task, include, "a photo", exclude)


def at(left: float, top: float, width: float = 20, height: float = 20) -> tuple[float, float, float, float]:
    return (left, top, left + width, top + height)


SINGLE = asked("single_object", Clause("cat"))
TWO = asked("two_object", Clause("cat"), Clause("dog"))
THREE_CATS = asked("counting", Clause("cat", 3), exclude=(Clause("cat", 4),))
RED_CAT = asked("colors", Clause("cat", colour="red"))
LEFT = asked("position", Clause("dog"), Clause("cat", position=("left of", 0)))
PAINTED = asked("color_attr", Clause("cat", colour="red"), Clause("dog", colour="blue"))


def test_one_object() -> None:
    assert decided(SINGLE, ("cat", 0.9, BOX)) == (True, "")
    assert decided(SINGLE, ("cat", 0.9, BOX), ("cat", 0.8, BOX), ("dog", 0.9, BOX)).correct  # more of it, and others
    assert decided(SINGLE, ("dog", 0.9, BOX)) == (False, "expected cat>=1, found 0")
    assert decided(SINGLE) == (False, "expected cat>=1, found 0")


def test_a_score_must_be_above_the_threshold() -> None:
    assert decided(SINGLE, ("cat", 0.31, BOX)).correct
    assert not decided(SINGLE, ("cat", 0.29, BOX)).correct
    assert not decided(asked("single_object", Clause("cat")), ("cat", 0.5, BOX), rules=Rules(threshold=0.5)).correct


def test_two_objects() -> None:
    assert decided(TWO, ("dog", 0.4, BOX), ("cat", 0.9, BOX)).correct
    assert decided(TWO, ("cat", 0.9, BOX)) == (False, "expected dog>=1, found 0")
    assert decided(TWO) == (False, "expected cat>=1, found 0\nexpected dog>=1, found 0")
    # Clauses are independent: one cat answers for both.
    assert decided(asked("two_object", Clause("cat"), Clause("cat")), ("cat", 0.9, BOX)).correct


def test_counting_has_a_threshold_of_its_own() -> None:
    sure, unsure = ("cat", 0.91, BOX), ("cat", 0.89, BOX)
    assert decided(THREE_CATS, sure, sure, sure).correct
    assert decided(THREE_CATS, sure, sure, unsure) == (False, "expected cat>=3, found 2")
    assert decided(THREE_CATS, sure, sure, sure, unsure).correct  # the fourth is too unsure to be one too many
    assert decided(THREE_CATS, sure, sure, sure, sure) == (False, "expected cat<4, found 4")
    # The same scores in another task.
    assert decided(asked("two_object", Clause("cat", 3)), sure, sure, unsure).correct


def test_no_more_than_sixteen_objects_of_a_class_are_looked_at() -> None:
    crowd = [("cat", 0.95, at(i, i)) for i in range(20)]
    found = kept(detections(*crowd, ("dog", 0.91, BOX)), "counting", RULES)
    assert {name: len(some) for name, some in found.items()} == {"cat": 16, "dog": 1}
    many = asked("counting", Clause("cat", 16), exclude=(Clause("cat", 17),))
    assert decided(many, *crowd).correct


def test_the_best_objects_come_first_and_overlaps_go_where_that_is_asked_for() -> None:
    seen = (("cat", 0.5, at(0, 0)), ("cat", 0.8, at(2, 0)), ("cat", 0.7, at(60, 0)), ("dog", 0.9, at(2, 0)))
    found = kept(detections(*seen), "two_object", RULES)
    assert list(found) == ["dog", "cat"]
    assert [float(one.box[0]) for one in found["cat"]] == [2, 60, 0]
    thinned = kept(detections(*seen), "two_object", Rules(max_overlap=0.5))
    assert [float(one.box[0]) for one in thinned["cat"]] == [2, 60] and len(thinned["dog"]) == 1


def test_overlap_counts_both_ends_of_a_box() -> None:
    one, other = np.array([0, 0, 9, 9]), np.array([5, 0, 14, 9])  # 10 by 10 pixels each, 5 by 10 common
    assert overlap(one, other) == pytest.approx(50 / 150)
    assert overlap(one, one) == 1
    assert overlap(one, np.array([20, 20, 29, 29])) == 0


def test_colours() -> None:
    red, blue = {10.0: "red"}, {10.0: "blue"}
    assert decided(RED_CAT, ("cat", 0.9, BOX), colours=red).correct
    assert decided(RED_CAT, ("cat", 0.9, BOX), colours=blue) == (False, "expected red cat>=1, found 0 red; and 1 blue")
    assert decided(RED_CAT, ("dog", 0.9, BOX)) == (False, "expected cat>=1, found 0")  # nobody asks for its colour


def test_of_a_class_the_best_objects_alone_have_their_colour_looked_at() -> None:
    colours = {0.0: "blue", 50.0: "red"}
    best_blue = (("cat", 0.9, at(0, 0)), ("cat", 0.8, at(50, 0)))
    assert not decided(RED_CAT, *best_blue, colours=colours).correct
    best_red = (("cat", 0.8, at(0, 0)), ("cat", 0.9, at(50, 0)))
    assert decided(RED_CAT, *best_red, colours=colours).correct
    both = asked("colors", Clause("cat", 2, "red"))
    verdict = decided(both, *best_red, colours=colours)
    assert verdict == (False, "expected red cat>=2, found 1 red; and 1 red, 1 blue")


def test_attribution() -> None:
    cat, dog = ("cat", 0.9, at(0, 0)), ("dog", 0.9, at(50, 0))
    assert decided(PAINTED, cat, dog, colours={0.0: "red", 50.0: "blue"}).correct
    swapped = decided(PAINTED, cat, dog, colours={0.0: "blue", 50.0: "red"})
    assert swapped.reason.splitlines() == [
        "expected red cat>=1, found 0 red; and 1 blue",
        "expected blue dog>=1, found 0 blue; and 1 red",
    ]


@pytest.mark.parametrize(
    ("box", "true"),
    [
        (at(50, 0), ["right of"]),
        (at(-50, 0), ["left of"]),
        (at(0, -50), ["above"]),  # y points down
        (at(0, 50), ["below"]),
        (at(50, 50), ["right of", "below"]),
        (at(-50, -50), ["left of", "above"]),
        # The margin is a tenth of both widths together, 4 px here: beyond it there must be half of the distance.
        (at(3.9, 0), []),
        (at(7.9, 0), []),
        (at(8.1, 0), ["right of"]),
        # At right angles half the distance is 30°: (x − 4) / sqrt(x² + 50²) = 1/2 at x = 34.32.
        (at(34.2, 50), ["below"]),
        (at(34.4, 50), ["right of", "below"]),
        # Boxes may overlap, even hold one another; centres decide.
        (at(12, 0), ["right of"]),
        ((-10, 8, 30, 12), []),
        # A large box has a large margin: 22 px here, so that centres must lie 44 px apart.
        ((-45, -90, 155, 110), ["right of"]),
        ((-47, -90, 153, 110), []),
        (at(0, 0), []),
    ],
)
def test_relations(box: tuple[float, ...], true: list[str]) -> None:
    other = np.array(at(0, 0), np.float32)
    assert relations(np.array(box, np.float32), other, 0.1) == true


def test_no_margin() -> None:
    assert relations(np.array(at(1, 0), np.float32), np.array(at(0, 0), np.float32), 0.0) == ["right of"]


def test_positions() -> None:
    dog = ("dog", 0.9, at(50, 0))
    assert decided(LEFT, ("cat", 0.9, at(0, 0)), dog).correct
    assert decided(LEFT, ("cat", 0.9, at(100, 0)), dog) == (
        False, "expected cat left of target, found right of target"
    )  # fmt: skip
    assert decided(LEFT, ("cat", 0.9, at(49, 0)), dog).reason == "expected cat left of target, found  target"
    diagonal = decided(LEFT, ("cat", 0.9, at(100, 50)), dog)
    assert diagonal.reason == "expected cat left of target, found right of and below target"
    # Of two true relations either will do.
    assert decided(LEFT, ("cat", 0.9, at(0, 50)), dog).correct


def test_positions_of_what_is_not_there() -> None:
    assert decided(LEFT, ("cat", 0.9, at(0, 0))).reason.splitlines() == [
        "expected dog>=1, found 0",
        "no target for cat to be left of",
    ]
    assert decided(LEFT, ("dog", 0.9, at(0, 0))) == (False, "expected cat>=1, found 0")


def test_positions_of_groups() -> None:
    """All of them must stand so to all of the others; of each class only as many as are asked for, the best."""
    two_dogs = asked("position", Clause("dog", 2), Clause("cat", 2, position=("above", 0)))
    dogs = [("dog", 0.9, at(0, 100)), ("dog", 0.9, at(40, 100))]
    assert decided(two_dogs, *dogs, ("cat", 0.9, at(0, 0)), ("cat", 0.8, at(40, 0))).correct
    one_too_far = decided(two_dogs, *dogs, ("cat", 0.9, at(0, 0)), ("cat", 0.8, at(400, 0)))
    assert one_too_far == (False, "expected cat above target, found right of target")
    # A third cat, less sure, may be anywhere; a surer one may not.
    away = at(400, 0)
    assert decided(two_dogs, *dogs, ("cat", 0.9, at(0, 0)), ("cat", 0.8, at(40, 0)), ("cat", 0.7, away)).correct
    assert not decided(two_dogs, *dogs, ("cat", 0.9, at(0, 0)), ("cat", 0.8, at(40, 0)), ("cat", 0.95, away)).correct
    # Both of one class, each other's reference: the best cat is not left of itself.
    same = asked("position", Clause("cat"), Clause("cat", position=("left of", 0)))
    assert not decided(same, ("cat", 0.9, at(0, 0)), ("cat", 0.8, at(100, 0))).correct


def test_a_reference_of_the_wrong_colour_is_none() -> None:
    question = asked("position", Clause("dog", colour="red"), Clause("cat", position=("left of", 0)))
    seen = (("dog", 0.9, at(50, 0)), ("cat", 0.9, at(0, 0)))
    assert decided(question, *seen, colours={50.0: "red"}).correct
    assert "no target for cat" in decided(question, *seen, colours={50.0: "blue"}).reason


def test_a_clause_of_another_than_the_first() -> None:
    question = asked("position", Clause("dog"), Clause("bird"), Clause("cat", position=("below", 1)))
    dog, bird = ("dog", 0.9, at(0, 100)), ("bird", 0.9, at(0, 0))
    assert decided(question, dog, bird, ("cat", 0.9, at(0, 50))).correct  # below the bird, above the dog


def test_exclusion_alone() -> None:
    question = asked("counting", exclude=(Clause("cat"), Clause("dog", 2)))
    assert decided(question, ("dog", 0.95, BOX)).correct
    assert decided(question, *[("dog", 0.95, BOX)] * 2, ("cat", 0.95, BOX)).reason.splitlines() == [
        "expected cat<1, found 1",
        "expected dog<2, found 2",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"threshold": 1.5}, "threshold=1.5: expected 0 to 1"),
        ({"position_threshold": float("nan")}, "position_threshold=nan"),
        ({"max_objects": 0}, "max_objects=0: expected 1 or more"),
    ],
)
def test_bad_numbers(changes: dict[str, float], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Rules(**changes)  # type: ignore[arg-type]
