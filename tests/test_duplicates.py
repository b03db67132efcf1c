"""Duplicates whose answer is known: copies that we make ourselves, and pairs found by brute force."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from encode_sets import emoji, png, write_folder
from PIL import Image, ImageEnhance

from launch import cli
from mmdit_jax.data import duplicates
from mmdit_jax.errors import UserError


def photos(count: int, seed: int = 0, side: int = 96) -> list[np.ndarray]:
    """Images with the spectrum of photographs (power falling as 1/f^2.6), in correlated colours."""
    random = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
    frequency = np.maximum(np.hypot(rows, columns), 1 / side)[..., None]
    found = []
    for _ in range(count):
        noise = np.fft.ifft2(
            np.fft.fft2(random.normal(size=(side, side, 3)), axes=(0, 1)) / frequency**1.3, axes=(0, 1)
        )
        mixed = noise.real @ (0.6 + 0.5 * random.normal(size=(3, 3)))
        levels = (mixed - mixed.mean()) / mixed.std() * random.uniform(35, 60) + random.uniform(90, 160)
        found.append(np.clip(levels, 0, 255).astype(np.uint8))
    return found


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def crop(share: float) -> Callable[[Image.Image], Image.Image]:
    """Take ``share`` off the width and the height."""

    def change(image: Image.Image) -> Image.Image:
        x, y = image.width * share / 2, image.height * share / 2
        return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))

    return change


CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], float]] = {
    "jpeg 75": (jpeg(75), 0.99),
    "jpeg 30": (jpeg(30), 0.99),
    "half": (lambda image: image.resize((image.width // 2, image.height // 2)), 0.99),
    "larger": (lambda image: image.resize((image.width * 2, image.height * 2)), 0.99),
    "darker": (lambda image: ImageEnhance.Brightness(image).enhance(0.8), 0.99),
    "brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.2), 0.95),
    "2 % cropped": (crop(0.02), 0.95),
    "5 % cropped": (crop(0.05), 0.6),
}
"""Changes that leave the same picture, and the share that the default distance has to find."""


@pytest.fixture(scope="module")
def originals() -> list[np.ndarray]:
    return photos(150)


def marks(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    found = [duplicates.fingerprint(image) for image in images]
    return np.array([f.perceptual for f in found], np.uint64), np.array([f.colours for f in found])


@pytest.mark.parametrize("name", CHANGES)
def test_changed_copies_are_found_and_nothing_else(name: str, originals: list[np.ndarray]) -> None:
    change, wanted = CHANGES[name]
    copies = [np.asarray(change(Image.fromarray(image))) for image in originals]
    hashes, colours = marks(originals + copies)
    pairs = duplicates.near_duplicates(hashes, colours)
    count = len(originals)
    true = pairs[pairs[:, 1] - pairs[:, 0] == count]
    assert len(true) >= wanted * count, len(true) / count
    assert len(pairs) == len(true)


def test_far_more_cropped_is_another_picture(originals: list[np.ndarray]) -> None:
    """The method's limit, as docs/data.md states it: a fifth cropped away, or mirrored, is not found."""
    for change in (crop(0.2), lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        copies = [np.asarray(change(Image.fromarray(image))) for image in originals]
        hashes, colours = marks(originals + copies)
        assert len(duplicates.near_duplicates(hashes, colours)) < 0.05 * len(originals)


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 6, 7, 8, 11])
def test_near_pairs_are_those_of_brute_force(distance: int) -> None:
    random = np.random.default_rng(distance)
    hashes = random.integers(0, 2**64, 300, dtype=np.uint64)
    for item in range(150, 300):
        hashes[item] = hashes[item - 150]
        for bit in random.choice(64, random.integers(0, 13), replace=False):
            hashes[item] ^= np.uint64(1 << int(bit))
    values = [int(value) for value in hashes]
    near = [[i, j] for i, j in itertools.combinations(range(300), 2) if (values[i] ^ values[j]).bit_count() <= distance]
    assert len(near) > 2
    assert duplicates.near_pairs(hashes, distance).tolist() == near


def test_many_equal_hashes_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", 100)
    pairs = duplicates.near_pairs(np.zeros(60, np.uint64), 2)
    assert pairs.tolist() == [list(pair) for pair in itertools.combinations(range(60), 2)]


def test_groups_are_what_pairs_connect() -> None:
    random = np.random.default_rng(1)
    pairs = np.sort(random.integers(0, 80, (45, 2)), axis=1)
    label = list(range(80))
    for _ in range(80):
        for a, b in pairs.tolist():
            label[a] = label[b] = min(label[a], label[b])
    assert duplicates.groups(80, pairs).tolist() == label
    assert duplicates.groups(3, np.zeros((0, 2), np.int64)).tolist() == [0, 1, 2]


def test_bad_distance() -> None:
    with pytest.raises(UserError, match=r"distance=12: expected 0 to 11"):
        duplicates.near_pairs(np.zeros(2, np.uint64), 12)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], originals: list[np.ndarray]) -> None:
    """Exact copies in another format, near copies, a damaged file: each counted, and shown on the page."""
    images = originals[:12]
    write_folder(tmp_path / "in", images, [f"picture {i}" for i in range(12)])
    Image.fromarray(images[3]).save(tmp_path / "in" / "same.bmp")
    Image.fromarray(images[4]).save(tmp_path / "in" / "near.jpg", quality=60)
    (tmp_path / "in" / "torn.png").write_bytes(png(images[5])[:300])
    for name in ("same", "near", "torn"):
        (tmp_path / "in" / f"{name}.txt").write_text(name)
    given = ["data", "duplicates", str(tmp_path / "in"), "--data-dir", str(tmp_path / "out"), "--quiet", "--json"]
    assert cli.main([*given, "--report", str(tmp_path / "page.html")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["unusable"], told["exact_extra"], told["near_extra"]) == (15, 1, 1, 1)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 2 + 2 + 2 and "same.bmp" in page and "near.jpg" in page
    assert cli.main([*given, "--report", str(tmp_path / "groups.json")]) == 0
    groups = json.loads((tmp_path / "groups.json").read_text())
    assert groups["exact"] == [["000/000003.png", "same.bmp"]] and groups["near"] == [["000/000004.png", "near.jpg"]]
    capsys.readouterr()
    assert cli.main([*given, "--report", str(tmp_path / "page.pdf")]) == 2
    assert ".html or .json" in capsys.readouterr().err
    assert cli.main([*given[:2], "nowhere", "--distance", "12"]) == 2  # said before anything is looked at
    assert "distance=12: expected 0 to 11" in capsys.readouterr().err
    (tmp_path / "in" / "same.bmp").write_bytes(b"torn since")
    assert cli.main([*given, "--report", str(tmp_path / "page.html")]) == 2
    err = capsys.readouterr().err
    assert "same.bmp has changed since it was scanned" in err and "_scans" in err and len(err.splitlines()) == 1


def test_icons_are_often_alike() -> None:
    """What docs/data.md warns of: many of the flat emoji pass for near duplicates, and few of those are."""
    images, _ = emoji(10_000)
    hashes, colours = marks(list(images[:1000]))
    roots = duplicates.groups(1000, duplicates.near_duplicates(hashes, colours))
    assert 0.1 < 1 - len(np.unique(roots)) / 1000 < 0.6
