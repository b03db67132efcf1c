"""`mmdit data encode` as a user meets it: bad input, damaged items, a full disk, SIGTERM, a dry run."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from encode_sets import emoji, png, write_folder, write_vae
from PIL import Image
from tiny_encoders import write_encoders

from launch import cli
from mmdit_jax.data.pipeline import open_encoded
from mmdit_jax.evaluation.latent import open_text_encoder
from mmdit_jax.models.autoencoder import AutoencoderConfig, load_autoencoder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("autoencoder")
    return write_vae(folder)


@pytest.fixture
def place(tmp_path: Path, vae: Path) -> Path:
    """Twenty emoji and a tiny autoencoder."""
    write_folder(tmp_path / "in", *emoji(20))
    shutil.copytree(vae, tmp_path / "vae")
    return tmp_path


def encode(place: Path, *more: str, source: str = "in", name: str = "set") -> list[str]:
    paths = ("--data-dir", str(place / "out"), "--vae", str(place / "vae"))
    given = ["data", "encode", str(place / source), "--name", name, *paths, "--quiet", "--json"]
    held_out = [] if "--validation" in more else ["--validation", "0"]
    return [*given, *held_out, *([] if "--encoders" in more else ["--encoders", "words"]), "--size", "32", *more]


def test_damaged_items_are_left_out_and_told(place: Path, capsys: Capture) -> None:
    source = place / "in"
    images, _ = emoji(30)
    bad: dict[str, tuple[bytes, str | None, str]] = {
        "torn.png": (png(images[21])[:200], "torn", "damaged image"),
        "empty.jpg": (b"", "empty", "damaged image (empty file)"),
        "text.png": (b"<html>not found</html>", "text", "damaged image"),
        "silent.png": (png(images[22]), None, "no caption"),
        "blank.png": (png(images[23]), "  \n", "no caption"),
        "latin.png": (png(images[24]), "caf\xe9", "UTF-8"),
        "again.png": (png(images[3]), "again", "duplicate of 000/000003.png"),
        "wide.png": (png(np.tile(images[25], (1, 4, 1))), "wide", "too long: 32x128"),
        "small.png": (png(images[26][:20, :20]), "small", "too small: 20x20"),
    }
    for name, (data, caption, _) in bad.items():
        (source / name).write_bytes(data)
        if caption is not None:
            (source / name).with_suffix(".txt").write_bytes(caption.encode("latin-1"))
    assert cli.main(encode(place)) == 0
    told = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (place / "out" / "set" / "dropped.jsonl").read_text().splitlines()]
    found = {line["key"]: line["reason"] for line in lines}
    assert set(found) == set(bad)
    for name, (*_, reason) in bad.items():
        assert reason in found[name], name
    assert told["examples"] == {"train": 20, "validation": 0}
    assert sum(told["dropped"].values()) == len(bad)


def test_dry_run_says_what_comes(place: Path, capsys: Capture) -> None:
    """Its numbers are those of the set that is then encoded, and it leaves no set behind."""
    for i in range(3):
        Image.effect_noise((70, 40 + i), 60).convert("RGB").save(place / "in" / f"wide{i}.png")
        (place / "in" / f"wide{i}.txt").write_text("wide")
    more = ("--multiple", "8", "--validation", "0.1", "--encoders", "words,tower")
    assert cli.main(encode(place, *more, "--dry-run")) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not (place / "out" / "set").exists()
    assert cli.main(encode(place, *more)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["examples"] == plan["examples"] == {"train": 21, "validation": 2}
    assert told["bytes_per_sample"] == plan["bytes_per_sample"]
    assert {bucket["pixels"][1] for bucket in told["buckets"]} == {32, 40}
    latents = sum((b["train"] + b["validation"]) * np.prod(b["pixels"]) / 64 * 4 * 2 * 2 for b in told["buckets"])
    assert plan["bytes_per_sample"]["vae"] == pytest.approx(latents / 23)
    assert cli.main([arg for arg in encode(place, *more, "--dry-run", name="other") if arg != "--json"]) == 0
    text = capsys.readouterr().out
    assert "train 21, validation 2 images" in text and "65.5" in text


def test_a_dry_run_can_be_stopped(place: Path, capsys: Capture) -> None:
    """SIGTERM during the scan, which here waits for a pipe."""
    slow = place / "in" / "slow.png"
    os.mkfifo(slow)

    def stop() -> None:
        with slow.open("wb"):  # waits until the scan reads it
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert cli.main(encode(place, "--dry-run")) == 75
    thread.join()
    refused(capsys, "stopped")


def test_other_settings_are_refused(place: Path, capsys: Capture) -> None:
    """While the same ones again change nothing."""
    assert cli.main(encode(place)) == 0
    manifest = place / "out" / "set" / "manifest.json"
    before = manifest.read_bytes(), manifest.stat().st_mtime_ns
    capsys.readouterr()
    other_vae = write_vae(place / "other", AutoencoderConfig(4, (8, 8, 8, 8), 1, 4, False))
    (place / "more").mkdir()
    write_folder(place / "more", *emoji(21))
    for more, words in (
        (("--size", "64"), "size was 32, is 64"),
        (("--batch", "7"), "batch was 32, is 7"),
        (("--encoders", "words,tower"), 'encoders was ["words"], is ["tower", "words"]'),
        (("--vae", str(other_vae)), "vae was"),
        (("--seed", "1"), "seed was 0, is 1"),
    ):
        assert cli.main(encode(place, *more)) == 2
        refused(capsys, words, "give another --name")
    assert cli.main(encode(place, source="more")) == 2
    refused(capsys, "source was", "give another --name")
    assert cli.main(encode(place)) == 0
    assert json.loads(capsys.readouterr().out)["encoded_now"] == 0
    assert (manifest.read_bytes(), manifest.stat().st_mtime_ns) == before


def refused(capsys: Capture, *words: str) -> None:
    """One line on stderr that has these words, nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1, err
    assert err.startswith("mmdit: ") and all(word in err for word in words), err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--size", "40"), "size=40: expected a multiple of 16"),
        (("--multiple", "4"), "multiple=4: expected a multiple of the autoencoder's factor 8"),
        (("--vae", "nowhere"), "vae=nowhere"),
        (("--encoders", ""), "expected at least one of --clip-l"),
        (("--encoders", "words,words"), "each can be there once"),
        (("--encoders", "word"), "encoders='word'"),
        (("--clip-l", "nowhere"), "nowhere"),
        (("--name", "a/b"), "name='a/b'"),
        (("--name", "_scans"), "name='_scans'"),
        (("--name", "emoji"), "not scenes or emoji"),
        (("--batch", "0"), "batch=0"),
        (("--processes", "0"), "processes=0"),
        (("--process-index", "1"), "process-index=1: expected 0 to 0"),
        (("--validation", "half"), "validation='half'"),
        (("--dedupe", "perceptual", "--distance", "20"), "distance=20: expected 0 to 11"),
        (("--min-size", "500"), "no image can be used (20 too small)"),
        (("--data-dir", "/dev/null/x"), "data-dir=/dev/null/x: cannot be made"),
        (("--bucket-aspect", "0.5"), "bucket-aspect=0.5: expected 1 to 16"),
    ],
)
def test_bad_input_is_one_line(place: Path, capsys: Capture, more: tuple[str, ...], words: str) -> None:
    assert cli.main(encode(place, *more)) == 2
    refused(capsys, words)


