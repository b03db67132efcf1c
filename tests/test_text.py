"""Frozen text encoders: content per position, explicit padding, rows that depend on their caption alone."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from deterministic import values

from mmdit_jax.config import text_widths
from mmdit_jax.data.emoji import assets
from mmdit_jax.data.scenes.captions import example
from mmdit_jax.data.scenes.prompts import TASKS, all_prompts
from mmdit_jax.errors import UserError
from mmdit_jax.models.text import (
    ENCODERS,
    TextShape,
    TextStates,
    assemble,
    context_shape,
    encode_all,
    text_encoder,
    tower,
)
from mmdit_jax.models.text.tokens import LENGTH, token_ids, word_vector, words

CAPTIONS = ["a red circle left of two blue squares", "a red circle", "", "piñata, Côte d’Ivoire", "zyxgloop 42"]


@pytest.mark.parametrize("name", ["tower", "words"])
def test_states_are_what_the_interface_promises(name: str) -> None:
    encoder = text_encoder(name)
    states = encoder.encode(CAPTIONS)
    assert states.tokens.shape == (len(CAPTIONS), encoder.length, encoder.width)
    assert states.pooled.shape == (len(CAPTIONS), encoder.pooled_width)
    assert states.tokens.dtype == states.pooled.dtype == np.float16
    for caption, tokens in zip(CAPTIONS, states.tokens.astype(np.float32), strict=True):
        count = len(words(caption))
        assert not tokens[count:].any()
        rms = np.sqrt((tokens[:count] ** 2).mean(axis=-1))
        assert np.all((rms > 0.6) & (rms < 1.5))
    # A row's bits depend on its own caption only, and the order of captions changes nothing.
    alone = encoder.encode(CAPTIONS[1:2])
    np.testing.assert_array_equal(alone.tokens[0], states.tokens[1])
    np.testing.assert_array_equal(alone.pooled[0], states.pooled[1])
    repeated = encode_all(encoder, [CAPTIONS[i] for i in (3, 1, 3, 0)])
    np.testing.assert_array_equal(repeated.tokens, states.tokens[[3, 1, 3, 0]])
    np.testing.assert_array_equal(repeated.pooled, states.pooled[[3, 1, 3, 0]])


@pytest.mark.parametrize("name", ["tower", "words"])
def test_a_linear_probe_reads_each_word_at_each_position(name: str) -> None:
    """What a caption says can be read from its states: which of eight colours the first and the last phrase name."""
    prompts = [prompt for prompt in all_prompts("color_attr")]
    states = text_encoder(name).encode([prompt.prompt for prompt in prompts]).tokens.astype(np.float64)
    features = np.concatenate([states[:, :6].reshape(len(prompts), -1), np.ones((len(prompts), 1))], axis=1)
    order = np.random.default_rng(0).permutation(len(prompts))
    train, test = order[:800], order[800:]
    for place in (0, 1):
        colours = np.array([prompt.include[place].colour for prompt in prompts])
        kinds = np.unique(colours)
        target = (colours[:, None] == kinds).astype(float)
        gram = features[train].T @ features[train] + 1e-2 * np.eye(features.shape[1])
        solution = np.linalg.solve(gram, features[train].T @ target[train])
        assert np.mean(kinds[(features[test] @ solution).argmax(axis=1)] == colours[test]) > 0.98


def test_words_of_captions() -> None:
    assert words("Piñata, CÔTE d’Ivoire: #1 up-down") == ["pinata", "cote", "divoire", "1", "up", "down"]
    ids = token_ids(CAPTIONS, 4096)
    assert ids.max() < 4096 and (ids > 0).sum(axis=1).tolist() == [len(words(c)) for c in CAPTIONS]
    assert (token_ids(["word " * 40], 4096) > 0).sum() == LENGTH
    # Letter trigrams: a plural is near its singular, other words are near nothing.
    cosine = lambda a, b: float(word_vector(a, 64) @ word_vector(b, 64)) / 64  # noqa: E731
    assert cosine("circle", "circles") > 0.3
    others = [abs(cosine("circle", word)) for word in ("square", "red", "two", "left", "above", "black")]
    assert max(others) < 0.35 and np.mean(others) < 0.2


def test_all_captions_fit() -> None:
    longest = max(len(words(example(0, "train", i)[0])) for i in range(500))
    prompts = max(len(words(prompt.prompt)) for task in TASKS for prompt in all_prompts(task))
    emoji = max(len(words(row.caption())) for row in assets.load()[0])
    assert max(longest, prompts, emoji) <= LENGTH


def test_words_are_the_same_in_another_process() -> None:
    """No dependence on hash randomisation or import order; the vectors of a word are fixed for good."""
    code = (
        "from mmdit_jax.models.text import text_encoder as t; import hashlib as h;"
        "e = t('words'); print(h.sha256(e.encode(['a red circle']).tokens.tobytes()).hexdigest(), e.fingerprint)"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(outputs) == 1


def test_assemble_concatenates_drops_and_fills() -> None:
    rng = np.random.default_rng(0)
    text = {
        "b": TextStates(rng.normal(size=(3, 4, 5)).astype(np.float16), rng.normal(size=(3, 0)).astype(np.float16)),
        "a": TextStates(rng.normal(size=(3, 4, 2)).astype(np.float16), rng.normal(size=(3, 6)).astype(np.float16)),
    }
    keep = {"a": np.array([True, False, False]), "b": np.array([True, True, False])}
    context, pooled = jax.jit(assemble)(text, keep)
    assert context.dtype == pooled.dtype == np.float32
    expected = np.concatenate([text["a"].tokens, text["b"].tokens], axis=-1).astype(np.float32)
    expected[1:, :, :2] = 0
    expected[2] = 0
    np.testing.assert_array_equal(context, expected)
    np.testing.assert_array_equal(pooled, text["a"].pooled.astype(np.float32) * [[1], [0], [0]])
    # A removed encoder leaves its channels zero, so the rest stays where the model expects it.
    expected = {"a": TextShape(4, 2, 6), "b": TextShape(4, 5, 0)}
    context, pooled = assemble({"b": text["b"]}, expected=expected)
    np.testing.assert_array_equal(context[..., 2:], text["b"].tokens.astype(np.float32))
    assert not np.any(context[..., :2]) and pooled.shape == (3, 6) and not np.any(pooled)
    for wrong in ({}, {"c": text["a"]}, {"a": text["b"]}):
        with pytest.raises(UserError):
            assemble(wrong, expected=expected)


def test_sd3s_layout_by_plain_numpy() -> None:
    """CLIP-L before CLIP-G in channels, zeros up to T5's width, T5 behind along the sequence; zeros for what lacks."""
    shapes = {"clip_g": TextShape(7, 5, 5), "clip_l": TextShape(7, 3, 3), "t5": TextShape(9, 16, 0)}
    text = {
        name: TextStates(
            values(f"{name} tokens", (2, shape.length, shape.width)), values(name, (2, shape.pooled_width))
        )
        for name, shape in shapes.items()
    }
    assert context_shape(shapes, "sd3") == (16, 16, 8)
    context, pooled = jax.jit(functools.partial(assemble, layout="sd3"))(text)
    clips = np.concatenate([text["clip_l"].tokens, text["clip_g"].tokens, np.zeros((2, 7, 8), np.float32)], axis=-1)
    np.testing.assert_array_equal(context, np.concatenate([clips, text["t5"].tokens], axis=1))
    np.testing.assert_array_equal(pooled, np.concatenate([text["clip_l"].pooled, text["clip_g"].pooled], axis=-1))
    for gone in shapes:
        rest = {name: states for name, states in text.items() if name != gone}
        without, pooled_without = assemble(rest, expected=shapes, layout="sd3")
        zeroed = {**text, gone: TextStates(*(np.zeros_like(array) for array in text[gone]))}
        expected, pooled_expected = assemble(zeroed, layout="sd3")
        np.testing.assert_array_equal(without, expected)
        np.testing.assert_array_equal(pooled_without, pooled_expected)
    with pytest.raises(UserError, match=r"different lengths.*text_layout='sd3'"):
        assemble(text)
    real = {"clip_l": TextShape(77, 768, 768), "clip_g": TextShape(77, 1280, 1280), "t5": TextShape(256, 4096, 0)}
    assert context_shape(real, "sd3") == (333, 4096, 2048)


