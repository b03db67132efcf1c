"""GenEval's table: intervals that cover, chance that is measured, and a tree that the official scorer reads."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from PIL import Image
from scene_oracle import satisfying
from scipy.stats import binomtest

from mmdit_jax.data.scenes import TASKS, Prompt, examples, prompts, render
from mmdit_jax.data.scenes.layout import Draws
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.geneval import (
    chance,
    geneval,
    mean_interval,
    rate_interval,
    read_geneval_tree,
    wilson,
    write_geneval_tree,
)


def test_wilson_is_scipys() -> None:
    for passed, n in ((0, 40), (1, 40), (13, 40), (40, 40), (3, 4)):
        expected = binomtest(passed, n).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(wilson(passed, n), expected, atol=1e-12)
    for n in range(2, 400):  # rounding leaves no rate outside of its own interval
        assert wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1


def test_interval_of_the_overall_covers_the_truth() -> None:
    """Six tasks of 40 prompts at the rates of a small model: a bootstrap would be too narrow here."""
    rates = np.array([0.31, 0.06, 0.03, 0.04, 0.02, 0.0])
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        passed = rng.random((6, 40, 1)) < rates[:, None, None]
        low, high = mean_interval(passed.mean(axis=(1, 2)).tolist(), [rate_interval(task) for task in passed])
        covered += low <= rates.mean() <= high
    assert 0.93 <= covered / 1000 <= 0.995


def test_interval_of_a_task_knows_that_samples_of_a_prompt_are_alike() -> None:
    """Four samples of each prompt, whose own rates differ: counting them as independent covers too rarely."""
    rng = np.random.default_rng(1)
    covered, naive = 0, 0
    for _ in range(1000):
        passed = rng.random((60, 4)) < rng.beta(0.6, 0.9, (60, 1))
        low, high = rate_interval(passed)
        covered += low <= 0.4 <= high
        low, high = wilson(int(passed.sum()), passed.size)
        naive += low <= 0.4 <= high
    assert covered / 1000 >= 0.93 > 0.90 > naive / 1000


@pytest.mark.parametrize(("rate", "alike"), [(0.01, 0.4), (0.01, 0.7), (0.99, 0.7), (0.03, 0.9)])
def test_interval_of_a_rare_pass_covers(rate: float, alike: float) -> None:
    """Of 100 prompts few pass, or fail: how much their samples resemble each other can't be read from them."""
    rng, shape = np.random.default_rng(2), 1 / alike - 1
    covered = 0
    for _ in range(800):
        passed = rng.random((100, 4)) < rng.beta(rate * shape, (1 - rate) * shape, (100, 1))
        low, high = rate_interval(passed)
        covered += low <= rate <= high
    assert covered / 800 >= 0.93


def test_images_of_prompts_that_end_alike_count_once() -> None:
    for samples in (1, 4):
        assert rate_interval(np.zeros((100, samples))) == pytest.approx(wilson(0, 100))
        assert rate_interval(np.ones((100, samples))) == pytest.approx(wilson(100, 100))


def test_table_of_right_images_and_of_images_for_other_prompts() -> None:
    asked = prompts(6, seed=3)
    draws = Draws(np.random.default_rng(3))
    images = render([satisfying(prompt, draws) for prompt in asked for _ in range(2)]).reshape(36, 2, 32, 32, 3)
    rows = geneval(images, asked)
    assert [row["task"] for row in rows] == [*TASKS, "overall"]
    columns = ["task", "n", "rate", "low", "high", "graded", "graded_low", "graded_high", "chance", "chance_graded"]
    assert all(list(row) == columns for row in rows)
    assert [row["n"] for row in rows] == [12] * 6 + [72]
    for row in rows:
        assert row["rate"] == row["graded"] == 1 and 0.6 < row["low"] < row["high"] == 1
        assert 0 <= row["chance"] < 0.6 and row["chance"] <= row["chance_graded"] < 0.8
    json.dumps(rows)
    # The same images against the wrong prompts: worse, and the overall is the mean of the tasks.
    rows = geneval(images[::-1], asked)
    assert rows[-1]["rate"] < 0.5 and rows[-1]["rate"] == pytest.approx(np.mean([row["rate"] for row in rows[:-1]]))
    assert all(row["graded_low"] <= row["graded"] <= row["graded_high"] < 1 for row in rows)
    assert rows == geneval(images[::-1], asked)


def test_chance_is_what_random_scenes_score() -> None:
    """Other random scenes, scored by the table itself, agree with the simulated chance within four standard errors."""
    asked = prompts(10, seed=0)
    images, _ = examples(77, "train", 0, 600)
    rows = geneval(images.reshape(60, 10, 32, 32, 3), asked)
    for row in rows:
        if row["task"] == "overall":
            continue
        error = np.sqrt(max(row["chance"], 0.01) * (1 - row["chance"]) * (1 / 100 + 1 / 256))
        assert abs(row["rate"] - row["chance"]) < 4 * error, row
    by_task = chance(asked, 32).reshape(6, 10, 2).mean(axis=1)
    assert by_task[0, 0] == by_task[:, 0].max()  # one object is the easiest to hit by chance


def test_tree_is_the_one_the_official_scorer_walks(tmp_path) -> None:
    asked = prompts(1, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (6, 2, 32, 32, 3), np.uint8)
    write_geneval_tree(images, asked, tmp_path)
    seen = 0
    for subfolder in os.listdir(tmp_path):  # as evaluate_images.py does
        assert subfolder.isdigit() and len(subfolder) == 5
        with open(tmp_path / subfolder / "metadata.jsonl") as file:
            metadata = json.load(file)
        assert {"tag", "include", "prompt"} <= set(metadata) and metadata["prompt"] == asked[int(subfolder)].prompt
        for name in os.listdir(tmp_path / subfolder / "samples"):
            assert re.fullmatch(r"\d{4}\.png", name)
            pixels = np.asarray(Image.open(tmp_path / subfolder / "samples" / name))
            np.testing.assert_array_equal(pixels, images[int(subfolder), int(name[:4])])
            seen += 1
    assert seen == 12
    again, asked_again = read_geneval_tree(tmp_path)
    np.testing.assert_array_equal(again, images)
    assert asked_again == asked
    with pytest.raises(UserError, match="samples="):
        read_geneval_tree(tmp_path / "nowhere")


def test_bad_input_is_refused() -> None:
    image = np.zeros((1, 1, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match=r"images\.shape=.*P=2"):
        geneval(image, prompts(1)[:2])
    with pytest.raises(UserError, match=r"images\.shape="):
        geneval(image[0], prompts(1)[:1])
    with pytest.raises(UserError, match="task='caption': unknown"):
        geneval(image, [Prompt("caption", (), "a cat")])