def test_tokenizers_may_lie_elsewhere(place: Path, capsys: Capture) -> None:
    """As with Stability's files; and the set tells where, for whoever draws from a run on it."""
    write_encoders(place / "sd3", ["clip_l"])
    (place / "words").mkdir()
    (place / "sd3" / "tokenizer").rename(place / "words" / "tokenizer")
    asked = encode(place, "--clip-l", str(place / "sd3"), "--encoders", "")
    assert cli.main(asked) == 2
    refused(capsys, "tokenizer")
    assert cli.main([*asked, "--tokenizers", str(place / "in")]) == 2
    refused(capsys, f"tokenizers={place / 'in'}: expected a folder with tokenizer, tokenizer_2, tokenizer_3 in it")
    assert cli.main([*asked, "--tokenizers", str(place / "words")]) == 0
    found = open_encoded("set", place / "out")
    assert found is not None and found.text["clip_l"].tokenizer == str(place / "words" / "tokenizer")
    again = open_text_encoder(found, "clip_l", None)
    assert again.fingerprint == found.text["clip_l"].fingerprint
    (place / "words" / "tokenizer").rename(place / "sd3" / "tokenizer")
    assert open_text_encoder(found, "clip_l", None).fingerprint == again.fingerprint


def test_a_source_that_changes_meanwhile(place: Path, capsys: Capture) -> None:
    """Other bytes under the same names are seen: what the scan found no longer holds."""
    assert cli.main(encode(place, "--dry-run")) == 0
    (place / "in" / "000" / "000004.png").write_bytes(png(emoji(30)[0][29]))
    capsys.readouterr()
    assert cli.main(encode(place)) == 2
    refused(capsys, "000/000004.png has changed since it was scanned", "_scans")
    assert not list((place / "out" / "set").glob("*.array_record")) and not list((place / "out" / "set").glob(".*.tmp"))