def test_bad_names_and_weights_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'words'"):
        text_encoder("wrods")
    missing, broken = tmp_path / "none.npz", tmp_path / "broken.npz"
    broken.write_bytes(tower.WEIGHTS.read_bytes()[:5000])
    other = tmp_path / "other.npz"
    np.savez(other, something=np.zeros(3))
    for path in (missing, broken, other):
        with pytest.raises(UserError, match="train_judge --model encoder") as error:
            tower.TowerEncoder.load(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_encoding_a_data_set_takes_seconds() -> None:
    """A smoke alarm, not a benchmark: the bound is an order of magnitude above what it takes."""
    captions = [prompt.prompt + f", {i}" for prompt in all_prompts("color_attr") for i in range(4)]
    for name in ENCODERS:
        encoder = text_encoder(name)
        start = time.perf_counter()
        encode_all(encoder, captions)
        assert time.perf_counter() - start < 20


def test_a_model_needs_a_pooled_state() -> None:
    assert text_widths(("words", "tower"))[1] == text_widths(("tower",))[1] > 0
    with pytest.raises(UserError, match=r"text_encoders=\('words',\): none gives a pooled state.*'tower'"):
        text_widths(("words",))


def test_clips_are_known_by_their_shapes_and_encode_nothing() -> None:
    """SD3's pooled state has 2048 channels, and so have its two CLIPs' token states side by side."""
    found = [text_encoder(name) for name in ("clip_l", "clip_g")]
    assert sum(item.width for item in found) == sum(item.pooled_width for item in found) == 2048
    with pytest.raises(UserError, match=r"^text_encoder='clip_l': its states come with pre-encoded data"):
        encode_all(found[0], ["a red circle"])
