"""The autoencoder against goldens of diffusers' (tests/parity/autoencoder.py), its files, its tiles."""

from __future__ import annotations

import json
from pathlib import Path

import autoencoder_cases as cases
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from deterministic import relative_error, sketch, values, weights
from flax import nnx

from mmdit_jax.errors import UserError
from mmdit_jax.models.autoencoder import (
    AutoencoderConfig,
    KLAutoencoder,
    from_model_space,
    load_autoencoder,
    sample_posterior,
    save_autoencoder,
    to_model_space,
)
from mmdit_jax.models.autoencoder.names import from_torch, shapes
from mmdit_jax.models.autoencoder.network import abstract, num_params
from mmdit_jax.models.autoencoder.tiles import tiled

BOUND = 1e-5
SMALL = AutoencoderConfig(channels=2, widths=(4, 8), layers=1, groups=2, shift=0.25, scale=2.0, image_size=16)


def random_tensors(config: AutoencoderConfig) -> dict[str, np.ndarray]:
    return weights(shapes(config))


@pytest.fixture(scope="module")
def small() -> KLAutoencoder:
    return KLAutoencoder.from_tensors(SMALL, random_tensors(SMALL))


@pytest.fixture(scope="module")
def small_images() -> np.ndarray:
    return np.clip(values("small images", (2, 6, 10, 3), 60) + 128, 0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.CONFIGS)
def test_outputs_and_gradients_are_diffusers(name: str) -> None:
    outputs, gradients = cases.outputs(name), cases.gradients(name)
    outputs["tiled_decoded"] = outputs["tiled_decoded"][:, ::2, ::3]
    with np.load(cases.golden(name)) as golden:
        assert set(golden) == {*outputs, *(f"grad/{key}" for key in gradients)}
        for key, value in outputs.items():
            assert relative_error(value, golden[key]) < BOUND, key
        for key, value in gradients.items():
            ours, theirs = sketch(key, value), golden[f"grad/{key}"]
            if key.endswith("to_k.bias"):  # zero but for rounding: a softmax doesn't see what all keys share
                size = np.abs(golden[f"grad/{key.replace('to_k', 'to_q')}"][0])
                assert max(np.abs(ours).max(), np.abs(theirs).max()) < BOUND * size
            else:
                assert relative_error(ours, theirs) < BOUND, key


def test_sd3s_shape() -> None:
    config = AutoencoderConfig()
    assert num_params(config) == 83_819_683
    assert (config.channels, config.factor, config.shift, config.scale) == (16, 8, 0.0609, 1.5305)


def test_images_are_encoded_and_decoded(small: KLAutoencoder, small_images: np.ndarray) -> None:
    model = nnx.merge(*nnx.split(abstract(SMALL)))
    from_torch(model, random_tensors(SMALL))
    mean, logvar = small.encode(small_images)
    expected = model.encode(jnp.asarray(small_images / 127.5 - 1, jnp.float32))
    assert mean.shape == logvar.shape == (2, 3, 5, 2)
    assert relative_error(mean, np.asarray(expected[0])) < BOUND
    assert relative_error(logvar, np.asarray(expected[1])) < BOUND

    latents = values("small latents", (2, 3, 5, 2))
    image = np.asarray(model.decode(jnp.asarray(latents / 2.0 + 0.25)))
    decoded = small.decode(latents)
    assert decoded.dtype == np.uint8 and decoded.shape == (2, 6, 10, 3)
    assert np.abs(decoded.astype(int) - np.clip((image + 1) * 127.5, 0, 255)).max() < 0.51


def test_log_variance_is_clipped() -> None:
    tensors = random_tensors(SMALL)
    tensors["encoder.conv_out.bias"] = np.array([0, 0, 1e3, -1e3], np.float32)
    _, logvar = KLAutoencoder.from_tensors(SMALL, tensors).encode(np.zeros((1, 4, 4, 3), np.uint8))
    assert (logvar[..., 0] == 20).all() and (logvar[..., 1] == -30).all()


