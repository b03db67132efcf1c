"""Signs: deterministic in seed and index, words held out of training, captions that are true, letters that spell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import mmdit_jax.data.pipeline as pipeline
from experiments import signs_small
from launch.battle_table import SETS
from mmdit_jax.data.signs import HELD_OUT, SIGNS, TRAINED, WORDS, example, examples, render, word_of
from mmdit_jax.data.signs.renderer import INKS, PAIRS, letters
from mmdit_jax.data.store import BUILDERS
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.evaluate import evaluate, evaluation_prompts
from mmdit_jax.evaluation.typography_template import read_templates
from mmdit_jax.models.text import assemble, context_shape, shapes_of, text_encoder


def test_examples_are_a_function_of_seed_split_and_index() -> None:
    images, captions = examples(3, "train", 10, 40, 32)
    again, same = examples(3, "train", 25, 26, 32)
    assert np.array_equal(again[0], images[15]) and same[0] == captions[15]
    for seed, split in ((4, "train"), (3, "validation")):
        assert examples(seed, split, 10, 40, 32)[1] != captions
    assert images.shape == (30, 32, 32, 3) and images.dtype == np.uint8
    with pytest.raises(UserError, match="resolution=24"):
        render([example(0, "train", 0)[1]], 24)
    with pytest.raises(UserError, match="split"):
        example(0, "test", 0)


def test_training_never_shows_a_held_out_word_and_validation_does_every_other_time() -> None:
    assert set(TRAINED) | set(HELD_OUT) == set(WORDS) and not set(TRAINED) & set(HELD_OUT)
    assert len(set(WORDS)) == len(WORDS) and 40 < len(HELD_OUT) < 60
    assert all(word.isalpha() and word.isupper() and 2 <= len(word) <= 4 for word in WORDS)
    shown = {word_of(example(0, "train", i)[0]) for i in range(4000)}
    assert shown == set(TRAINED)
    held = [word_of(example(0, "validation", i)[0]) in HELD_OUT for i in range(200)]
    assert held == [i % 2 == 1 for i in range(200)]
    # What is asked of a held-out word, training has shown letter by letter.
    seen = {(len(word), i, c) for word in TRAINED for i, c in enumerate(word)}
    assert {(len(word), i, c) for word in HELD_OUT for i, c in enumerate(word)} <= seen


def test_captions_say_what_is_painted() -> None:
    for number in range(40):
        text, sign = example(1, "train", number)
        assert text == f'the word "{sign.word}" in {sign.ink} on a {sign.plate} sign' and word_of(text) == sign.word
        image = render([sign], 64)[0] / 255
        inside = image[round(64 * (sign.y - 0.25)) : round(64 * (sign.y + 0.25)), 4:-4].reshape(-1, 3)
        # Most of the plate is its colour, and the pixels farthest from that are the letters'.
        assert np.abs(np.median(inside, axis=0) - INKS[sign.plate]).max() < 0.05
        farthest = np.argsort(np.abs(inside - np.median(inside, axis=0)).sum(1))[-20:]
        assert np.abs(np.median(inside[farthest], axis=0) - INKS[sign.ink]).max() < 0.12
    assert len(PAIRS) == 14


def test_letters_stand_where_they_are_told_to() -> None:
    for word, x, y in (("STOP", 0.5, 0.5), ("GO", 0.46, 0.42), ("ICE", 0.53, 0.6)):
        ink = letters(word, 0.2, x, y, 160)
        columns, rows = np.flatnonzero(ink.max(0) > 0.5), np.flatnonzero(ink.max(1) > 0.5)
        assert abs((columns[0] + columns[-1] + 1) / 320 - x) < 0.02
        assert abs((rows[0] + rows[-1] + 1) / 320 - y) < 0.01
        assert abs((columns[-1] + 1 - columns[0]) / 160 - 0.2 * len(word)) < 0.06
        # As the font itself draws the word at this size, by another path of PIL and without averaging.
        drawn = Image.new("L", (160, 160))
        font = ImageFont.truetype("DejaVuSansMono-Bold.ttf", 0.2 * 160 / 0.602)
        ImageDraw.Draw(drawn).text((160 * x, rows[-1] + 1), word, fill=255, font=font, anchor="ms")
        assert np.corrcoef(np.asarray(drawn).ravel(), ink.ravel())[0, 1] > 0.93


def test_the_set_is_built_and_read(tmp_path) -> None:
    pipeline.prepare("signs", tmp_path, resolution=32, examples=20, validation_examples=6)
    data = pipeline.load("signs", tmp_path, resolution=32, examples=20, validation_examples=6)
    images, captions = examples(0, "train", 0, 20, 32)
    assert data.split("train").captions == captions and np.array_equal(data.split("train").images, images)
    assert len(data.split("validation")) == 6
    with pytest.raises(UserError, match="resolution=16"):
        pipeline.prepare("signs", tmp_path, resolution=16, examples=20)


def test_fixed_signs_are_short_words_in_one_place(tmp_path) -> None:
    """Two with one word are one image, whose letters begin where patches of 4 do; the template reader knows them."""
    signs = [example(0, "train", i, fixed=True) for i in range(2000)]
    by_word: dict[str, set] = {}
    for text, sign in signs:
        assert text == f'the word "{sign.word}" in black on a white sign'
        by_word.setdefault(sign.word, set()).add(sign)
    assert set(by_word) == {word for word in TRAINED if len(word) <= 3}
    assert all(len(found) == 1 for found in by_word.values())
    held = [word_of(example(0, "validation", i, fixed=True)[0]) in HELD_OUT for i in range(40)]
    assert held == [i % 2 == 1 for i in range(40)]
    assert all((32 * (sign.x - len(sign.word) * sign.pitch / 2)) % 4 == 0 for _, sign in signs)
    pipeline.prepare("signs_fixed", tmp_path, resolution=32, examples=20, validation_examples=6)
    data = pipeline.load("signs_fixed", tmp_path, resolution=32, examples=20, validation_examples=6)
    images, captions = examples(0, "train", 0, 20, 32, fixed=True)
    assert data.split("train").captions == captions and np.array_equal(data.split("train").images, images)
    assert not np.array_equal(images, examples(0, "train", 0, 20, 32)[0])
    assert read_templates(images) == [word_of(text) for text in captions]


def test_fixed_signs_are_judged_as_signs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the chance of their own words."""
    run = signs_small.study().runs[0]
    assert run.data.name == "signs_fixed"
    asked = evaluation_prompts(run, [example(0, "validation", i)[0] for i in range(4)])
    assert [prompt.task for prompt in asked] == ["seen", "unseen", "seen", "unseen"]
    assert set(SIGNS) <= set(SETS) and set(SIGNS) <= set(BUILDERS)
    images, captions = examples(0, "validation", 0, 8, 32, fixed=True)
    monkeypatch.setattr("mmdit_jax.evaluation.typography.ocr_available", lambda: False)
    monkeypatch.setattr("mmdit_jax.evaluation.evaluate.generate", lambda *_: images[:, None])
    monkeypatch.setattr("mmdit_jax.evaluation.evaluate.judge_match", lambda *_: 0.5)
    *_, unseen, overall = evaluate(run, None, tmp_path, captions)["typography"]
    assert overall["rate"] == 1 and unseen["chance"] > 0.02  # of the words of `signs` half as much


