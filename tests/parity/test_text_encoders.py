"""Our CLIP and T5 beside transformers', and SD3's conditioning beside diffusers' pipeline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deterministic import relative_error
from diffusers import StableDiffusion3Pipeline
from text_cases import CASES, ours
from tiny_encoders import FOLDERS, config, write_encoders
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from transformers.models.t5.modeling_t5 import T5Attention

from mmdit_jax.models.text import clip, load_text_encoder, t5
from mmdit_jax.models.text.folder import expand
from parity.text_encoders import GOLDEN, golden, theirs

torch.set_num_threads(1)

CAPTIONS = ["a photo of a red circle", "Two dogs, and 42 ünïcode cats!", "", "a very long caption " * 40]


@pytest.mark.parametrize("name", CASES)
def test_all_states_equal_transformers(name: str) -> None:
    expected, found = theirs(CASES[name]), ours(CASES[name])
    for key, states in expected.items():
        assert relative_error(found[key], states) < 1e-5, key
    for layer, states in enumerate(expected["hidden"]):
        assert relative_error(found["hidden"][layer], states) < 1e-5, layer


def test_the_golden_is_what_transformers_gives_now() -> None:
    now = golden()
    with np.load(GOLDEN) as stored:
        assert set(stored.files) == set(now)
        for name, array in now.items():
            assert relative_error(stored[name], array) < 1e-5, name


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (20, 50), (64, 256), (8, 16)])
def test_relative_buckets_equal_those_of_transformers(buckets: int, distance: int) -> None:
    tokens = 600
    relative = torch.arange(tokens)[None, :] - torch.arange(tokens)[:, None]
    expected = T5Attention._relative_position_bucket(relative, True, buckets, distance)
    np.testing.assert_array_equal(t5.relative_buckets(tokens, buckets, distance), expected.numpy())


CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}


@pytest.mark.parametrize(
    ("told", "projection", "count"),
    [
        ({**CLIP_L, "vocab_size": 49408}, None, 123_060_480),
        ({**CLIP_L, "vocab_size": 49408}, 768, 123_650_304),
        ({**CLIP_G, "vocab_size": 49408, "hidden_act": "gelu"}, 1280, 694_659_840),
        ({**T5_XXL, "feed_forward_proj": "gated-gelu"}, None, 4_762_310_656),
    ],
)
def test_tensors_at_full_size_are_those_of_transformers(
    told: dict[str, Any], projection: int | None, count: int
) -> None:
    """Names and shapes of every tensor, of models that are made without memory."""
    with torch.device("meta"):
        if "d_model" in told:
            model: torch.nn.Module = T5EncoderModel(T5Config(**told))
            shapes = t5.from_json(told, "").shapes()
        else:
            cls = CLIPTextModel if projection is None else CLIPTextModelWithProjection
            model = cls(CLIPTextConfig(**told, projection_dim=projection or 512))
            shapes = clip.from_json(told, "", projection).shapes()
    expected = {name.removeprefix("text_model."): tuple(t.shape) for name, t in model.state_dict().items()}
    expected.pop("encoder.embed_tokens.weight", None)  # T5's, tied to "shared"
    found = dict(expand(shapes))
    assert found == expected
    assert sum(math.prod(shape) for shape in found.values()) == count == sum(p.numel() for p in model.parameters())


def tiny_pipeline(folder: Path, *, with_t5: bool = True) -> StableDiffusion3Pipeline:
    """diffusers' SD3 pipeline with the encoders of a folder, read by transformers."""
    encoders = {
        "text_encoder": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        "text_encoder_3": T5EncoderModel.from_pretrained(folder / "text_encoder_3") if with_t5 else None,
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "tokenizer_2": CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        "tokenizer_3": T5TokenizerFast.from_pretrained(folder / "tokenizer_3"),
    }
    transformer = torch.nn.Module()  # only its configuration is asked: how wide the context is, without T5
    transformer.config = type("Config", (), {"joint_attention_dim": 72, "sample_size": 8, "patch_size": 2})()
    return StableDiffusion3Pipeline(transformer=transformer, scheduler=None, vae=None, **encoders)


def assembled(folder: Path, length: int, *, with_t5: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """SD3's context [N, 77 + length, 72] and pooled [N, 64] from our encoders."""
    (left, left_pooled), (right, right_pooled) = (
        load_text_encoder(name, folder, rows=4).encode(CAPTIONS) for name in ("clip_l", "clip_g")
    )
    clips = np.concatenate([left, right], axis=-1)
    wide = np.zeros((len(CAPTIONS), length, 72), np.float32)
    if with_t5:
        wide = load_text_encoder("t5", folder, length=length, rows=2).encode(CAPTIONS).tokens
    clips = np.pad(clips, ((0, 0), (0, 0), (0, wide.shape[-1] - clips.shape[-1])))
    return np.concatenate([clips, wide], axis=1), np.concatenate([left_pooled, right_pooled], axis=-1)


@pytest.mark.parametrize(("length", "with_t5"), [(77, True), (256, True), (256, False)])
def test_sd3s_conditioning_equals_diffusers(tmp_path: Path, length: int, with_t5: bool) -> None:
    write_encoders(tmp_path)
    with torch.no_grad():
        context, _, pooled, _ = tiny_pipeline(tmp_path, with_t5=with_t5).encode_prompt(
            CAPTIONS, None, None, do_classifier_free_guidance=False, max_sequence_length=length, device="cpu"
        )
    our_context, our_pooled = assembled(tmp_path, length, with_t5=with_t5)
    assert our_context.shape == (4, 77 + length, 72) and our_pooled.shape == (4, 64)
    assert relative_error(our_pooled, pooled.numpy()) < 1e-5
    for part in (slice(0, 77), slice(77, None)):
        assert relative_error(our_context[:, part], context[:, part].numpy()) < 1e-5
    assert with_t5 == bool(our_context[:, 77:].any())


@pytest.mark.parametrize("name", FOLDERS)
def test_what_transformers_saves_is_read(name: str, tmp_path: Path) -> None:
    """A folder that transformers wrote itself, in shards: same states as from the one that `tiny_encoders` wrote."""
    folder, tokenizer = (write_encoders(tmp_path / "one", [name]) / part for part in FOLDERS[name])
    cls = T5EncoderModel if name == "t5" else CLIPTextModelWithProjection
    cls.from_pretrained(folder).save_pretrained(tmp_path / "saved", max_shard_size="50KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    told = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert told["vocab_size"] == config(name)["vocab_size"]
    expected, found = (
        load_text_encoder(name, where, tokenizer=tokenizer, rows=2) for where in (folder, tmp_path / "saved")
    )
    for ours_, theirs_ in zip(found.encode(CAPTIONS), expected.encode(CAPTIONS), strict=True):
        np.testing.assert_array_equal(ours_, theirs_)


def test_a_clip_without_projection_as_transformers_saves_it(tmp_path: Path) -> None:
    source = write_encoders(tmp_path, ["clip_l"])
    model = CLIPTextModel.from_pretrained(source / "text_encoder").eval()
    model.save_pretrained(tmp_path / "plain")
    encoder = load_text_encoder("clip_l", tmp_path / "plain", tokenizer=source / "tokenizer")
    ids = CLIPTokenizer.from_pretrained(source / "tokenizer")(
        CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = model(ids).pooler_output.numpy()
    assert relative_error(encoder.encode(CAPTIONS).pooled, expected) < 1e-5
