"""Both readers against signs of known words, letters that are not ours, near misses and images of nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mmdit_jax.data.scenes import examples as scenes
from mmdit_jax.data.signs import HELD_OUT, WORDS, example, examples, render, word_of
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation import typography_ocr
from mmdit_jax.evaluation.typography import (
    chance,
    edit_distance,
    letter_accuracy,
    letter_scores,
    readers,
    sign_prompts,
    typography,
)
from mmdit_jax.evaluation.typography_ocr import ocr_available, read_ocr
from mmdit_jax.evaluation.typography_template import read_templates

needs_ocr = pytest.mark.skipif(not ocr_available(), reason="rapidocr-onnxruntime is not installed")
READERS = [pytest.param(read_templates, id="template"), pytest.param(read_ocr, id="ocr", marks=needs_ocr)]


def signs(count: int, seed: int = 11, size: int = 32) -> tuple[np.ndarray, list[str]]:
    images, captions = examples(seed, "validation", 0, count, size)
    return images, [word_of(text) for text in captions]


def accuracy(read: list[str], words: list[str]) -> float:
    return float(np.mean([a == b for a, b in zip(read, words, strict=True)]))


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "ABC", 3), ("STOP", "SHOP", 1), ("STOP", "SPOT", 2), ("KITTEN", "SITTING", 3)],
)  # fmt: skip
def test_edit_distance_by_hand(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance
    longest = max(len(first), len(second), 1)
    assert letter_accuracy(first, second) == pytest.approx(1 - distance / longest)


@pytest.mark.parametrize("reader", READERS)
def test_clean_and_noisy_signs_are_read(reader) -> None:
    images, words = signs(32)
    assert accuracy(reader(images), words) > 0.95
    noisy = np.clip(images + np.random.default_rng(0).normal(0, 15, images.shape), 0, 255).astype(np.uint8)
    assert accuracy(reader(noisy), words) > 0.65
    large, words = signs(6, size=64)
    assert accuracy(reader(large), words) > 0.9


@pytest.mark.parametrize("reader", READERS)
def test_one_letter_exchanged_is_seen(reader) -> None:
    """A near miss is read as what it shows, and so scores a letter less: OTOP for STOP."""
    rng = np.random.default_rng(0)
    wrong, asked, shown = [], [], []
    for number in range(24):
        text, sign = example(5, "validation", number)
        place = int(rng.integers(len(sign.word)))
        others = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c != sign.word[place]]
        missed = sign.word[:place] + others[rng.integers(25)] + sign.word[place + 1 :]
        wrong.append(dataclasses.replace(sign, word=missed))
        asked.append(text)
        shown.append(missed)
    images = render(wrong, 32)
    assert accuracy(reader(images), shown) > 0.85
    scores = letter_scores(images[:, None], sign_prompts(asked), reader)[:, 0]
    expected = np.mean([1 - 1 / len(word) for word in shown])
    assert abs(scores.mean() - expected) < 0.05 and np.mean(scores == 1) < 0.06


@pytest.mark.parametrize("reader", READERS)
def test_images_of_nothing_score_no_better_than_chance(reader) -> None:
    """Flat, noise, blobs, and scenes: coloured shapes are no letters."""
    rng = np.random.default_rng(1)
    asked = sign_prompts(examples(2, "validation", 0, 10, 32)[1])
    by_chance = chance(asked).mean(axis=0)
    blobs = 128 + ndimage.gaussian_filter(rng.normal(0, 900, (10, 32, 32, 3)), (0, 1.5, 1.5, 0))
    for images in (
        np.full((10, 32, 32, 3), 200, np.uint8),
        rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8),
        np.clip(blobs, 0, 255).astype(np.uint8),
        scenes(0, "validation", 0, 10, 32)[0],
    ):
        scores = letter_scores(images[:, None], asked, reader)
        assert np.mean(scores == 1) == 0 and scores.mean() < by_chance[1]


@pytest.mark.parametrize(("font", "at_least"), [("DejaVuSansMono.ttf", 0.5), ("DejaVuSans-Bold.ttf", 0.5), (None, 0.2)])
def test_templates_read_letters_that_are_not_ours(font: str | None, at_least: float) -> None:
    """In other fonts (None: PIL's own), letter by letter in cells of our width: far more letters than chance."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    made = ImageFont.truetype(folder / font, 84) if font else ImageFont.load_default(84)
    images, words = [], WORDS[40:340:8]
    for word in words:
        drawing = Image.new("RGB", (256, 256), (245, 240, 235))
        for i, letter in enumerate(word):
            x = 128 + 50 * (i - (len(word) - 1) / 2)
            ImageDraw.Draw(drawing).text((x, 158), letter, (30, 40, 200), made, anchor="ms")
        images.append(np.asarray(drawing.resize((32, 32), Image.Resampling.BOX)))
    scores = [letter_accuracy(read, word) for read, word in zip(read_templates(np.stack(images)), words, strict=True)]
    assert np.mean(scores) > at_least


def test_the_table_of_right_and_of_wrong_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typography_ocr, "ocr_available", lambda: False)
    monkeypatch.setattr("mmdit_jax.evaluation.typography.ocr_available", lambda: False)
    assert list(readers()) == ["template"]
    images, captions = examples(8, "validation", 0, 40, 32)
    asked = sign_prompts(captions)
    assert [p.task for p in asked[:2]] == ["seen", "unseen"] and word_of(asked[1].prompt) in HELD_OUT
    rows = typography(images[:, None], asked)
    assert [(row["reader"], row["task"], row["n"]) for row in rows] == [
        ("template", "seen", 20), ("template", "unseen", 20), ("template", "overall", 40)
    ]  # fmt: skip
    assert all(row["low"] <= row["rate"] <= row["high"] and row["rate"] > 0.9 for row in rows)
    # The same images for one another's words: by the readings what chance says by simulation.
    scores = np.concatenate([letter_scores(np.roll(images, 2 * k, 0)[:, None], asked, read_templates) for k in (3, 7)])
    error = 4 * scores.std() / np.sqrt(40)
    assert abs(scores.mean() - rows[-1]["chance_graded"]) < error and rows[-1]["chance"] < 0.02
    with pytest.raises(UserError, match="in quotation marks"):
        sign_prompts(["a red circle"])
    with pytest.raises(UserError, match="P=40"):
        typography(images[:3, None], asked)
    for wrong in (images[0], images.astype(np.float32), images[:, :, :16]):
        with pytest.raises(UserError, match="expected uint8"):
            read_templates(wrong)


def test_without_the_package_ocr_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typography_ocr, "ocr_available", lambda: False)
    typography_ocr._recogniser.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'mmdit-jax\[ocr\]'"):
        read_ocr(np.zeros((1, 32, 32, 3), np.uint8))


@needs_ocr
def test_readers_agree() -> None:
    """On what is clean almost always; where noise makes them err, they err on their own."""
    images, words = signs(24, seed=21)
    for noise, least in ((0, 0.85), (25, 0.35)):
        shown = np.clip(images + np.random.default_rng(0).normal(0, noise, images.shape), 0, 255).astype(np.uint8)
        assert accuracy(read_templates(shown), read_ocr(shown)) > least
    assert accuracy(read_ocr(images), words) > 0.95
