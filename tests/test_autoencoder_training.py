"""Training small autoencoders, and how reconstructions are measured."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deterministic import values
from flax import nnx
from scipy import stats

from launch.cli import main
from mmdit_jax.errors import Diverged, UserError
from mmdit_jax.evaluation.reconstruction import psnr, ssim
from mmdit_jax.models.autoencoder import AutoencoderConfig, load_autoencoder, sample_posterior
from mmdit_jax.training.autoencoder import AutoencoderRecipe, initial, loss_of, reconstruct, train
from scaling.reconstructions import COLUMNS, Measured, reconstruction_rows

CONFIG = AutoencoderConfig(channels=4, widths=(4, 8), layers=1, groups=2, attention=False, image_size=8)
RECIPE = AutoencoderRecipe(CONFIG, steps=130, batch=8, learning_rate=0.05)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Rectangles of one colour on another: something to learn."""
    rng = np.random.default_rng(0)
    out = np.empty((64, 8, 8, 3), np.uint8)
    out[:] = rng.integers(256, size=(64, 1, 1, 3))
    for image in out:
        image[: rng.integers(2, 7), : rng.integers(2, 7)] = rng.integers(256, size=3)
    return out


@pytest.mark.slow
def test_training_learns_and_repeats(images: np.ndarray) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    made = train(RECIPE, images, lambda step, parts: seen.append((step, parts)))
    assert [step for step, _ in seen] == [50, 100, 130]
    flat = np.broadcast_to(images.mean(axis=(0, 1, 2)), images.shape)
    gray = np.abs(images - flat).mean()
    assert np.abs(reconstruct(made, images).astype(float) - images).mean() < 0.65 * gray

    mean, logvar = made.encode(images)
    z = np.asarray(sample_posterior(jax.random.key(1), jnp.asarray(mean), jnp.asarray(logvar)))
    latents = (z - made.shift) * made.scale
    assert abs(latents.mean()) < 0.05 and abs(latents.std() - 1) < 0.05

    short = dataclasses.replace(RECIPE, steps=3)
    prints = [train(recipe, images).fingerprint for recipe in (short, short, dataclasses.replace(short, seed=1))]
    assert prints[0] == prints[1] != prints[2]


def test_loss_is_its_formula(images: np.ndarray) -> None:
    model, key = initial(CONFIG, 0), jax.random.key(3)
    x = jnp.asarray(images[:2] / 127.5 - 1, jnp.float32)
    loss, _ = nnx.jit(loss_of)(model, key, x, 0.5)
    mean, logvar = (np.asarray(array, np.float64) for array in nnx.jit(lambda m: m.encode(x))(model))
    assert abs(logvar.mean() + 4) < 1
    z = sample_posterior(key, jnp.asarray(mean, jnp.float32), jnp.asarray(logvar, jnp.float32))
    l1 = np.abs(np.asarray(nnx.jit(lambda m: m.decode(z))(model)) - np.asarray(x)).mean()
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)
    assert float(loss) == pytest.approx(l1 + 0.5 * kl.sum() / x.size, rel=1e-4)


def test_bad_recipes_and_images(images: np.ndarray) -> None:
    with pytest.raises(UserError, match="steps=0"):
        dataclasses.replace(RECIPE, steps=0)
    with pytest.raises(UserError, match=r"images=uint8\[4, 8, 8, 3\]: .*N at least 8"):
        train(RECIPE, images[:4])
    with pytest.raises(UserError, match="sides that the autoencoder's factor 2 divides"):
        train(RECIPE, images[:, :7])
    with pytest.raises(Diverged, match="not finite at step 2"):
        train(dataclasses.replace(RECIPE, steps=2, learning_rate=1e38), images)


def test_psnr_of_a_known_error() -> None:
    first = np.full((2, 4, 4, 3), 100, np.uint8)
    second = first.copy()
    second[1] += 5
    assert psnr(first, second).tolist() == [np.inf, pytest.approx(20 * np.log10(255 / 5))]


def test_ssim_is_its_formula() -> None:
    first = np.clip(values("first", (2, 14, 13, 3), 50) + 128, 0, 255).astype(np.uint8)
    second = np.clip(first + values("second", first.shape, 30), 0, 255).astype(np.uint8)
    window = np.array([[np.exp(-(i * i + j * j) / (2 * 1.5**2)) for i in range(-5, 6)] for j in range(-5, 6)])
    window /= window.sum()
    expected = []
    for x, y in zip(first.astype(float), second.astype(float), strict=True):
        found = []
        for top in range(4):
            for left in range(3):
                for c in range(3):
                    a, b = x[top : top + 11, left : left + 11, c], y[top : top + 11, left : left + 11, c]
                    ma, mb = (window * a).sum(), (window * b).sum()
                    va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                    cov = (window * (a - ma) * (b - mb)).sum()
                    c1, c2 = 2.55**2, 7.65**2
                    found.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
        expected.append(np.mean(found))
    assert ssim(first, second) == pytest.approx(np.array(expected), rel=1e-9)
    assert ssim(first, first) == pytest.approx(np.ones(2))
    with pytest.raises(UserError, match="sides of 11"):
        ssim(first[:, :10], second[:, :10])
    with pytest.raises(UserError, match="one shape"):
        psnr(first, second[:, 1:])


