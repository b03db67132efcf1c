"""The autoencoder beside diffusers' AutoencoderKL."""

from __future__ import annotations

import json
from pathlib import Path

import autoencoder_cases as cases
import numpy as np
import pytest
import safetensors.numpy
import torch
from deterministic import relative_error, values
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from mmdit_jax.models.autoencoder import AutoencoderConfig, KLAutoencoder, load_autoencoder, save_autoencoder
from mmdit_jax.models.autoencoder.names import shapes
from parity import autoencoder as theirs

BOUND = 1e-5


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_outputs(name: str) -> None:
    ours, expected = cases.outputs(name), theirs.outputs(name)
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert relative_error(ours[key], value) < BOUND, key


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_gradients(name: str) -> None:
    ours, expected = cases.gradients(name), theirs.gradients(name)
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        if key.endswith("to_k.bias"):  # zero but for rounding: a softmax doesn't see what all keys share
            size = np.linalg.norm(expected[key.replace("to_k", "to_q")])
            assert max(np.linalg.norm(ours[key]), np.linalg.norm(value)) < BOUND * size
        else:
            assert relative_error(ours[key], value) < BOUND, key


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_golden_is_what_torch_gives_now(name: str) -> None:
    now = theirs.golden(name)
    with np.load(cases.golden(name)) as stored:
        assert set(stored) == now.keys()
        for key, value in now.items():
            if not key.endswith("to_k.bias"):
                assert relative_error(value, stored[key]) < BOUND, key


def test_parameters_at_sd3s_shape() -> None:
    config = AutoencoderConfig()
    with torch.device("meta"):
        made = AutoencoderKL(**{k: v for k, v in config.to_diffusers().items() if not k.startswith("_")})
    assert shapes(config) == {name: tuple(tensor.shape) for name, tensor in made.named_parameters()}
    assert sum(tensor.numel() for tensor in made.parameters()) == 83_819_683


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_stability_names(name: str, tmp_path: Path) -> None:
    config = AutoencoderConfig(
        channels=16, widths=(32, 64, 96), quant_conv=name == "sd1", post_quant_conv=name == "sd1"
    )
    stability = {f"first_stage_model.{key}": value for key, value in cases.stability_tensors(config).items()}
    others = {"model.diffusion_model.x_embedder.proj.bias": values("other", (3,))}
    safetensors.numpy.save_file({**stability, **others}, tmp_path / "whole.safetensors")
    ours = load_autoencoder(tmp_path / "whole.safetensors", shift=config.shift, scale=config.scale)
    converted = convert_ldm_vae_checkpoint(
        {key: torch.from_numpy(value) for key, value in stability.items()}, config.to_diffusers()
    )
    found = ours.tensors()
    assert found.keys() == converted.keys()
    for key, value in converted.items():
        np.testing.assert_array_equal(found[key], value.numpy())
    assert (ours.config.widths, ours.config.layers, ours.channels) == (config.widths, 2, 16)


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_diffusers_reads_what_we_write(name: str, tmp_path: Path) -> None:
    ours = KLAutoencoder.from_tensors(cases.CONFIGS[name], cases.tensors(name))
    save_autoencoder(tmp_path, ours)
    read = AutoencoderKL.from_pretrained(tmp_path)
    assert (read.config.shift_factor or 0.0, read.config.scaling_factor) == (ours.shift, ours.scale)
    latents = cases.inputs(name)["z"]
    with torch.no_grad():
        decoded = read.decode(theirs.nchw(latents) / read.config.scaling_factor + read.config.shift_factor).sample
    assert relative_error(ours.decode_float(latents), theirs.nhwc(decoded)) < BOUND


@pytest.mark.parametrize("how", ["whole", "shards", "fp16", "fp16 shards"])
def test_reads_what_diffusers_writes(how: str, tmp_path: Path) -> None:
    made = theirs.model(cases.CONFIGS["sd3"], cases.tensors("sd3"))
    options = {"variant": "fp16"} if "fp16" in how else {}
    size = "30KB" if "shards" in how else "1GB"
    (made.half() if options else made).save_pretrained(tmp_path / "vae", max_shard_size=size, **options)
    assert (len(list((tmp_path / "vae").glob("*.safetensors"))) > 1) == ("shards" in how)
    read = load_autoencoder(tmp_path)  # a pipeline's folder: the autoencoder is in vae/
    assert read.config == cases.CONFIGS["sd3"]
    assert read.folder == str(tmp_path / "vae")
    for key, value in read.tensors().items():
        np.testing.assert_array_equal(value, made.state_dict()[key].float().numpy())


def test_config_defaults_are_diffusers(tmp_path: Path) -> None:
    AutoencoderKL(norm_num_groups=8, down_block_types=("DownEncoderBlock2D",)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    sparse = {"norm_num_groups": 8, "_class_name": "AutoencoderKL"}
    assert AutoencoderConfig.from_diffusers(sparse) == AutoencoderConfig.from_diffusers(written)