def test_bfloat16_is_near_float32(small: KLAutoencoder, small_images: np.ndarray) -> None:
    other = KLAutoencoder.from_tensors(SMALL, random_tensors(SMALL), dtype="bfloat16")
    mean, expected = other.encode(small_images)[0], small.encode(small_images)[0]
    assert 1e-4 < relative_error(mean, expected) < 0.03


def test_model_space() -> None:
    z = jnp.asarray(values("z", (3, 4)))
    assert np.allclose(to_model_space(z, 0.0609, 1.5305), (np.asarray(z) - 0.0609) * 1.5305)
    assert np.allclose(from_model_space(to_model_space(z, 0.0609, 1.5305), 0.0609, 1.5305), z, atol=1e-6)
    mean, logvar = jnp.full((20_000,), 3.0), jnp.full((20_000,), np.log(4.0))
    samples = np.asarray(sample_posterior(jax.random.key(0), mean, logvar))
    assert abs(samples.mean() - 3) < 0.06 and abs(samples.std() - 2) < 0.05


def test_tiles_of_an_image_make_the_image() -> None:
    whole = values("whole", (2, 27, 17, 3))
    assert np.abs(tiled(lambda tile: tile, whole, 8, 8) - whole).max() < 1e-6
    doubled = tiled(lambda tile: tile.repeat(2, 1).repeat(2, 2), whole, 8, 16)
    assert np.abs(doubled - whole.repeat(2, 1).repeat(2, 2)).max() < 1e-6


def test_neighbouring_tiles_fade_into_each_other() -> None:
    numbers = iter((1.0, 5.0))
    out = tiled(lambda tile: np.full_like(tile, next(numbers)), np.zeros((1, 6, 12, 1), np.float32), 8, 8)
    # A step of 6, the overlap of 2 fades, the rest is the second tile's.
    assert out[0, 3, :, 0].tolist() == [1] * 6 + [1, 3] + [5] * 4


def test_tiled_is_near_whole(small: KLAutoencoder) -> None:
    """Norms and attention see a tile only. Of a texture that repeats within a tile they see nearly the same as in the
    whole (its ends aside): away from the seams the two images are then the same within 15 %, at random weights.
    """
    made = KLAutoencoder.from_tensors(SMALL, random_tensors(SMALL), tile=32)
    latents = np.tile(values("texture", (1, 4, 4, 2)), (1, 7, 10, 1))
    tiles, whole = made.decode_float(latents), small.decode_float(latents)
    assert tiles.shape == whole.shape == (1, 56, 80, 3)
    # Tiles of 16 latent pixels begin at 0, 12, 24; the seam is where the next begins, and a little after.
    seams = np.r_[24 - 2 : 32 + 2, 48 - 2 : 56 + 2, 72 - 2 : 80]
    rows, columns = (np.setdiff1d(np.arange(n), seams) for n in (56, 80))
    inside = np.ix_([0], rows, columns)
    assert relative_error(tiles[inside], whole[inside]) < 0.15
    assert relative_error(tiles, whole) > 1e-3  # it is not the whole's by another way
    one = latents[:, :16, :16]
    np.testing.assert_array_equal(made.decode_float(one), small.decode_float(one))


def test_save_and_load(small: KLAutoencoder, small_images: np.ndarray, tmp_path: Path) -> None:
    save_autoencoder(tmp_path / "new", small)
    read = load_autoencoder(tmp_path / "new")
    assert read.config == SMALL
    assert read.fingerprint == small.fingerprint
    assert read.folder == str(tmp_path / "new")
    np.testing.assert_array_equal(read.encode(small_images)[0], small.encode(small_images)[0])
    assert load_autoencoder(tmp_path / "new" / "diffusion_pytorch_model.safetensors").config == SMALL
    first = {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()}
    save_autoencoder(tmp_path / "new", read)
    assert first == {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()}


