"""The emoji that ship: their number, splits that share no emoji, captions, licences, and the TFDS builder."""

from __future__ import annotations

import collections
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmdit_jax.data.emoji import assets
from mmdit_jax.data.pipeline import load, prepare
from mmdit_jax.errors import UserError


def test_assets_are_whole() -> None:
    rows, images = assets.load()
    assert len(rows) == len(images) == 3139 and images.dtype == np.uint8
    assert len({row.code for row in rows}) == 3139
    assert all(row.label and row.group for row in rows)
    # Drawings, not blanks: every image has white background and something on it.
    assert np.all(images.reshape(3139, -1).std(axis=1) > 3)
    by_code = dict(zip([row.code for row in rows], images, strict=True))
    red_heart, green_apple = by_code["2764"][32, 32].astype(int), by_code["1f34f"][40, 24].astype(int)
    assert red_heart[0] > red_heart[1:].max() + 80 and green_apple[1] > green_apple[[0, 2]].max() + 20
    notice = (assets.IMAGES.parent / "NOTICE.txt").read_text()
    assert "Copyright (c) Microsoft Corporation" in notice and "Miles Johnson" in notice
    assert notice.count("Permission is hereby granted") == 2
    assert sum(path.stat().st_size for path in (assets.IMAGES, assets.TABLE)) < 5e6


def test_splits_share_no_emoji() -> None:
    rows, images = assets.load()
    splits = {row.code: assets.split_of(row.code) for row in rows}
    share = collections.Counter(splits.values())["validation"] / len(rows)
    assert 0.07 < share < 0.13
    # Skin tones and genders of one emoji stay together ("waving hand"; man, woman and person running).
    for family in (["1f44b", "1f44b-1f3fb", "1f44b-1f3ff"], ["1f3c3", "1f3c3-1f3fd-200d-2640", "1f3c3-200d-2642"]):
        assert len({assets.base_code(code) for code in family}) == len({splits[code] for code in family}) == 1
    by_label = collections.defaultdict(set)
    for row in rows:
        by_label[re.sub(r":? ?(medium-)?(light|medium|dark) skin tone,?", "", row.label)].add(splits[row.code])
    assert len(by_label) < 2000 and all(len(found) == 1 for found in by_label.values())
    # Independent of codes: no drawing of the validation split occurs in the training split.
    drawings = collections.defaultdict(set)
    for row, image in zip(rows, images, strict=True):
        drawings[image.tobytes()].add(splits[row.code])
    assert all(len(found) == 1 for found in drawings.values())


def test_captions_vary_and_start_with_the_label() -> None:
    rows = assets.load()[0]
    extra = []
    for row in rows:
        caption = row.caption()
        assert caption.startswith(row.label)
        said = caption[len(row.label) + 2 :]
        tags = said.split(", ") if said else []
        assert set(tags) <= set(row.tags)
        extra.append(len(tags))
    assert set(extra) == {0, 1, 2, 3, 4} and 1 < np.mean(extra) < 3


def test_smaller_images_are_averages() -> None:
    full = assets.images_at(64)
    half = assets.images_at(32)
    for i in (0, 1000, 3138):
        expected = full[i, 10:12, 20:22].astype(float).mean(axis=(0, 1))
        np.testing.assert_allclose(half[i, 5, 10], expected, atol=0.51)
    with pytest.raises(UserError, match="resolution=48"):
        assets.images_at(48)


def test_builder_gives_back_the_assets(tmp_path: Path) -> None:
    prepare("emoji", tmp_path, resolution=16)
    data = load("emoji", tmp_path, resolution=16)
    images = assets.images_at(16)
    for name in ("train", "validation"):
        split = data.split(name)
        expected = [i for i, row in enumerate(assets.load()[0]) if assets.split_of(row.code) == name]
        assert len(split) == len(expected) and split.captions == [assets.load()[0][i].caption() for i in expected]
        np.testing.assert_array_equal(split.images, images[expected])
        record = split[7]
        np.testing.assert_array_equal(record["image"], images[expected[7]])
        assert record["caption"] == split.captions[7]


def test_no_tensorflow() -> None:
    code = (
        "import sys, tempfile;"
        "from mmdit_jax.data.batches import batches; from mmdit_jax.data.pipeline import load, prepare;"
        "d = tempfile.mkdtemp();"
        "prepare('emoji', d, resolution=16); s = load('emoji', d, resolution=16).split('train');"
        "print(next(batches(s, batch=4, seed=0))['image'].shape, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "(4, 16, 16, 3) False"