def test_letters_spell() -> None:
    encoder = text_encoder("letters")
    captions = ['the word "STOP" in red', 'the word "SPOT" in red', "the words “STOP” in blue", "no word", '""']
    tokens, pooled = encoder.encode(captions)
    assert tokens.shape == (5, 16, 64) and pooled.shape == (5, 0) and tokens.dtype == np.float16
    assert np.array_equal(tokens[0], tokens[2]) and not tokens[3:].any() and not tokens[:, 4:].any()
    rms = np.sqrt(np.mean(tokens[0, :4].astype(float) ** 2, axis=-1))
    assert rms.min() > 0.7 and rms.max() < 1.3
    # Every letter can be told from its token at every place of every length: the nearest of all that there are.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    known = {n: encoder.encode([f'"{c * n}"' for c in alphabet]).tokens.astype(float) for n in (2, 3, 4)}
    for word in WORDS[::7]:
        own = encoder.encode([f'"{word}"']).tokens[0].astype(float)
        for i, letter in enumerate(word):
            distance = ((known[len(word)][:, i] - own[i]) ** 2).sum(-1)
            assert alphabet[int(distance.argmin())] == letter and np.sort(distance)[1] > 10
    # Beside the others in either layout; those of `words` and `tower` are what they were.
    states = {name: text_encoder(name).encode(captions) for name in ("words", "tower", "letters")}
    shapes = shapes_of(states)
    assert context_shape(shapes).width == 192 and context_shape(shapes, "sd3").length == 48
    assert assemble(states)[0].shape == (5, 16, 192)
