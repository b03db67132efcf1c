"""Validation loss: against a loop written out, and the same whatever the chunk or the number of devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, apply, init_params
from mmdit_jax.models.text import assemble
from mmdit_jax.training import validation
from mmdit_jax.training.held_out import HeldOutImages
from mmdit_jax.training.validation import validation_loss, validation_noise

CONFIG = MMDiTConfig(
    depth=1, head_size=8, heads=2, patch_size=4, in_channels=3, context_dim=12, pooled_dim=5, position_table=4
)
N = 10


def problem():
    """(parameters that are not the zero network, images, text)."""
    shapes = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [0.2 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])
    text = {
        "words": (rng.standard_normal((N, 6, 8)).astype(np.float16), np.zeros((N, 0), np.float16)),
        "tower": (rng.standard_normal((N, 6, 4)).astype(np.float16), rng.standard_normal((N, 5)).astype(np.float16)),
    }
    return params, rng.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8), text


def test_it_is_the_mean_squared_velocity_error_at_eight_levels() -> None:
    params, images, text = problem()
    expected = np.zeros((N, 8))
    noise = np.asarray(validation_noise(np.arange(N), 8, (8, 8, 3)), np.float64)
    context, pooled = assemble(text)
    network = jax.jit(lambda z, t: apply(CONFIG, params, z, t, context, pooled))
    x0 = images / 127.5 - 1
    for i in range(8):
        t = (i + 0.5) / 8
        z = (1 - t) * x0 + t * noise[:, i]
        velocity = np.asarray(network(z.astype(np.float32), np.full(N, t, np.float32)), np.float64)
        expected[:, i] = np.mean((velocity - (noise[:, i] - x0)) ** 2, axis=(1, 2, 3))
    loss = validation_loss(CONFIG, params, formulation("rf"), [HeldOutImages(images, text)])
    assert loss.shape == (8,) and loss.dtype == np.float64
    np.testing.assert_allclose(loss, expected.mean(axis=0), rtol=1e-5)
    assert len(set(loss)) == 8


def test_the_noise_is_standard_and_of_its_own_for_each_image_and_level() -> None:
    noise = np.asarray(validation_noise(np.arange(6), 8, (16, 16, 3))).reshape(48, -1)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert np.abs(np.corrcoef(noise) - np.eye(48)).max() < 0.2
    np.testing.assert_array_equal(noise[8:16].reshape(1, 8, 16, 16, 3), validation_noise(np.array([1]), 8, (16, 16, 3)))


def test_the_same_whatever_the_chunk_and_one_program_for_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    params, images, text = problem()
    validation._compiled.cache_clear()
    held_out = [HeldOutImages(images, text)]
    whole = validation_loss(CONFIG, params, formulation("rf"), held_out)
    for name in ("rf/lognorm(0.00,1.00)", "rf/mode(1.29)", "rf/cosmap"):
        np.testing.assert_array_equal(validation_loss(CONFIG, params, formulation(name), held_out), whole)
    assert validation._compiled(CONFIG, 8, None, "channels")._cache_size() == 1  # type: ignore[attr-defined]
    monkeypatch.setattr(validation, "CHUNK", 4)  # 10 images: the last chunk is short
    np.testing.assert_allclose(validation_loss(CONFIG, params, formulation("rf"), held_out), whole, rtol=1e-6)


def test_the_error_is_that_of_the_straight_velocity_for_every_path() -> None:
    """What a network says of ε − x0 by outputting 0 depends on its prediction, and follows by hand."""
    _, images, text = problem()
    params = init_params(CONFIG, jax.random.key(0))  # the final layer starts at zero, hence the output
    x0 = images / 127.5 - 1
    noise = np.asarray(validation_noise(np.arange(N), 8, (8, 8, 3)), np.float64)
    s = ((np.arange(8) + 0.5) / 8)[:, None, None, None]
    y = (1 - s) * x0[:, None] + s * noise
    truth = noise - x0[:, None]
    a, b = (1 - s) / np.hypot(s, 1 - s), s / np.hypot(s, 1 - s)  # variance preserving, at the same log-SNR
    z = y * (a + b)
    sigma = s / (1 - s)
    guesses = {
        "v/cos": (b - a) * z,
        "edm(-1.20,1.20)": y * (1 + sigma) * (sigma - 0.25) / (sigma**2 + 0.25),
    }
    for name, guess in guesses.items():
        expected = np.mean((guess - truth) ** 2, axis=(0, 2, 3, 4))
        loss = validation_loss(CONFIG, params, formulation(name), [HeldOutImages(images, text)])
        np.testing.assert_allclose(loss, expected, rtol=2e-3, err_msg=name)


def test_the_same_on_eight_devices(tmp_path: Path) -> None:
    params, images, text = problem()
    one = validation_loss(CONFIG, params, formulation("rf"), [HeldOutImages(images, text)])
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import jax, numpy as np
from test_validation import CONFIG, HeldOutImages, formulation, problem, validation_loss
from mmdit_jax.sharding import make_mesh
params, images, text = problem()
assert jax.device_count() == 8
loss = validation_loss(CONFIG, params, formulation("rf"), [HeldOutImages(images, text)], mesh=make_mesh(fsdp=2))
np.save({str(tmp_path / "loss.npy")!r}, loss)
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "loss.npy"), one, rtol=1e-6)


def test_bad_input_is_told_in_one_line() -> None:
    params, images, text = problem()
    with pytest.raises(UserError, match=r"^held_out=0: expected 1 or more examples"):
        validation_loss(CONFIG, params, formulation("rf"), [])
    with pytest.raises(UserError, match=r"^text\['words'\]=10 examples: expected 9"):
        HeldOutImages(images[:9], text)
