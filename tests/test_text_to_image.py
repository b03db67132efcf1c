"""Prompt to image against diffusers' pipeline, by its golden trajectories; and the command that does it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import Mmdit
from deterministic import relative_error, weights
from PIL import Image
from tiny_encoders import FOLDERS, encoder_weights, write_clip_tokenizer
from tiny_encoders import config as encoder_config
from tiny_pipeline import CASES, MODEL, NEGATIVE, PROMPT, noise, write_pipeline

from launch.cli import main
from mmdit_jax.diffusion import SamplerConfig, formulation
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.text_to_image import (
    condition,
    encode_prompts,
    expected_shapes,
    latent_sides,
    sample_latents,
    take,
)
from mmdit_jax.models import MMDiTConfig
from mmdit_jax.models.autoencoder import AutoencoderConfig, load_autoencoder
from mmdit_jax.models.autoencoder.names import shapes as autoencoder_shapes
from mmdit_jax.models.sd3 import load_sd3, table
from mmdit_jax.models.sd3.names import entries
from mmdit_jax.models.text import TextShape, shapes_of
from mmdit_jax.models.text.pretrained import load_text_encoder

GOLDEN = Path(__file__).parent / "goldens" / "pipeline.npz"
TOLERANCE = 1e-4


def check(folder: Path, case: str, latents: np.ndarray, image: np.ndarray, shift_applied: str = "twice") -> None:
    """Our latents are those of ``latents`` [steps, h, w, C] after every step, our image is ``image``, uint8."""
    told = CASES[case]
    lengths = {"clip_l": None, "clip_g": None, **({"t5": told["t5_length"]} if told["t5"] else {})}
    load = {name: functools.partial(load_text_encoder, name, folder, length=n) for name, n in lengths.items()}
    states = encode_prompts(load, [PROMPT, NEGATIVE])
    model = load_sd3(folder)
    both = condition(states, expected_shapes(model.config, shapes_of(states), told["t5_length"]), 2)
    sampler = SamplerConfig(told["steps"], told["guidance"], shift=3.0, shift_applied=shift_applied)
    sides = take(both, [0]), take(both, [1])
    for step, theirs in enumerate(latents, start=1):
        ours = sample_latents(model, formulation("rf"), *sides, sampler, jnp.asarray(noise(case)), evaluations=step)
        assert relative_error(np.asarray(ours[0]), theirs) < TOLERANCE, step
    drawn = load_autoencoder(folder).decode(np.asarray(ours))[0]
    assert np.abs(drawn.astype(int) - image.astype(int)).max() <= 1


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline's folder."""
    return write_pipeline(tmp_path_factory.mktemp("pipeline") / "sd3")


@pytest.mark.parametrize("case", CASES)
def test_trajectories_are_diffusers(case: str, pipeline: Path) -> None:
    with np.load(GOLDEN) as golden:
        check(pipeline, case, golden[f"{case}/latents"], golden[f"{case}/image"])


def test_without_the_parity_switch_trajectories_differ(pipeline: Path) -> None:
    with np.load(GOLDEN) as golden, pytest.raises(AssertionError):
        told, image = golden["plain-256/latents"], golden["plain-256/image"]
        check(pipeline, "plain-256", told, image, shift_applied="once")


def test_a_missing_encoder_has_its_channels_filled_with_zeros() -> None:
    """Shapes of what is missing follow from the model and the others; what does not fit is told."""
    clips = {"clip_l": TextShape(77, 24, 24), "clip_g": TextShape(77, 40, 40)}
    full = {**clips, "t5": TextShape(77, MODEL.context_dim, 0)}
    assert expected_shapes(MODEL, full, 77) == full
    assert expected_shapes(MODEL, clips, 256)["t5"] == (256, MODEL.context_dim, 0)
    assert expected_shapes(MODEL, {"clip_g": clips["clip_g"]}, 77) == full
    with pytest.raises(UserError, match="the checkpoint expects 72 and 64"):
        expected_shapes(MODEL, {"clip_l": TextShape(77, 99, 64), "clip_g": TextShape(77, 40, 40)}, 77)


def test_encoders_are_let_go(pipeline: Path) -> None:
    """What is left of them is on the host: the next network has the device's memory to itself."""
    before = {id(array) for array in jax.live_arrays()}
    load = {name: functools.partial(load_text_encoder, name, pipeline) for name in FOLDERS}
    states = encode_prompts(load, [PROMPT, NEGATIVE])
    both = condition(states, expected_shapes(MODEL, shapes_of(states), 77), 2)
    assert {type(array) for array in (*both, *(a for pair in states.values() for a in pair))} == {np.ndarray}
    assert [array.shape for array in jax.live_arrays() if id(array) not in before and array.size > 100] == []


