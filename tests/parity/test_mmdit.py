"""The MMDiT and its checkpoints beside diffusers, live."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deterministic import relative_error
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from diffusers.models.embeddings import PatchEmbed
from mmdit_cases import CASES, gradient_errors, ours
from safetensors.torch import load_file, save_file

from mmdit_jax.models import MMDiTConfig, load_sd3
from mmdit_jax.models.sd3 import convert, open_checkpoint
from mmdit_jax.models.sd3.table import whole
from parity.mmdit import GOLDEN, golden, model, theirs

RELEASED = {
    "SD3-medium": MMDiTConfig.from_depth(24),
    "SD3.5-medium": MMDiTConfig.from_depth(24, qk_norm=True, dual_attention=13, position_table=384),
    "SD3.5-large": MMDiTConfig.from_depth(38, qk_norm=True),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients(name) -> None:
    case = CASES[name]
    out, gradients = theirs(case, name)
    prediction, mine = ours(case, name, model(case)[1])
    assert relative_error(prediction, out) < 1e-5
    errors = gradient_errors(case, mine, gradients)
    assert max(errors.values()) < 1e-5, max(errors, key=lambda key: errors[key])


def test_golden_is_what_torch_gives_now() -> None:
    fresh = golden()
    with np.load(GOLDEN) as stored:
        assert set(stored.files) == set(fresh)
        for name in stored.files:
            if name.endswith("/shapes"):
                assert str(stored[name]) == str(fresh[name])
            else:
                assert relative_error(stored[name], fresh[name]) < 1e-5, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_stability_file_by_diffusers_own_converter(tmp_path, name, dtype) -> None:
    """What diffusers makes of our Stability file is, bit for bit, the model that ours was made from."""
    network = model(CASES[name])[0].to(dtype)
    network.save_pretrained(tmp_path / "transformer")
    written = convert(tmp_path / "transformer", tmp_path / "s.safetensors", "stability")
    stability = load_file(tmp_path / "s.safetensors")
    assert written.tensors == len(stability) and all(key.startswith("model.diffusion_model.") for key in stability)
    assert written.parameters == network.num_parameters()
    converted = convert_sd3_transformer_checkpoint_to_diffusers(stability)
    state = network.state_dict()
    assert converted.keys() == state.keys()
    for key, tensor in state.items():
        assert converted[key].dtype == dtype
        assert torch.equal(converted[key], tensor), key


@pytest.mark.parametrize("name", CASES)
def test_diffusers_opens_ours_and_we_theirs(tmp_path, name) -> None:
    """Sharded and in float16; both then compute from the same rounded numbers, the position table among them."""
    case = CASES[name]
    network, _ = model(case)
    network.half().save_pretrained(tmp_path / "a", max_shard_size="100KB")
    convert(tmp_path / "a", tmp_path / "tree", "orbax")
    convert(tmp_path / "tree", tmp_path / "b", "diffusers", shard_bytes=50_000)
    reopened = SD3Transformer2DModel.from_pretrained(tmp_path / "b", torch_dtype=torch.float32)
    given = case.inputs(name)
    with torch.no_grad():
        latents = torch.from_numpy(given["latents"]).permute(0, 3, 1, 2)
        context, pooled, t = (torch.from_numpy(given[key]) for key in ("context", "pooled", "t"))
        expected = reopened(latents, context, pooled, 1000 * t).sample.permute(0, 2, 3, 1).numpy()
    arguments = [given[key] for key in ("latents", "t", "context", "pooled")]
    for folder in ("a", "b", "tree"):
        loaded = load_sd3(tmp_path / folder)
        assert loaded.config == case.config()
        assert relative_error(loaded(*arguments), expected) < 1e-5


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_by_their_config(tmp_path, name) -> None:
    """Parameter counts of the real models (nothing allocated), and their position tables in a narrow model."""
    config = RELEASED[name]
    fields = {
        "num_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "caption_projection_dim": config.width,
        "pos_embed_max_size": config.position_table,
        "dual_attention_layers": tuple(range(config.dual_attention)),
        "qk_norm": "rms_norm" if config.qk_norm else None,
    }
    with torch.device("meta"):
        network = SD3Transformer2DModel(**fields)
    assert network.num_parameters() == config.num_params()
    table = PatchEmbed(128, 128, 2, 16, 64, pos_embed_max_size=config.position_table).pos_embed.numpy()
    narrow = MMDiTConfig(depth=1, head_size=64, heads=1, position_table=config.position_table)
    assert np.abs(whole(narrow) - table).max() < 2e-5


def test_unknown_table_is_the_models_all_the_same(tmp_path) -> None:
    """A table that isn't sin-cos is used as it is stored, as diffusers does."""
    name = "SD3.5-large"
    case = CASES[name]
    network, tensors = model(case)
    changed = {key: torch.from_numpy(array) for key, array in tensors.items()}
    changed["pos_embed.pos_embed"] = changed["pos_embed.pos_embed"] * 0.5
    network.load_state_dict(changed)
    save_file({key: tensor.contiguous() for key, tensor in changed.items()}, tmp_path / "x.safetensors")
    convert(tmp_path / "x.safetensors", tmp_path / "tree", "orbax")
    given = case.inputs(name)
    with torch.no_grad():
        latents = torch.from_numpy(given["latents"]).permute(0, 3, 1, 2)
        context, pooled, t = (torch.from_numpy(given[key]) for key in ("context", "pooled", "t"))
        expected = network(latents, context, pooled, 1000 * t).sample.permute(0, 2, 3, 1).numpy()
    for path in ("x.safetensors", "tree"):
        assert not open_checkpoint(tmp_path / path).computed
        loaded = load_sd3(tmp_path / path)
        out = loaded(*(given[key] for key in ("latents", "t", "context", "pooled")))
        assert relative_error(out, expected) < 1e-5
