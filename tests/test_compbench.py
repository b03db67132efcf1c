"""The CompBench-shaped scores are what their rules say, by hand, on true scenes, on near misses and by chance."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scene_captions import drawn

from mmdit_jax.data.scenes.captions import example, examples
from mmdit_jax.data.scenes.compositions import COMPOSITIONS, ROUND, compositions
from mmdit_jax.data.scenes.detector import Detection
from mmdit_jax.data.scenes.layout import Box
from mmdit_jax.data.scenes.prompts import Prompt, Requirement
from mmdit_jax.data.scenes.renderer import render
from mmdit_jax.data.scenes.vocabulary import COLOURS, NUMBERS, SHAPES
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.compbench import (
    attribute_score,
    chance,
    compbench,
    graded_interval,
    numeracy_score,
    position,
    score_compositions,
    spatial_score,
)
from mmdit_jax.evaluation.near_misses import near_miss


def thing(shape: str, colour: str | None, x: float = 0.5, y: float = 0.5, clean: bool = True) -> Detection:
    """A detection a fifth of the frame wide; one that is not clean fits all shapes equally but for its own."""
    fits = tuple(0.8 + 0.05 * np.log(2) * (name == shape) for name in SHAPES)
    return Detection(colour, Box(x - 0.1, y - 0.1, x + 0.1, y + 0.1), 0.03, fits, clean)


BLOB = 0.5 * 2 / 6
"""What ``thing`` is worth where it is not clean: twice as likely as each of the four others, and half at most."""


@pytest.mark.parametrize(
    ("first", "second", "relation", "expected"),
    [
        (Box(0, 0, 2, 2), Box(4, 0, 6, 2), "left of", 1.0),
        (Box(0, 0, 2, 2), Box(4, 0, 6, 2), "right of", 0.0),
        (Box(0, 0, 2, 2), Box(4, 0, 6, 2), "above", 0.0),
        (Box(0, 0, 2, 2), Box(4, 3.9, 6, 5.9), "left of", 1.0),  # a little more across the one way than the other
        (Box(0, 0, 2, 2), Box(4, 4.1, 6, 6.1), "left of", 0.0),
        (Box(0, 0, 2, 2), Box(4, 4.1, 6, 6.1), "above", 1.0),
        (Box(0, 0, 2, 2), Box(4, 4, 6, 6), "left of", 0.0),  # on the diagonal it is neither
        (Box(0, 0, 2, 2), Box(0, 0, 2, 2), "above", 0.0),
        (Box(0, 0, 2, 2), Box(1, 0, 3, 2), "left of", 0.1 / (2 / 6)),  # they share 2 of 6
        (Box(0, 1, 2, 3), Box(0, 0, 2, 2), "below", 0.1 / (2 / 6)),
        (Box(0, 0, 2, 2), Box(1.9, 0, 3.9, 2), "left of", 1.0),  # 0.2 of 7.8: under a tenth
    ],
)
def test_a_relation_by_hand(first: Box, second: Box, relation: str, expected: float) -> None:
    assert position(first, second, relation) == pytest.approx(expected)


RED_LEFT = Prompt(
    "spatial",
    (Requirement("square", 1, "blue"), Requirement("circle", 1, "red", ("left of", 0))),
    "a red circle left of a blue square",
)


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([thing("circle", "red", 0.2), thing("square", "blue", 0.8)], 1.0),
        ([thing("circle", "red", 0.8), thing("square", "blue", 0.2)], 0.0),
        ([thing("circle", "blue", 0.2), thing("square", "red", 0.8)], 0.0),  # colours exchanged
        ([thing("circle", "red", 0.2)], 0.0),
        ([], 0.0),
        # Of two red circles one stands right.
        ([thing("circle", "red", 0.9), thing("circle", "red", 0.2), thing("square", "blue", 0.6)], 1.0),
        ([thing("circle", "red", 0.2, clean=False), thing("square", "blue", 0.8)], (BLOB + 1) / 4 + 0.5),
        # Boxes of 0.2 that are 0.1 apart share a third: the relation counts three tenths.
        ([thing("circle", "red", 0.5), thing("square", "blue", 0.6)], 0.5 + 0.15),
        # So little is below the floor.
        ([thing("circle", "red", 0.5, clean=False), thing("square", "blue", 0.6, clean=False)], 0.0),
    ],
)
def test_spatial_scores_by_hand(objects: list[Detection], expected: float) -> None:
    assert spatial_score(objects, RED_LEFT) == pytest.approx(expected)


def test_attribute_scores_by_hand() -> None:
    asked = Prompt("attribute", (Requirement("circle", 1, "red"), Requirement("circle", 1, "blue")), "")
    assert attribute_score([thing("circle", "blue"), thing("circle", "red")], asked) == 1
    assert attribute_score([thing("circle", "red"), thing("circle", "red")], asked) == pytest.approx(0, abs=1e-8)
    half = attribute_score([thing("circle", "red"), thing("circle", "blue", clean=False)], asked)
    assert half == pytest.approx(BLOB)
    both = attribute_score([thing("circle", "red", clean=False), thing("circle", "blue", clean=False)], asked)
    assert both == pytest.approx(BLOB**2)
    alike = Prompt("attribute", (Requirement("circle", 1, "red"), Requirement("star", 1, "red")), "")
    assert attribute_score([thing("circle", "red", clean=False)], alike) == 0  # one object answers for one
    assert attribute_score([thing("star", "red"), thing("circle", "red"), thing("star", "blue")], alike) == 1


def test_numeracy_scores_by_hand() -> None:
    asked = Prompt("numeracy", (Requirement("circle", 2), Requirement("square", 1)), "two circles and a square")
    circles, square = [thing("circle", "red")] * 2, thing("square", "blue")
    assert numeracy_score([*circles, square], asked) == 1
    assert numeracy_score([circles[0], square], asked) == 0.75  # a circle is there, but not two
    assert numeracy_score([*circles, circles[0], square, square], asked) == 0.5
    assert numeracy_score(circles, asked) == 0.5
    assert numeracy_score([], asked) == 0
    blobs = [thing("circle", "red", clean=False)] * 2
    assert numeracy_score([*blobs, square], asked) == pytest.approx((BLOB + 1) / 2)


def test_prompts_are_captions_that_training_could_draw() -> None:
    asked = compositions(ROUND, seed=3)
    texts = [prompt.prompt for prompt in asked]
    assert len(asked) == 3 * ROUND and len(set(texts)) == len(texts)
    assert [prompt.prompt for prompt in compositions(ROUND, seed=3)] == texts
    assert compositions(ROUND, seed=4) != asked
    assert [p.task for p in compositions(1)] == list(COMPOSITIONS)
    # As patterns (shapes and colours blotted out), every prompt occurs among the captions of a training set.
    seen = {_pattern(example(0, "train", number)[0]) for number in range(9000)}
    assert {_pattern(text) for text in texts} <= seen
    assert all(Prompt.from_json(prompt.to_json()) == prompt for prompt in asked)
    again = compositions(ROUND + 10, seed=3)
    assert again[:ROUND] == asked[:ROUND] and len(again) == 3 * (ROUND + 10)
    with pytest.raises(UserError, match="count_per_task=0"):
        compositions(0)


def _pattern(text: str) -> str:
    names = "|".join(COLOURS)
    plain = re.sub(rf"\b({names})\b", "COLOUR", text)
    plain = re.sub(rf"\b({'|'.join(SHAPES)})(es|s)?\b", "SHAPE", plain)
    return re.sub(r"\ban\b", "a", re.sub(r"(left|right) of|above|below", "RELATION", plain))


def test_true_scenes_pass_and_near_misses_do_not() -> None:
    """A scene of the prompt, beside one of a caption that differs in one thing (drawn by a reader of captions)."""
    asked = compositions(40, seed=1)
    rng = np.random.default_rng(0)
    kinds = {"attribute": ("colour", "shape", "swap"), "spatial": ("colour", "shape", "relation", "swap")}
    right, wrong = [], []
    for prompt in asked:
        misses = [near_miss(prompt.prompt, kind, rng) for kind in kinds.get(prompt.task, ("number", "shape"))]
        # One more object would not fit: scenes have four at most.
        fitting = [miss for miss in misses if miss is not None and _objects(miss) <= 4]
        right.append(drawn(prompt.prompt, len(right)))
        wrong.append(drawn(fitting[rng.integers(len(fitting))], len(wrong)))
    true = score_compositions(render(right, 32)[:, None], asked)[:, 0]
    false = score_compositions(render(wrong, 32)[:, None], asked)[:, 0]
    for task in COMPOSITIONS:
        mine = np.array([prompt.task == task for prompt in asked])
        assert true[mine].mean() > 0.97 and np.mean(true[mine] > false[mine]) > 0.97
        assert false[mine].mean() < (0.75 if task == "numeracy" else 0.1)  # numeracy gives half for the other kind


def _objects(caption: str) -> int:
    words = caption.replace(",", "").split()
    return sum(NUMBERS.index(w) if w in NUMBERS else w in ("a", "an") for w in words)


def test_the_table_beside_chance() -> None:
    asked = compositions(6, seed=2)
    images = render([drawn(prompt.prompt, number) for number, prompt in enumerate(asked)], 32)
    rows = compbench(np.stack([images, images], axis=1), asked)
    assert [row["task"] for row in rows] == [*COMPOSITIONS, "overall"]
    assert [row["n"] for row in rows] == [12, 12, 12, 36]
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows) and rows[-1]["value"] > 0.9
    assert rows[-1]["value"] == pytest.approx(np.mean([row["value"] for row in rows[:-1]]))
    # Chance is what other random scenes score: here of another seed, scored by the same rule.
    other, _ = examples(4321, "validation", 0, 360, 32)
    for row in rows[:-1]:
        mine = [prompt for prompt in asked if prompt.task == row["task"]]
        tried = score_compositions(other.reshape(len(mine), -1, 32, 32, 3), mine)
        error = 4 * np.sqrt(tried.var() * (1 / tried.size + 1 / 256)) + 0.005
        assert abs(row["chance"] - tried.mean()) < error and row["chance"] < 0.35
    assert chance(asked, 32).shape == (18,)


def test_images_without_any_scene_score_nearly_nothing() -> None:
    asked = compositions(4)
    rng = np.random.default_rng(0)
    for images in (
        np.full((12, 1, 32, 32, 3), 128, np.uint8),
        rng.integers(0, 256, (12, 1, 32, 32, 3), dtype=np.uint8),
    ):
        assert score_compositions(images, asked).mean() < 0.02
    with pytest.raises(UserError, match="expected \\[P, K, H, W, 3\\] with P=12"):
        score_compositions(images[:3], asked)
    with pytest.raises(UserError, match="task"):
        score_compositions(images[:1], [Prompt("colors", (), "")])


def test_intervals_of_graded_means_cover() -> None:
    rng = np.random.default_rng(0)
    for draw, mean in (
        (lambda: rng.beta(2, 5, 40), 2 / 7),
        (lambda: np.where(rng.random(40) < 0.3, rng.beta(8, 3, 40), 0.0), 0.3 * 8 / 11),
        (lambda: (rng.random(40) < 0.1).astype(float), 0.1),
    ):
        bounds = np.array([graded_interval(draw()) for _ in range(1500)])
        assert 0.925 < np.mean((bounds[:, 0] <= mean) & (mean <= bounds[:, 1])) < 0.985
    low, high = graded_interval(np.zeros(40))
    assert low == pytest.approx(0) and 0.05 < high < 0.12  # Wilson's of none of 40
    assert graded_interval(np.ones(40)) == pytest.approx((1 - high, 1))
