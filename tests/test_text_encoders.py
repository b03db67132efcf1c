"""SD3's text encoders: parity by golden, and what the interface promises."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from deterministic import relative_error, sketch
from text_cases import CASES, CLIP, T5, ours
from tiny_encoders import FOLDERS, clip_vocabulary, config, encoder_weights, write_encoder, write_encoders

from mmdit_jax.errors import UserError
from mmdit_jax.models.text import TextEncoder, clip, load_text_encoder, t5, text_encoder

GOLDEN = Path(__file__).parent / "goldens" / "text_encoders.npz"
CAPTIONS = ["a photo of a red circle", "two dogs!", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD3 repository with tiny encoders; tests that change it change a copy."""
    return write_encoders(tmp_path_factory.mktemp("sd3"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("name", CASES)
def test_states_equal_transformers(name: str) -> None:
    """What transformers gave for the same weights: `tests/parity/text_encoders.py` wrote it down."""
    found = ours(CASES[name])
    with np.load(GOLDEN) as stored:
        keys = [key for key in stored.files if key.startswith(f"{name}/")]
        assert len(keys) == (2 if CASES[name].is_t5 else 4)
        for key in keys:
            array = found[key.removeprefix(f"{name}/")]
            if key.endswith("/hidden"):
                array = np.stack([sketch("hidden", layer) for layer in array])
            assert relative_error(array, stored[key]) < 1e-5, key


@pytest.mark.parametrize("name", ["clip_l", "clip_g", "t5_77"])
def test_bfloat16_is_near_float32(name: str) -> None:
    exact, rounded = ours(CASES[name]), ours(CASES[name], "bfloat16")
    key = "last" if CASES[name].is_t5 else "penultimate"
    assert 1e-4 < relative_error(rounded[key], exact[key]) < 5e-2
    assert rounded[key].dtype == np.float32


def test_full_size_by_shapes_alone() -> None:
    """Parameters of the released models, as transformers counts them (`make parity` asks it)."""
    left = clip.CLIPConfig(49408, 77, 768, 3072, 12, 12, "quick_gelu", 1e-5, 2, None)
    right = clip.CLIPConfig(49408, 77, 1280, 5120, 32, 20, "gelu", 1e-5, 2, 1280)
    wide = t5.T5Config(32128, 4096, 10240, 24, 64, 64, 32, 128, 1e-6)
    counts = [sum(math.prod(shape) for shape in model.shapes().values()) for model in (left, right, wide)]
    assert counts == [123_060_480, 694_659_840, 4_762_310_656]
    for model, encode, name in ((left, clip.encode, "clip_l"), (right, clip.encode, "clip_g"), (wide, t5.encode, "t5")):
        weights = {key: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for key, shape in model.shapes().items()}
        ids = jax.ShapeDtypeStruct((3, 77), jnp.int32)
        states = jax.eval_shape(lambda w, i, m=model, e=encode: e(w, i, m), weights, ids)  # type: ignore[misc]
        known = text_encoder(name)
        tokens = states.last if name == "t5" else states.penultimate
        assert tokens.shape == (3, known.length, known.width)
        assert known.pooled_width == (0 if name == "t5" else states.pooled.shape[1])


def test_clip_looks_back_only_and_t5_everywhere() -> None:
    case = CASES["clip_l"]
    before, changed = ours(case)["last"], case.ids().copy()
    found = clip.from_json(case.config, "", 24)
    weights = {name: jnp.asarray(array) for name, array in _stacked(case.weights(), found.shapes()).items()}
    changed[:, 40] = 7
    after = np.asarray(CLIP(weights, jnp.asarray(changed), found).last)
    np.testing.assert_allclose(after[:, :40], before[:, :40], atol=1e-5)
    assert np.abs(after[1, 41:] - before[1, 41:]).max() > 1e-3

    case = CASES["t5_77"]
    before, changed = ours(case)["last"], case.ids().copy()
    wide = t5.from_json(case.config, "")
    weights = {name: jnp.asarray(array) for name, array in _stacked(case.weights(), wide.shapes()).items()}
    assert changed[0, 60] == 0  # padding, which is attended to
    changed[0, 60] = 7
    after = np.asarray(T5(weights, jnp.asarray(changed), wide).last)
    assert np.abs(after[0, :10] - before[0, :10]).max() > 1e-3


def _stacked(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    plain = {name.removeprefix("text_model."): array for name, array in tensors.items()}
    return {
        name: np.stack([plain[name.replace("*", str(i))] for i in range(shape[0])]) if "*" in name else plain[name]
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("name", FOLDERS)
def test_an_encoder_is_what_the_interface_promises(name: str, folder: Path) -> None:
    encoder = load_text_encoder(name, folder / FOLDERS[name][0], rows=2)
    promised: TextEncoder = encoder
    states = encoder.encode(CAPTIONS)
    told = config(name)
    assert encoder.name == name and encoder.length == 77 and encoder.folder == str(folder / FOLDERS[name][0])
    assert encoder.width == told["d_model" if name == "t5" else "hidden_size"]
    assert encoder.pooled_width == (0 if name == "t5" else told["projection_dim"])
    assert states.tokens.shape == (3, 77, encoder.width) and states.pooled.shape == (3, encoder.pooled_width)
    assert states.tokens.dtype == states.pooled.dtype == np.float32
    assert len(promised.fingerprint) == 16
    assert len({states.tokens[row].tobytes() for row in range(3)}) == 3

    # A row's bits don't depend on its neighbours, and hardly on how many are encoded at once.
    alone = encoder.encode(CAPTIONS[1:2])
    np.testing.assert_array_equal(alone.tokens[0], states.tokens[1])
    np.testing.assert_array_equal(alone.pooled[0], states.pooled[1])
    together = load_text_encoder(name, folder, rows=5).encode(CAPTIONS)
    assert relative_error(together.tokens, states.tokens) < 1e-5
    empty = encoder.encode([])
    assert empty.tokens.shape == (0, 77, encoder.width) and empty.pooled.shape == (0, encoder.pooled_width)


def test_captions_are_cut_before_the_end_token_and_padded_as_sd3_does(folder: Path) -> None:
    vocabulary, _ = clip_vocabulary()
    start, end, word = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"], vocabulary["red</w>"]
    ids = {}
    for name in FOLDERS:
        encoder = load_text_encoder(name, folder, length=6)
        ids[name] = encoder._tokenizer.ids(["red", "red " * 9], 6).tolist()
    assert ids["clip_l"] == [[start, word, end, end, end, end], [start, word, word, word, word, end]]
    assert ids["clip_g"] == [[start, word, end, 0, 0, 0], [start, word, word, word, word, end]]
    red = ids["t5"][0][0]
    assert red > 2 and ids["t5"] == [[red, 1, 0, 0, 0, 0], [red, red, red, red, red, 1]]


def test_the_projection_of_the_pooled_state(folder: Path, copy: Path) -> None:
    """SD3's CLIP-L is pooled unprojected; its repository says the same by a projection that is the identity."""
    raw = load_text_encoder("clip_l", folder, projected=False).encode(CAPTIONS)
    followed = load_text_encoder("clip_l", folder).encode(CAPTIONS)
    matrix = encoder_weights("clip_l", config("clip_l"))["text_projection.weight"]
    np.testing.assert_allclose(followed.pooled, raw.pooled @ matrix.T, atol=1e-5)
    np.testing.assert_array_equal(followed.tokens, raw.tokens)

    place = copy / "text_encoder"
    arrays = safetensors.numpy.load_file(place / "model.safetensors")
    write_encoder(place, {**arrays, "text_projection.weight": np.eye(24, dtype=np.float32)}, config("clip_l"))
    np.testing.assert_allclose(load_text_encoder("clip_l", copy).encode(CAPTIONS).pooled, raw.pooled, atol=1e-6)

    # A whole CLIP: its projection belongs to the contrastive loss, and its text_config may have a wrong size of it.
    told = {"model_type": "clip", "projection_dim": 24, "text_config": {**config("clip_l"), "projection_dim": 512}}
    write_encoder(place, arrays, told)
    np.testing.assert_array_equal(load_text_encoder("clip_l", copy).encode(CAPTIONS).pooled, raw.pooled)
    found = load_text_encoder("clip_l", copy, projected=True).encode(CAPTIONS)
    np.testing.assert_array_equal(found.pooled, followed.pooled)

    # CLIP-G is pooled through its projection, or on demand without.
    del arrays["text_projection.weight"]
    write_encoder(place, arrays, {**config("clip_l"), "architectures": ["CLIPTextModel"]})
    np.testing.assert_array_equal(load_text_encoder("clip_l", copy).encode(CAPTIONS).pooled, raw.pooled)
    with pytest.raises(UserError, match=r"text_projection.weight is missing.*or projected=False"):
        load_text_encoder("clip_g", place, tokenizer=folder / "tokenizer_2")
    assert load_text_encoder("clip_g", place, tokenizer=folder / "tokenizer_2", projected=False).pooled_width == 24


def test_fingerprints_tell_encoders_apart(folder: Path, copy: Path) -> None:
    place = copy / "text_encoder"
    fingerprint = load_text_encoder("clip_l", folder).fingerprint
    assert load_text_encoder("clip_l", place).fingerprint == fingerprint and len(fingerprint) == 16
    others = [
        load_text_encoder("clip_l", folder, length=20).fingerprint,
        load_text_encoder("clip_l", folder, dtype="bfloat16").fingerprint,
        load_text_encoder("clip_l", folder, projected=False).fingerprint,
        load_text_encoder("clip_l", folder, tokenizer=folder / "tokenizer_2").fingerprint,
    ]
    arrays = safetensors.numpy.load_file(place / "model.safetensors")
    arrays["text_model.encoder.layers.2.mlp.fc2.bias"][5] += 1e-6
    write_encoder(place, arrays, config("clip_l"))
    others.append(load_text_encoder("clip_l", place).fingerprint)
    assert len({fingerprint, *others}) == 6


def test_suspicious_tokenizers_are_told(folder: Path, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for name in FOLDERS:
        load_text_encoder(name, folder)
    assert not caplog.messages
    load_text_encoder("clip_g", folder, tokenizer=folder / "tokenizer")
    end = clip_vocabulary()[0]["<|endoftext|>"]
    assert caplog.messages == [f"clip_g: its tokenizer pads with token {end}; SD3 was trained with 0"]
    caplog.clear()
    (copy / "text_encoder" / "config.json").write_text(json.dumps({**config("clip_l"), "eos_token_id": 49407}))
    load_text_encoder("clip_l", copy)
    assert "eos_token_id=49407" in caplog.text and f"ends captions with {end}" in caplog.text
