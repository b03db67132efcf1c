"""Runs on encoded sets through the console script: killed between buckets, refused, drawn by the set's own models."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from deterministic import weights
from PIL import Image
from test_kill import kill_when, last_step
from tiny_encoded import SIZES, write_set
from tiny_encoders import write_encoders

from mmdit_jax.data.schedule import bucket_at
from mmdit_jax.models.autoencoder import AutoencoderConfig, KLAutoencoder, save_autoencoder
from mmdit_jax.models.autoencoder.names import shapes
from mmdit_jax.models.text import TextShape, load_text_encoder
from mmdit_jax.training.events import read_events

STUDY = '''
"""One tiny run on latents."""
from mmdit_jax.config import *
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.models import MMDiTConfig

TEXT = {text}

def study():
    names = tuple(item[0] for item in TEXT)
    data = DataConfig(
        name="set", resolution=4, validation_examples=10, text_encoders=names, text_layout="sd3", text_shapes=TEXT
    )
    context, pooled = text_widths(names, "sd3", TEXT)
    model = MMDiTConfig.from_depth(
        1, head_size=8, heads=2, patch_size=2, in_channels=4, context_dim=context, pooled_dim=pooled, position_table=5
    )
    return Study("latents", (Run(
        name="rf", model=model, data=data, batch=8, steps=300, validate_every=100,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, ema_decay=0.9),
        evaluation=EvaluationConfig(prompts_per_task=1, sampler=SamplerConfig(steps=2), {evaluation}),
        hardware=HardwareConfig(checkpoint_every=50),
    ),))
'''
TRAIN = ("train", "latents.py", "--run", "rf", "--quiet", "--data-dir", "data")


def write_study(folder: Path, text: Any = (("clip_l", 5, 6, 4), ("t5", 3, 8, 0)), evaluation: str = "") -> None:
    (folder / "latents.py").write_text(STUDY.format(text=text, evaluation=evaluation))


def run_dir(root: Path) -> Path:
    return next(iter(sorted((root / "latents").glob("rf-*"))), root / "latents" / "rf-none")


def one_line(done: Any) -> str:
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mmdit: ")]
    return str(line)


@pytest.mark.slow
def test_killed_between_buckets_the_same_bits(mmdit) -> None:
    write_study(mmdit.folder)
    write_set(mmdit.folder / "data" / "set")
    sizes = [SIZES["train"][bucket] for bucket in sorted(SIZES["train"])]
    buckets = [bucket_at(sizes, step)[0] for step in range(300)]
    assert all(buckets[step] != buckets[step - 1] for step in (100, 150)) and set(buckets) == {0, 1, 2}

    untouched = mmdit(*TRAIN, "--root", "untouched")
    assert untouched.returncode == 0, untouched.stderr
    assert "validation losses only, no images" in untouched.stderr
    root = mmdit.folder / "killed"
    for step in (120, 210):
        assert kill_when(mmdit.start(*TRAIN, "--root", "killed"), lambda at=step: last_step(run_dir(root)) >= at)
    process = mmdit.start(*TRAIN, "--root", "killed")
    deadline = time.monotonic() + 120
    while last_step(run_dir(root)) < 230 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    finished = mmdit(*TRAIN, "--root", "killed")
    assert finished.returncode == 0, finished.stderr
    starts = [event["step"] for event in read_events(run_dir(root)) if event["event"] == "start"]
    # A checkpoint may still have been on its way to the disk: 50 and 100, or 100 and 150, or ...
    assert len(starts) == 4 and 0 == starts[0] < starts[1] < starts[2] < starts[3] and starts[3] >= 230
    assert any(buckets[start] != buckets[start - 1] for start in starts[1:])

    ours, theirs = ((run_dir(r) / "result.json").read_bytes() for r in (root, mmdit.folder / "untouched"))
    assert ours == theirs
    result = json.loads(ours)
    assert len(result["params_sha256"]) == 64 and result["geneval"] == [] and result["judge_match"] is None
    assert [point["step"] for point in result["curve"]] == [100, 200, 300]
    report = mmdit("study", "report", "latents.py", "--root", "killed", "--data-dir", "data")
    assert report.returncode == 0, report.stderr
    assert pd.read_csv(root / "latents" / "results.csv")["val_loss"].tolist() == [result["val_loss"]]

    # Another set under the same name: refused where the run goes on, and nothing is lost.
    (run_dir(root) / "result.json").unlink()
    shutil.rmtree(mmdit.folder / "data" / "set")
    write_set(mmdit.folder / "data" / "set", seed="other ")
    before = (run_dir(root) / "config.json").read_bytes()
    line = one_line(mmdit(*TRAIN, "--root", "killed"))
    assert json.loads(before)["data_fingerprint"] in line and "restore that set" in line
    assert (run_dir(root) / "config.json").read_bytes() == before
    shutil.rmtree(mmdit.folder / "data" / "set")
    assert "mmdit data encode … --name set" in one_line(mmdit(*TRAIN, "--root", "new"))
    assert not (mmdit.folder / "new").exists()
    plan = mmdit("study", "plan", "latents.py", "--json")
    assert plan.returncode == 0 and json.loads(plan.stdout)["runs"][0]["train_flops"] > 0


VAE = AutoencoderConfig(channels=4, widths=(8, 8, 8, 8), layers=1, groups=2, attention=False, image_size=64)


@pytest.mark.slow
def test_drawn_by_the_sets_own_models(mmdit) -> None:
    folder = mmdit.folder
    save_autoencoder(folder / "vae", KLAutoencoder.from_tensors(VAE, weights(shapes(VAE))))
    write_encoders(folder / "sd3")
    encoders = {
        name: load_text_encoder(name, folder / "sd3", length=9 if name == "t5" else None) for name in ("clip_l", "t5")
    }
    text = {name: TextShape(item.length, item.width, item.pooled_width) for name, item in encoders.items()}
    autoencoder = KLAutoencoder.from_tensors(VAE, weights(shapes(VAE)))
    latents = {
        "channels": 4, "factor": 8, "shift": autoencoder.shift, "scale": autoencoder.scale,
        "fingerprint": autoencoder.fingerprint, "folder": str(folder / "vae"),
    }  # fmt: skip
    told = {
        name: {**text[name]._asdict(), "fingerprint": item.fingerprint, "folder": str(folder / "sd3")}
        for name, item in encoders.items()
    }
    sizes = {"train": SIZES["train"], "validation": {(4, 4): 50, (2, 8): 10, (6, 4): 10}}  # realism needs over 64
    write_set(folder / "data" / "set", sizes, text, changes={"latents": latents, "text": told})
    evaluation = "settings=(SamplerConfig(steps=2), SamplerConfig(steps=1)), settings_images=8, without=(('t5',),)"
    write_study(folder, tuple((name, *shape) for name, shape in text.items()), evaluation)
    fast = ("--set", "steps=20", "--set", "validate_every=10")

    louder = {name: 1.1 * array for name, array in weights(shapes(VAE)).items()}
    save_autoencoder(folder / "other", KLAutoencoder.from_tensors(VAE, louder))
    wrong = one_line(mmdit(*TRAIN, *fast, "--vae", "other"))
    assert autoencoder.fingerprint in wrong and "--vae none" in wrong
    assert "vae=missing: not there" in one_line(mmdit(*TRAIN, *fast, "--vae", "missing"))
    assert not list(run_dir(folder / "studies").glob("checkpoints"))

    report = mmdit("study", "run", "latents.py", "--quiet", "--data-dir", "data", *fast)
    assert report.returncode == 0, report.stderr
    result = json.loads((run_dir(folder / "studies") / "result.json").read_text())
    assert 0 <= result["judge_match"] <= 1 and len(result["settings"]) == 4 and result["without"] == []
    drawn = [np.asarray(Image.open(path)) for path in sorted(run_dir(folder / "studies").glob("samples/*/samples/*"))]
    assert [image.shape for image in drawn] == [(32, 32, 3)] * 6
    tables = folder / "studies" / "latents"
    assert len(pd.read_csv(tables / "real.csv")) == 1 and (tables / "without_battles.csv").exists()
    assert (tables / "figures" / "without.png").exists()

    # The same images again, from the captions' states in the set; other captions need the encoders themselves.
    again = mmdit("evaluate", "latents.py", "--run", "rf", "--data-dir", "data", *fast, "--out", "again", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["judge_match"] == result["judge_match"]
    for path, image in zip(sorted((folder / "again").glob("*/samples/*")), drawn, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    sample = ("sample", "latents.py", "--run", "rf", "a red circle", "--data-dir", "data", *fast, "--out", "mine")
    made = mmdit(*sample)
    assert made.returncode == 0, made.stderr
    assert np.asarray(Image.open(folder / made.stdout.strip())).shape == (32, 32, 3)
    shutil.move(folder / "sd3", folder / "moved")
    assert "--clip-l FOLDER" in one_line(mmdit(*sample))
    assert mmdit(*sample, "--text", "moved", "--vae", "vae", "--drop", "t5").returncode == 0