def test_intervals_are_of_images_and_trainings() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3))

    def measured(*shifts: float) -> list[Measured]:
        columns = [dict.fromkeys(COLUMNS[1:], np.linspace(10, 30, 40) + shift) for shift in shifts]
        return [Measured(own, features + 0.1 * rng.normal(size=features.shape)) for own in columns]

    rows = reconstruction_rows({"4": measured(0, 1), "8": measured(2, 3.5)}, features, 400)
    found = {(row["what"], row["column"]): row for row in rows}
    assert len(rows) == 3 * len(COLUMNS) and all(row["low"] < row["value"] < row["high"] for row in rows)
    assert found["4", "psnr"]["value"] == pytest.approx(20.5) and found["8 - 4", "psnr"]["value"] == pytest.approx(2.25)
    images = np.linspace(10, 30, 40).std() / np.sqrt(40)
    alone = next(r for r in reconstruction_rows({"16": measured(5)}, features, 400) if r["column"] == "psnr")
    assert alone["high"] - alone["value"] == pytest.approx(1.96 * images, rel=0.1)  # one training: images alone
    # Differences are of the same images and seeds: left are those of two pairs, 2 and 2.5.
    ours, test = found["8 - 4", "psnr"], stats.ttest_1samp([2, 2.5], 0).confidence_interval(0.95)
    assert (ours["low"], ours["high"]) == pytest.approx((test.low, test.high))


@pytest.mark.parametrize(("trainings", "spread"), [(3, 0.2), (2, 0.1), (2, 0.6), (3, 2.0)])
def test_intervals_hold_what_they_say(trainings: int, spread: float) -> None:
    """Over fresh images and fresh trainings, the true mean is inside 95 % of the time, whichever varies more."""
    rng = np.random.default_rng(1)
    inside, count = 0, 300
    for _ in range(count):
        images = rng.normal(size=50)
        own = [images + spread * rng.normal() for _ in range(trainings)]
        features = rng.normal(size=(50, 1))
        measured = [Measured(dict.fromkeys(COLUMNS[1:], values), features) for values in own]
        row = next(r for r in reconstruction_rows({"4": measured}, features, 60) if r["column"] == "psnr")
        inside += row["low"] <= 0 <= row["high"]
    assert inside / count > 0.95 - 2 * np.sqrt(0.95 * 0.05 / count)


@pytest.mark.slow
def test_experiment_end_to_end_and_killed(tmp_path: Path, compile_cache: Path) -> None:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(compile_cache)}
    command = [sys.executable, "-m", "launch.cli", "data", "autoencoder", "emoji", "--out", str(tmp_path / "out")]
    command += ["--data-dir", str(tmp_path / "data"), "--channels", "2", "--seeds", "2", "--steps", "1", "--json"]
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = tmp_path / "out" / "d2-s0" / "training.json"
    until = time.monotonic() + 200
    while not first.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 75, told
    assert "run again" in told and "Traceback" not in told
    assert not (tmp_path / "out" / "d2-s1" / "training.json").exists()
    written = first.stat().st_mtime_ns

    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert first.stat().st_mtime_ns == written  # not trained again
    assert {row["column"] for row in result["rows"]} == set(COLUMNS)
    assert [(one["channels"], one["seed"]) for one in result["runs"]] == [(2, 0), (2, 1)]
    assert len((tmp_path / "out" / "table.csv").read_text().splitlines()) == 5
    assert (tmp_path / "out" / "reconstructions.png").stat().st_size > 1000
    read = load_autoencoder(tmp_path / "out" / "d2-s1")
    assert (read.channels, read.factor) == (2, 4)
    assert read.shift == result["runs"][1]["shift"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--seeds", "0"], "seeds=0: expected 1 or more"),
        (["--resolution", "30"], "resolution=30: expected a multiple of 32"),
        (["--channels", "4", "4"], "channels=[4, 4]: one is there twice"),
        (["--channels", "0"], "channels=0: expected 1 or more"),
        (["photos"], "data='photos'"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys, more: list[str], told: str) -> None:
    name = [] if more[0] == "photos" else ["emoji"]
    assert main(["data", "autoencoder", *name, *more, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