def test_fingerprint_is_of_the_weights(small: KLAutoencoder) -> None:
    tensors = random_tensors(SMALL)
    shifted = AutoencoderConfig(**{**vars(SMALL), "shift": 0.0, "scale": 1.0})
    assert KLAutoencoder.from_tensors(shifted, tensors).fingerprint == small.fingerprint
    tensors["decoder.conv_out.bias"] = tensors["decoder.conv_out.bias"] + np.float32(1e-6)
    assert KLAutoencoder.from_tensors(SMALL, tensors).fingerprint != small.fingerprint


def write_folder(folder: Path, files: dict[str, dict[str, np.ndarray]], config: AutoencoderConfig = SMALL) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_diffusers()))
    for name, tensors in files.items():
        safetensors.numpy.save_file(tensors, folder / name)
    return folder


def old_attention(name: str) -> str:
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def test_ways_to_store_the_same_weights(small: KLAutoencoder, tmp_path: Path) -> None:
    tensors = random_tensors(SMALL)
    stem = "diffusion_pytorch_model"
    old = {old_attention(name): tensor for name, tensor in tensors.items()}
    assert old.keys() != tensors.keys()
    assert (
        load_autoencoder(write_folder(tmp_path / "old", {f"{stem}.safetensors": old})).fingerprint == small.fingerprint
    )

    names = sorted(tensors)
    parts = {f"{stem}-0000{i + 1}-of-00002.safetensors": {n: tensors[n] for n in names[i::2]} for i in range(2)}
    folder = write_folder(tmp_path / "vae", parts)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    assert load_autoencoder(tmp_path).fingerprint == small.fingerprint  # the folder of a pipeline

    for dtype, kind in (("F16", np.float16), ("BF16", ml_dtypes.bfloat16)):
        half = {name: tensor.astype(kind) for name, tensor in tensors.items()}
        folder = write_folder(tmp_path / dtype, {f"{stem}.fp16.safetensors": half})
        for name, tensor in load_autoencoder(folder).tensors().items():
            np.testing.assert_array_equal(tensor, half[name].astype(np.float32))
        assert load_autoencoder(folder / f"{stem}.fp16.safetensors").shift == SMALL.shift  # config.json lies beside


def test_stability_file(tmp_path: Path) -> None:
    config = AutoencoderConfig(widths=(32, 64), layers=1)
    stability = cases.stability_tensors(config)
    stored = {f"first_stage_model.{name}": tensor for name, tensor in stability.items()}
    path = tmp_path / "sd3.safetensors"
    safetensors.numpy.save_file({**stored, "model.diffusion_model.pos_embed": np.zeros(3, np.float32)}, path)
    read = load_autoencoder(path)
    assert read.config == config
    found = read.tensors()
    assert sum(tensor.size for tensor in found.values()) == sum(tensor.size for tensor in stability.values())
    for ours, theirs in {
        "decoder.up_blocks.0.resnets.1.conv2.weight": "decoder.up.1.block.1.conv2.weight",
        "decoder.up_blocks.1.resnets.0.conv_shortcut.weight": "decoder.up.0.block.0.nin_shortcut.weight",
        "decoder.up_blocks.0.upsamplers.0.conv.bias": "decoder.up.1.upsample.conv.bias",
        "encoder.down_blocks.0.downsamplers.0.conv.weight": "encoder.down.0.downsample.conv.weight",
        "encoder.mid_block.resnets.1.norm1.bias": "encoder.mid.block_2.norm1.bias",
        "encoder.conv_norm_out.weight": "encoder.norm_out.weight",
        "decoder.mid_block.attentions.0.group_norm.weight": "decoder.mid.attn_1.norm.weight",
    }.items():
        np.testing.assert_array_equal(found[ours], stability[theirs])
    projection = stability["decoder.mid.attn_1.proj_out.weight"][:, :, 0, 0]
    np.testing.assert_array_equal(found["decoder.mid_block.attentions.0.to_out.0.weight"], projection)

    safetensors.numpy.save_file(stability, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="shift and scale"):
        load_autoencoder(tmp_path / "bare.safetensors")
    bare = load_autoencoder(tmp_path / "bare.safetensors", shift=0.1159, scale=0.3611)
    assert (bare.fingerprint, bare.shift, bare.scale) == (read.fingerprint, 0.1159, 0.3611)


