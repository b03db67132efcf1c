"""Scores of words that come again, and chance of a set's own words: what a table of typography may claim."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest

from mmdit_jax.data.signs import HELD_OUT, TRAINED, examples, word_of
from mmdit_jax.data.signs.captions import FIXED_LONGEST
from mmdit_jax.evaluation.compbench import graded_interval
from mmdit_jax.evaluation.geneval import rate_interval, wilson
from mmdit_jax.evaluation.typography import chance, letter_accuracy, sign_prompts, typography, word_interval

IMAGES = 120
Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]
"""Scores of images whose words have these chances of a letter."""


def exactly(rng: np.random.Generator, chances: np.ndarray) -> np.ndarray:
    return (rng.random(len(chances)) < chances).astype(float)


def by_letter(rng: np.random.Generator, chances: np.ndarray) -> np.ndarray:
    """Three letters; images of a word are alike, and not the same."""
    return rng.binomial(3, rng.beta(10 * chances + 1e-9, 10 * (1 - chances) + 1e-9)) / 3


@functools.cache
def coverage(draw: Draw, words: int, mean: float, alike: float) -> tuple[float, float]:
    """Of intervals by words, and by images as if each had a word of its own."""
    rng, shape, runs = np.random.default_rng(0), 1 / alike - 1, 500
    found = np.zeros(2)
    for _ in range(runs):
        shown = rng.integers(words, size=IMAGES)  # unequally often, as in a split
        scores = draw(rng, rng.beta(mean * shape, (1 - mean) * shape, words)[shown])[:, None]
        naive = rate_interval(scores) if draw is exactly else graded_interval(scores[:, 0])
        for i, (low, high) in enumerate((word_interval(scores, shown), naive)):
            found[i] += low <= mean <= high
    return found[0] / runs, found[1] / runs


@pytest.mark.parametrize("draw", [exactly, by_letter])
@pytest.mark.parametrize(
    ("words", "mean", "alike"),
    [(18, 0.1, 0.5), (18, 0.5, 0.2), (18, 0.6, 0.8), (18, 0.95, 0.5), (51, 0.05, 0.5), (51, 0.7, 0.5)],
)
def test_intervals_of_words_that_come_again_cover(draw: Draw, words: int, mean: float, alike: float) -> None:
    ours, naive = coverage(draw, words, mean, alike)
    assert naive < 0.9 and 0.92 <= ours <= 0.995


@pytest.mark.parametrize("draw", [exactly, by_letter])
def test_images_that_are_not_alike_count_as_many(draw: Draw) -> None:
    """Whatever their word, each has the same chances: hardly wider than if no word came again."""
    rng, widths = np.random.default_rng(1), []
    for _ in range(200):
        shown = rng.integers(18, size=IMAGES)
        scores = draw(rng, np.full(IMAGES, 0.4))[:, None]
        one = rate_interval(scores) if draw is exactly else graded_interval(scores[:, 0])
        widths.append([float(np.diff(ends)[0]) for ends in (word_interval(scores, shown), one)])
    ours, theirs = np.mean(widths, axis=0)
    assert 1 < ours / theirs < 1.25


def test_where_nothing_or_everything_is_read_words_count() -> None:
    words = np.repeat(["CAT", "DOG", "OX", "SUN"], (1, 2, 3, 14))
    for samples in (1, 3):
        assert word_interval(np.zeros((20, samples)), words) == pytest.approx(wilson(0, 4))
        assert word_interval(np.ones((20, samples)), words) == pytest.approx(wilson(4, 4))
    for score in (0.0, 0.5, 0.75, 1.0):  # of one word nothing is known of others
        low, high = word_interval(np.array([[score], [score]]), ["CAT", "CAT"])
        assert low <= score <= high and high - low > 0.7
    low, high = word_interval(np.full((20, 1), 0.5), np.arange(20))  # no spread at all
    assert 0.4 < low < 0.5 < high < 0.6


def test_words_of_equal_counts_are_prompts_with_their_samples() -> None:
    """Four prompts of each word, or one with four samples: the same, and but for Student's t ``rate_interval``."""
    rng = np.random.default_rng(0)
    passed = (rng.random((400, 4)) < rng.beta(0.6, 0.9, (400, 1))).astype(float)
    ours = word_interval(passed, np.arange(400))
    assert word_interval(passed.reshape(-1, 1), np.repeat(np.arange(400), 4)) == pytest.approx(ours)
    assert ours == pytest.approx(rate_interval(passed), abs=2e-4)
    letters = rng.integers(0, 4, 400) / 3
    assert word_interval(letters[:, None], np.arange(400)) == pytest.approx(graded_interval(letters), abs=2e-4)


def test_the_table_counts_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdit_jax.evaluation.typography.ocr_available", lambda: False)
    images, captions = examples(8, "validation", 0, 60, 32, fixed=True)
    asked = sign_prompts(captions)
    words = {task: {word_of(p.prompt) for p in asked if p.task == task} for task in ("seen", "unseen")}
    assert len(words["unseen"]) < 20
    seen, unseen, overall = typography(images[:, None], asked, fixed=True)
    assert unseen["n"] == 30 and unseen["rate"] == 1
    for row, task in ((seen, "seen"), (unseen, "unseen")):
        count = len(words[task])
        assert (row["low"], row["high"]) == pytest.approx(wilson(count, count))
    assert overall["chance_graded"] == pytest.approx(chance(asked, fixed=True)[:, 1].mean())


@pytest.mark.parametrize("fixed", [False, True])
def test_chance_is_of_the_words_of_the_set(fixed: bool) -> None:
    """Half of a split's words are held out, all of these as often: the expectation, without a draw."""
    kinds = [[w for w in words if not fixed or len(w) <= FIXED_LONGEST] for words in (TRAINED, HELD_OUT)]
    asked = sign_prompts(examples(8, "validation", 0, 240, 32, fixed=fixed)[1])[1::2]
    letters = [[letter_accuracy(w, word_of(p.prompt)) for w in words] for p in asked for words in kinds]
    exact, graded = chance(asked, fixed=fixed).mean(axis=0)
    assert exact == pytest.approx(0.5 / len(kinds[1]), abs=0.003)  # 0.028 of short words, else 0.010
    assert graded == pytest.approx(np.mean([np.mean(row) for row in letters]), abs=0.01)
    if fixed:  # among longer words a short one comes less often
        assert chance(asked).mean(axis=0)[0] < 0.015