def test_options_of_a_checkpoint_are_refused_for_a_run(tiny_study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(tiny_study), "--run", "rf", "a cat", "--height", "512"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("--height: expected --checkpoint with it; a run has its own")


def test_sides() -> None:
    assert latent_sides(MODEL, 128, 64, 8) == (16, 8)
    with pytest.raises(UserError, match="height=100: expected a multiple of 64 up to 384, such as 128"):
        latent_sides(MODEL, 100, 64, 8)
    with pytest.raises(UserError, match="width=1024: expected a multiple of 64 up to 384, such as 384"):
        latent_sides(MODEL, 64, 1024, 8)


@pytest.mark.slow
def test_the_command(pipeline: Path, mmdit: Mmdit) -> None:
    """Images of the sizes asked for, the same whatever the batch; bad input in a line."""
    options = ["sample", "--checkpoint", str(pipeline), "--steps", "3", "--height", "64", "--width", "128"]
    done = mmdit(*options, "a red circle", "two blue squares", "--count", "2", "--out", "one", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [image["prompt"] for image in told["images"]] == ["a red circle"] * 2 + ["two blue squares"] * 2
    assert told["encoders"] == ["clip_l", "clip_g", "t5"] and told["sampler"] == "euler-3-g5-shift3"
    images = [np.asarray(Image.open(mmdit.folder / image["path"])) for image in told["images"]]
    assert all(image.shape == (64, 128, 3) for image in images)
    assert len({image.tobytes() for image in images}) == 4
    done = mmdit(*options, "a red circle", "two blue squares", "--count", "2", "--out", "two", "--batch", "3")
    assert done.returncode == 0, done.stderr
    for path, image in zip(done.stdout.split(), images, strict=True):
        again = np.asarray(Image.open(mmdit.folder / path))
        assert np.abs(again.astype(int) - image.astype(int)).max() <= 1
    done = mmdit(*options, "a red circle", "--drop", "t5", "--out", "three")
    assert done.returncode == 0, done.stderr
    other = np.asarray(Image.open(mmdit.folder / "three" / "00000_00.png"))
    assert np.any(other != images[0])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--height", "100"], "height=100: expected a multiple of 64"),
        (["--drop", "clip"], "drop='clip': unknown; did you mean 'clip_l'"),
        (["--vae", "nowhere"], "vae=nowhere"),
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--steps", "0"], "steps=0"),
        (["--count", "0"], "count=0"),
        (["--batch", "0"], "batch=0"),
        (["--seed", "-1"], "seed=-1"),
        (["--t5-length", "0", "--drop", "t5"], "t5_length=0"),
        (["--run", "x"], "--run"),
        (["--set", "steps=3"], "--set steps=3: expected a run"),
    ],
)
def test_bad_input_is_told_in_a_line(
    pipeline: Path, tmp_path: Path, wrong: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--root", str(tmp_path), "--out", str(tmp_path / "out")]
    options = ["sample", "--checkpoint", str(pipeline), "--height", "64", "--width", "64", "a cat", *places]
    assert main([*options, *wrong]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.fixture(scope="module")
def all_in_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file as sd3_medium_incl_clips.safetensors is, and the tokenizers."""
    folder = tmp_path_factory.mktemp("all in one")
    model = MMDiTConfig.from_depth(
        2, head_size=16, heads=2, context_dim=200, pooled_dim=64 + 128, position_table=24, qk_norm=True
    )
    named = {name: entry.shape for entry in entries(model)[1:] for name in entry.names("stability")}
    tensors = weights(named) | {"model.diffusion_model.pos_embed": table.whole(model)}
    for name, width in (("clip_l", 64), ("clip_g", 128)):
        told = {**encoder_config(name), "hidden_size": width, "num_attention_heads": width // 64}
        told["projection_dim"] = width
        tensors |= {f"text_encoders.{name}.logit_scale": np.zeros((), np.float32)}
        tensors |= {f"text_encoders.{name}.transformer.{k}": v for k, v in encoder_weights(name, told).items()}
    vae = autoencoder_shapes(AutoencoderConfig(channels=16, widths=(32,) * 4, layers=1))
    tensors |= {f"first_stage_model.{name}": array for name, array in weights(vae).items()}
    halves = {name: np.ascontiguousarray(array, np.float16) for name, array in tensors.items()}
    safetensors.numpy.save_file(halves, folder / "incl_clips.safetensors")
    for name in ("clip_l", "clip_g"):
        write_clip_tokenizer(folder / "elsewhere" / FOLDERS[name][1], "!" if name == "clip_g" else "<|endoftext|>")
    return folder


def test_everything_from_a_single_file(all_in_one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stability's files bring text encoders and autoencoder, but no tokenizers."""
    options = ["sample", "--checkpoint", str(all_in_one / "incl_clips.safetensors"), "--root", str(tmp_path)]
    options += ["--height", "64", "--width", "64", "--steps", "1", "a cat", "--json"]
    assert main([*options, "--out", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "no tokenizer (tokenizer.json, or vocab.json and merges.txt)" in error and "--tokenizers" in error
    given = [*options, "--tokenizers", str(all_in_one / "elsewhere"), "--out", str(tmp_path / "out")]
    assert main(given) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["encoders"] == ["clip_l", "clip_g"] and "t5: none in" in err
    assert Image.open(tmp_path / "out" / "00000_00.png").size == (64, 64)
    assert main([*given, *("--text", str(all_in_one / "incl_clips.safetensors"), "--drop", "clip_g")]) == 0
    assert json.loads(capsys.readouterr().out)["encoders"] == ["clip_l"]


@pytest.mark.parametrize("part", ["text", "vae"])
def test_what_a_checkpoint_does_not_bring_is_asked_for(
    part: str, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"text": "vae", "vae": "text"}[part]
    places = {"text": pipeline, "vae": pipeline / "vae"}
    bare = ["sample", "--checkpoint", str(pipeline / "transformer"), f"--{other}", str(places[other]), "a cat"]
    options = ["--height", "64", "--width", "64", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*bare, *options, "--drop", "t5"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"--{part}" in error and str(pipeline / "transformer") in error