WRONG = {
    "missing": (lambda t: t.pop("encoder.conv_in.bias"), r"missing tensor encoder\.conv_in\.bias"),
    "unknown": (lambda t: t.update({"loss.logvar": np.zeros(1, np.float32)}), r"unknown tensor loss\.logvar"),
    "misshapen": (
        lambda t: t.update({"decoder.conv_out.bias": np.zeros(4, np.float32)}),
        r"misshapen tensor decoder\.conv_out\.bias \[4\] \(expected \[3\]\)",
    ),
    "type": (lambda t: t.update({"decoder.conv_out.bias": np.zeros(3, np.int32)}), r"conv_out\.bias has type I32"),
    "twice": (
        lambda t: t.update({"encoder.mid_block.attentions.0.key.bias": np.zeros(8, np.float32)}),
        r"attentions\.0\.key\.bias is there under its present name",
    ),
    "many": (lambda t: [t.pop(name) for name in sorted(t)[:9]], r"missing tensors .*decoder.* and 4 more"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_tensors_are_named(what: str, tmp_path: Path) -> None:
    damage, message = WRONG[what]
    tensors = random_tensors(SMALL)
    damage(tensors)
    folder = write_folder(tmp_path / "vae", {"diffusion_pytorch_model.safetensors": tensors})
    with pytest.raises(UserError, match=message):
        load_autoencoder(folder)


def test_bad_files_are_one_line(small: KLAutoencoder, tmp_path: Path) -> None:
    def told(path: Path, **options: float) -> str:
        with pytest.raises(UserError) as caught:
            load_autoencoder(path, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "not there" in told(tmp_path / "nowhere")
    assert "config.json" in told(tmp_path)
    (tmp_path / "words.safetensors").write_text("these are words, not numbers")
    assert "not a safetensors file, or damaged" in told(tmp_path / "words.safetensors")

    save_autoencoder(tmp_path / "saved", small)
    config, weights = tmp_path / "saved" / "config.json", tmp_path / "saved" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-7])
    assert "cut short" in told(tmp_path / "saved")
    weights.unlink()
    assert "expected diffusion_pytorch_model.safetensors" in told(tmp_path / "saved")
    weights.write_bytes(data)

    fields = SMALL.to_diffusers()
    for change, message in (
        ({"act_fn": "relu"}, "act_fn='relu'"),
        ({"_class_name": "AsymmetricAutoencoderKL"}, "_class_name="),
        ({"norm_num_groups": 3}, "widths=(4, 8): expected one or more multiples of groups=3"),
        ({"latent_channels": "2"}, "latent_channels='2'"),
        ({"scaling_factor": 0}, "scale=0.0"),
    ):
        config.write_text(json.dumps({**fields, **change}))
        assert message in told(tmp_path / "saved")
    config.write_text("{")
    assert "not a JSON object" in told(tmp_path / "saved")
    config.write_text(json.dumps(fields))
    assert "tile=12" in told(tmp_path / "saved", tile=12)
    assert "dtype='int8'" in told(tmp_path / "saved", dtype="int8")  # type: ignore[arg-type]

    other = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, other)
    assert "expected the tensors of an autoencoder" in told(other)


def test_wrong_arrays_are_one_line(small: KLAutoencoder) -> None:
    with pytest.raises(UserError, match="multiples of 2"):
        small.encode(np.zeros((1, 5, 4, 3), np.uint8))
    with pytest.raises(UserError, match="images=float32"):
        small.encode(np.zeros((1, 4, 4, 3), np.float32))
    with pytest.raises(UserError, match=r"latents=\[1, 4, 4, 3\]: expected \[B, h, w, 2\]"):
        small.decode(np.zeros((1, 4, 4, 3), np.float32))
