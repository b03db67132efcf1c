"""Text encoders on disk: shards, variants, Stability's files, and what is said about bad ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from deterministic import relative_error, values
from tiny_encoders import FOLDERS, config, encoder_weights, write_encoder, write_encoders

from mmdit_jax.errors import UserError
from mmdit_jax.models.text import load_text_encoder
from mmdit_jax.models.text.places import STEMS, find_encoder

CAPTIONS = ["a photo of a red circle", "two dogs!", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD3 repository with tiny encoders; tests that change it change a copy."""
    return write_encoders(tmp_path_factory.mktemp("sd3"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(dict(arrays), path)
    return path


@pytest.mark.parametrize("name", FOLDERS)
def test_shards_variants_and_prefixes_are_the_same_encoder(name: str, folder: Path, copy: Path) -> None:
    expected = load_text_encoder(name, folder, rows=3)
    states = expected.encode(CAPTIONS)
    place = copy / FOLDERS[name][0]
    arrays = safetensors.numpy.load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()

    def same(tolerance: float = 0.0) -> bool:
        encoder = load_text_encoder(name, place, rows=3)
        assert all(
            relative_error(*pair) <= tolerance
            for pair in zip(encoder.encode(CAPTIONS), states, strict=True)
            if pair[0].size
        )
        return encoder.fingerprint == expected.fingerprint

    names = sorted(arrays)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        _save(place / file, {tensor: arrays[tensor] for tensor in part})
    index = {"weight_map": {tensor: file for file, part in parts.items() for tensor in part}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same()

    (place / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"shards missing: model-00002-of-00002.safetensors$"):
        load_text_encoder(name, place)
    (place / "model-00001-of-00002.safetensors").unlink()

    # Who fetches one variant has the other's index too.
    halves = {file.replace("model", "model.fp16"): part for file, part in parts.items()}
    for file, part in halves.items():
        _save(place / file, {tensor: arrays[tensor].astype(np.float16) for tensor in part})
    index = {"weight_map": {tensor: file for file, part in halves.items() for tensor in part}}
    (place / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    assert not same(3e-3)
    for file in halves:
        (place / file).unlink()
    with pytest.raises(UserError, match=r"shards missing: model-00001-of-00002.safetensors, model-00002"):
        load_text_encoder(name, place)
    for file in place.glob("*.index*"):
        file.unlink()

    for suffix, dtype, tolerance in ((".bf16", ml_dtypes.bfloat16, 3e-2), (".fp16", np.float16, 3e-3)):
        variant = _save(place / f"model{suffix}.safetensors", {tensor: a.astype(dtype) for tensor, a in arrays.items()})
        assert not same(tolerance)
        variant.unlink()

    # A whole model has more than its text encoder: names as in OpenAI's CLIP and Google's T5 v1.1.
    extra: dict[str, np.ndarray] = {
        "decoder.final_layer_norm.weight": np.zeros(3, np.float32),
        "lm_head.weight": np.zeros((2, 3), np.float32),
        "encoder.embed_tokens.weight": arrays["shared.weight"],
    } if name == "t5" else {
        "text_model.embeddings.position_ids": np.arange(77)[None],
        "vision_model.post_layernorm.weight": np.zeros(3, np.float32),
        "logit_scale": np.zeros((), np.float32),
    }  # fmt: skip
    _save(place / "model.safetensors", {**arrays, **extra})
    assert same()


@pytest.mark.parametrize("name", FOLDERS)
def test_files_of_stabilitys(name: str, folder: Path, tmp_path: Path) -> None:
    """One file without config.json: shapes tell it all, where heads are 64 wide."""
    told: dict[str, Any] = (
        {**config(name), "d_model": 72}
        if name == "t5"
        else {**config(name), "hidden_size": 128, "num_attention_heads": 2, "projection_dim": 128}
    )
    arrays = encoder_weights(name, told)
    write_encoder(tmp_path / "folder", arrays, told)
    tokenizer = folder / FOLDERS[name][1]
    projected = None if name == "t5" else name == "clip_g"
    expected = load_text_encoder(name, tmp_path / "folder", tokenizer=tokenizer, projected=projected, rows=3)
    states = expected.encode(CAPTIONS)

    single = _save(tmp_path / "repository" / "text_encoders" / "single.safetensors", arrays)
    shutil.copytree(tokenizer, tmp_path / "repository" / tokenizer.name)
    bundle = {"t5": "text_encoders.t5xxl.transformer."}.get(name, f"text_encoders.{name}.transformer.")
    everything = {f"{bundle}{tensor}": array for tensor, array in arrays.items()}
    everything["model.diffusion_model.pos_embed"] = np.zeros((1, 4, 8), np.float32)
    whole = _save(tmp_path / "repository" / "sd3.safetensors", everything)
    for file in (single, whole):
        encoder = load_text_encoder(name, file, rows=3)
        assert encoder.config == expected.config
        for found, wanted in zip(encoder.encode(CAPTIONS), states, strict=True):
            np.testing.assert_array_equal(found, wanted)

    repository = tmp_path / "repository"
    assert find_encoder(name, whole) == whole and find_encoder(name, single) is None
    with pytest.raises(UserError, match=rf"sd3.safetensors: no \w+ in it; it includes {name}$"):
        load_text_encoder({"t5": "clip_g"}.get(name, "t5"), whole)
    assert find_encoder(name, repository) is None
    eighth = single.rename(single.with_name(f"{STEMS[name]}_fp8_e4m3fn.safetensors"))
    assert find_encoder(name, repository) == find_encoder(name, single.parent) == eighth
    half = Path(shutil.copy(eighth, single.with_name(f"{STEMS[name]}_fp16.safetensors")))
    assert find_encoder(name, repository) == half
    np.testing.assert_array_equal(load_text_encoder(name, repository, rows=3).encode(CAPTIONS).tokens, states.tokens)

    if name != "t5":  # 3 heads of 8 channels can't be told from the shapes
        narrow = _save(tmp_path / "narrow.safetensors", encoder_weights(name, config(name)))
        with pytest.raises(UserError, match=r"no heads of 64; expected a folder with config.json"):
            load_text_encoder(name, narrow, tokenizer=tokenizer)


def _without(key: str) -> dict[str, np.ndarray]:
    arrays = encoder_weights("clip_l", config("clip_l"))
    del arrays[key]
    return arrays


BIAS = "text_model.encoder.layers.1.mlp.fc1.bias"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (_without(BIAS), r"text_encoder=.*: encoder\.layers\.1\.mlp\.fc1\.bias is missing$"),
        (
            {**_without(BIAS), BIAS: values("b", (7,)), "text_model.extra.weight": values("x", (3,))},
            r"extra\.weight is unknown; encoder\.layers\.1\.mlp\.fc1\.bias \[7\] \(expected \[96\]\)$",
        ),
        ({"a": values("a", (2,))}, r"embeddings\.token_embedding\.weight is missing; .*; and \d+ more$"),
    ],
)
def test_wrong_tensors_are_named(arrays: dict[str, np.ndarray], message: str, copy: Path) -> None:
    write_encoder(copy / "text_encoder", arrays, config("clip_l"))
    with pytest.raises(UserError, match=message):
        load_text_encoder("clip_l", copy, projected=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "clip-l"}, r"^text_encoder='clip-l': unknown; did you mean 'clip_l'\?"),
        ({"dtype": "float16"}, r"^dtype='float16': unknown; did you mean .*\(one of: bfloat16, float32\)$"),
        ({"length": 78}, r"^length=78: expected 2 to 77 tokens$"),
        ({"name": "t5", "length": 1}, r"^length=1: expected 2 or more tokens$"),
        ({"rows": 0}, r"^rows=0: expected 1 or more$"),
        (
            {"name": "t5", "tokenizer": "tokenizer"},
            r"^tokenizer='.*': expected tokenizer.json or spiece.model",
        ),
        ({"folder": "nowhere"}, r"nowhere: no such folder; expected config.json"),
        ({"folder": "tokenizer"}, r"tokenizer: config.json is missing; expected a Hugging Face folder$"),
        ({"folder": "text_encoder_3"}, r"model_type='t5' in config.json; clip_l needs 'clip_text_model' or 'clip'$"),
        ({"name": "t5", "folder": "text_encoder"}, r"model_type='clip_text_model' in config.json; t5 needs 't5'$"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, folder: Path) -> None:
    told = {"name": "clip_l", "folder": "", **arguments}
    told = {key: folder / value if key in ("folder", "tokenizer") else value for key, value in told.items()}
    with pytest.raises(UserError, match=message) as error:
        load_text_encoder(**told)
    assert "\n" not in str(error.value)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _bin(file: Path) -> None:
    file.rename(file.with_name("pytorch_model.bin"))


def _config(**changes: Any) -> Any:
    return lambda file: file.with_name("config.json").write_text(json.dumps({**config("t5"), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"model.safetensors: cut short \(.* bytes\); copy it anew$"),
        (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), r"not a safetensors file"),
        (lambda file: file.write_bytes(b""), r"not a safetensors file, or damaged"),
        (lambda file: file.write_bytes((4).to_bytes(8, "little") + b"nope"), r"not a safetensors file, or damaged"),
        (_bin, r"pytorch_model.bin is not read, only safetensors; convert it .*save_pretrained"),
        (Path.unlink, r"expected model.safetensors or model.safetensors.index.json in it$"),
        (lambda file: file.with_name("config.json").write_text("{"), r"config.json: not a JSON object"),
        (_config(feed_forward_proj="relu"), r"feed_forward_proj='relu'; expected 'gated-gelu', as T5 v1.1 has$"),
        (_config(num_heads=None), r"config.json: num_heads=None; expected a whole number$"),
        (_config(num_layers=4), r"encoder\.block\.3\.layer\.0\.SelfAttention\.q\.weight is missing"),
        (_config(vocab_size=50), r"its tokenizer has a token \d+, its vocab_size is 50; expected the tokenizer of the"),
        (
            lambda file: shutil.rmtree(file.parents[1] / "tokenizer_3"),
            r"no tokenizer \(tokenizer.json or spiece",
        ),
        (
            lambda file: (file.parents[1] / "tokenizer_3" / "tokenizer.json").write_text("{}"),
            r"tokenizer_3': not readable by transformers",
        ),
    ],
)
def test_damaged_folders(damage: Any, message: str, copy: Path) -> None:
    damage(copy / "text_encoder_3" / "model.safetensors")
    with pytest.raises(UserError, match=message) as error:
        load_text_encoder("t5", copy)
    assert "\n" not in str(error.value)