def test_infinite_latents_are_refused(place: Path, capsys: Capture) -> None:
    """Weights that overflow, as half precision does, name themselves and the first image."""
    import safetensors.numpy

    file = place / "vae" / "diffusion_pytorch_model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file({name: array * np.float32(1e30) for name, array in arrays.items()}, file)
    assert cli.main(encode(place)) == 2
    refused(capsys, "vae: latents of 000/000000.png are not finite")


def test_inspect_shows_what_was_encoded(place: Path, capsys: Capture) -> None:
    """The picture has the decoded means; a cut-off shard, another autoencoder and an unfinished set are told apart."""
    Image.effect_noise((70, 40), 60).convert("RGB").save(place / "in" / "wide.png")
    (place / "in" / "wide.txt").write_text("wide noise")
    assert cli.main(encode(place, "--multiple", "8")) == 0
    capsys.readouterr()
    look = ["data", "inspect", "set", "--data-dir", str(place / "out")]
    assert cli.main([*look, "--out", str(place / "look.png")]) == 0
    text = capsys.readouterr().out
    assert "24x40: 1 train, 0 validation" in text and "wide noise" in text and "words: 16 tokens of 64" in text
    # The first in the row is the first of the first bucket: the image decoded from its mean, enlarged 3 times.
    picture = np.asarray(Image.open(place / "look.png").convert("RGB"))
    vae = load_autoencoder(place / "vae")
    mean, _ = vae.encode(emoji(1)[0])
    rounded = mean.astype(ml_dtypes.bfloat16).astype(np.float32)
    wanted = vae.decode(np.asarray((rounded - vae.shift) * vae.scale))[0].repeat(3, 0).repeat(3, 1).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(picture, wanted.shape)[:, :, 0]
    candidates = np.argwhere(np.abs(windows[:, :, 0, 0].astype(int) - wanted[0, 0]).max(-1) <= 2)
    assert any(np.abs(windows[y, x].astype(int) - wanted).max() <= 2 for y, x in candidates)

    shutil.copytree(place / "vae", place / "kept")
    write_vae(place / "vae", AutoencoderConfig(4, (8, 8, 8, 8), 1, 4, False))
    assert cli.main([*look, "--out", str(place / "look.png")]) == 2
    assert "was encoded by" in capsys.readouterr().err
    assert cli.main([*look, "--out", str(place / "look.png"), "--vae", str(place / "kept")]) == 0
    capsys.readouterr()
    shard = next((place / "out" / "set").glob("train-24x40*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert cli.main(look) == 2
    refused(capsys, shard.name, "manifest.json and run its `mmdit data encode` again")
    # As it says: without the manifest the same command writes the shard again.
    (place / "out" / "set" / "manifest.json").unlink()
    assert cli.main(look) == 2
    refused(capsys, "not finished")
    again = encode(place, "--multiple", "8", "--vae", str(place / "kept"))
    assert cli.main(again) == 0
    assert json.loads(capsys.readouterr().out)["encoded_now"] == 1
    assert cli.main(look) == 0


@pytest.mark.slow
def test_disk_full_and_sigterm(place: Path, mmdit: Any) -> None:
    """One line and exit 2, exit 75; what is there stays, and the set is finished afterwards with the same bytes."""

    def limited(*more: str) -> str:
        """stderr of a run whose files may have 70 kB each."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, before[1]))
        try:
            process = mmdit.start(*encode(place, *more))  # it inherits the limit
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        return str(err)

    for more in ((), ("--processes", "2")):
        lines = [line for line in limited(*more).splitlines() if line.startswith("mmdit: ")]
        assert len(lines) == 1 and "disk full" in lines[0] and ".array_record" in lines[0]
    folder = place / "out" / "set"
    assert not list(folder.glob(".*.tmp")) and not (folder / "manifest.json").exists()

    shards = ("--shard-examples", "2", "--batch", "1")
    process = mmdit.start(*encode(place, *shards, name="stopped"))
    deadline = time.monotonic() + 60
    while not list(place.glob("out/stopped/.*.tmp")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, (out, err)
    assert len([line for line in err.splitlines() if line.startswith("mmdit: ")]) == 1
    for name in ("stopped", "whole"):
        assert mmdit(*encode(place, *shards, name=name)).returncode == 0
    for path in (place / "out" / "whole").glob("*"):
        assert path.is_dir() or path.read_bytes() == (place / "out" / "stopped" / path.name).read_bytes()
