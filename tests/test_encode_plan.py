"""Buckets, crops, splits and claims against brute force and real processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdit_jax.data.duplicates import GRID
from mmdit_jax.data.encode.buckets import bucket_list, enlargement, fit, merge_sparse, nearest
from mmdit_jax.data.encode.claims import Claims
from mmdit_jax.data.encode.plan import make_plan
from mmdit_jax.data.encode.scan import Scan
from mmdit_jax.data.encode.settings import EncoderSpec, ScanSettings, Settings, difference
from mmdit_jax.data.encode.sizes import PAPER_KB, latent_bytes, text_bytes
from mmdit_jax.data.encode.workers import device_environment
from mmdit_jax.data.sources import Entry, SourceOptions
from mmdit_jax.errors import UserError
from mmdit_jax.models.text.pre_encoded import PRE_ENCODED


@pytest.mark.parametrize(("size", "multiple"), [(256, 16), (256, 64), (512, 64), (1024, 64), (64, 8), (32, 16)])
@pytest.mark.parametrize("aspect", [1.0, 2.0, 4.0])
def test_buckets(size: int, multiple: int, aspect: float) -> None:
    """Multiples, within the aspect, turned ones too; no height twice, and none of its widths is nearer to S²."""
    buckets = bucket_list(size, multiple, aspect)
    assert (size, size) in buckets and len(set(buckets)) == len(buckets)
    assert {(w, h) for h, w in buckets} == set(buckets)
    assert [w / h for h, w in buckets] == sorted(w / h for h, w in buckets)
    wide = {h: w for h, w in buckets if w >= h}
    assert len(wide) == (len(buckets) + 1) // 2
    for h, w in wide.items():
        assert h % multiple == w % multiple == 0 and w / h <= aspect
        # S²/w is nearest to h among multiples, for this w and no other that is nearer to S².
        same = [
            other
            for other in range(size, 16 * size, multiple)
            if min(range(multiple, size + 1, multiple), key=lambda m: abs(m - size**2 / other)) == h
            and other <= h * aspect
        ]
        assert w in same and abs(w * h - size**2) == min(abs(other * h - size**2) for other in same)


def test_buckets_of_the_docs() -> None:
    wide = [(256, 256), (240, 272), (224, 288), (208, 320), (192, 336)]
    assert bucket_list(256, 16, 2.0) == (*((w, h) for h, w in reversed(wide[1:])), *wide)
    assert all(abs(h * w / 256**2 - 1) < 0.02 for h, w in wide)


def test_nearest_is_nearest() -> None:
    random = np.random.default_rng(0)
    buckets = bucket_list(256, 16, 2.0)
    heights, widths = np.exp(random.uniform(4, 8, (2, 500)))
    for h, w, found in zip(heights, widths, nearest(heights, widths, buckets), strict=True):
        distance = [abs(math.log(w / h) - math.log(bw / bh)) for bh, bw in buckets]
        assert distance[found] == min(distance)


def test_fit_covers_and_centres() -> None:
    """A gradient keeps its middle and its slope; an image of the bucket's size keeps its bits."""
    for height, width, bucket in ((90, 200, (48, 64)), (301, 77, (64, 32)), (40, 41, (48, 48))):
        rows, columns = np.meshgrid(np.linspace(0, 255, height), np.linspace(0, 255, width), indexing="ij")
        image = np.stack([rows, columns, 0 * rows], -1).round().astype(np.uint8)
        found = fit(image, bucket).astype(float)
        scale = max(bucket[0] / height, bucket[1] / width)
        assert found.shape == (*bucket, 3)
        assert abs(found[..., 0].mean() - 127.5) < 1.5 and abs(found[..., 1].mean() - 127.5) < 1.5
        shown = min(1.0, bucket[0] / height / scale), min(1.0, bucket[1] / width / scale)
        for channel, profile in enumerate((found[:, :, 0].mean(1), found[:, :, 1].mean(0))):
            assert abs((profile[-1] - profile[0]) / 255 - shown[channel]) < 0.06
    exact = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit(exact, (32, 48)), exact)
    # Antialiased: the finest checkerboard becomes grey, not a moiré.
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    assert abs(fit(board, (60, 60)).astype(float) - 127.5).max() < 20
    grown = enlargement(np.array([100.0, 40]), np.array([200.0, 41]), np.array([[48, 64], [48, 48]]))
    np.testing.assert_allclose(grown, [0.48, 1.2])


@pytest.mark.parametrize("seed", range(20))
def test_merged_buckets(seed: int) -> None:
    random = np.random.default_rng(seed)
    buckets = bucket_list(256, 16, 2.0)
    counts = (random.integers(0, 30, len(buckets)) * random.integers(0, 2, len(buckets))).tolist()
    least = int(random.integers(1, 40))
    target = merge_sparse(counts, buckets, least)
    held = [sum(count for count, into in zip(counts, target, strict=True) if into == b) for b in range(len(buckets))]
    assert sum(held) == sum(counts)
    used = [count for count in held if count]
    assert not used or min(used) >= least or len(used) == 1
    if all(count >= least for count in counts if count):
        assert target == list(range(len(buckets)))


def scan_of(sizes: np.ndarray, pixels: np.ndarray, problems: list[str] | None = None) -> Scan:
    """A scan whose images have these sizes and pixel hashes, and perceptual hashes far apart unless pixels agree."""
    count = len(sizes)
    spread = np.random.default_rng(99).integers(0, 2**64, 10_000, dtype=np.uint64)
    return Scan(
        [Entry(f"k{i:04d}", {}) for i in range(count)],
        problems or [""] * count,
        sizes.astype(np.int32),
        np.arange(count, dtype=np.uint64),
        np.stack([pixels, pixels], 1).astype(np.uint64),
        spread[pixels],
        np.zeros((count, GRID, GRID, 3), np.uint8),
    )


@pytest.mark.parametrize("dedupe", ["none", "exact", "perceptual"])
@pytest.mark.parametrize("validation", ["0", "40", "0.25", "1.0", "auto"])
def test_plan_has_every_item_once_and_no_leak(dedupe: str, validation: str) -> None:
    random = np.random.default_rng(3)
    sizes, pixels = random.integers(20, 400, (400, 2)), random.integers(0, 150, 400)
    problems = ["no caption" if i % 50 == 7 else "" for i in range(400)]
    scan = scan_of(sizes, pixels, problems)
    settings = ScanSettings(
        "s", size=64, min_size=32, validation=validation, dedupe=dedupe, shard_examples=16, min_bucket=5
    )
    plan = make_plan(scan, settings)
    places = {int(item): unit for unit in plan.units for item in unit.items}
    assert len(places) == sum(len(unit.items) for unit in plan.units)
    dropped = {int(key[1:]) for key, _ in plan.dropped}
    assert not dropped & set(places) and len(dropped) + len(places) == 400
    assert sum(plan.reasons.values()) == len(dropped)
    sides: dict[int, set[str]] = {}
    for item, unit in places.items():
        sides.setdefault(int(pixels[item]), set()).add(unit.split)
        height, width = sizes[item]
        assert min(height, width) >= 32 and max(height / width, width / height) <= 3
        assert max(unit.bucket[0] / height, unit.bucket[1] / width) <= 1.25 * 1.35  # merged buckets may need more
    assert all(len(splits) == 1 for splits in sides.values())
    if dedupe != "none":
        assert len(sides) == len(places)
        kept = {int(pixels[item]): item for item in places}
        for key, reason in plan.dropped:
            if reason.startswith("duplicate of"):
                first = int(reason.removeprefix("duplicate of k"))
                assert first < int(key[1:]) and kept[int(pixels[int(key[1:])])] == first
    wanted = settings.validation_items(len(places))
    assert plan.examples["validation"] == wanted
    for unit in plan.units:
        assert 0 < len(unit.items) <= 16 and (np.diff(unit.items) > 0).all()
    assert len({unit.file for unit in plan.units}) == len(plan.units)
    buckets = {"train": {u.bucket for u in plan.units if u.split == "train"}}
    buckets["validation"] = {u.bucket for u in plan.units if u.split == "validation"}
    assert validation == "1.0" or buckets["validation"] <= buckets["train"]
    assert make_plan(scan, settings).dropped == plan.dropped


def test_many_copies_of_one_picture() -> None:
    """As "image not available" in a crawl: near duplicates are looked for among different pictures only."""
    pixels = np.concatenate([np.zeros(4000, np.int64), np.arange(20)])
    scan = scan_of(np.full((len(pixels), 2), 64), pixels)
    scan.perceptual[4001:4003] = scan.perceptual[0]  # of other pixels: near ones
    tracemalloc.start()
    plan = make_plan(scan, ScanSettings("s", size=64, dedupe="perceptual", validation="0"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.examples["train"] == 18 and plan.reasons == {"duplicate": 4002}
    assert {reason for _, reason in plan.dropped} == {"duplicate of k0000"}
    assert peak < 50e6, peak  # all pairs of copies take hundreds of megabytes


def test_validation_follows_content_not_order() -> None:
    """The same pictures in another order, with more beside them, fall on the same side, as far as shares allow."""
    sizes = np.full((1000, 2), 64)
    settings = ScanSettings("s", size=64, validation="0.2")

    def held(pixels: np.ndarray) -> set[int]:
        plan = make_plan(scan_of(sizes[: len(pixels)], pixels), settings)
        return {int(pixels[item]) for unit in plan.units if unit.split == "validation" for item in unit.items}

    first, again = held(np.arange(1000)), held(np.arange(1000)[::-1].copy())
    assert first == again and len(first) == 200
    few = held(np.arange(500))
    assert len(few & first) >= 0.75 * len(few)
    assert held(np.arange(1000)) != {i for i in range(200)}


def test_no_usable_item() -> None:
    plan = make_plan(scan_of(np.zeros((3, 2)), np.arange(3), ["no caption"] * 3), ScanSettings("s", size=64))
    assert plan.units == () and plan.reasons == {"no caption": 3}


def test_table_7() -> None:
    """Shapes give the paper's kilobytes; the CLIPs' less two bytes a pooled channel, which it keeps in float32."""
    assert round(latent_bytes((256, 256), 16, 8) / 1e3, 1) == PAPER_KB["vae"]
    for name in ("clip_l", "clip_g"):
        encoder = PRE_ENCODED[name]
        assert round((text_bytes(encoder) + 2 * encoder.pooled_width) / 1e3, 1) == PAPER_KB[name]
    assert abs(2 * 77 * 4096 / 1e3 - PAPER_KB["t5"]) < 0.1


def test_settings_survive_and_differ() -> None:
    scan = ScanSettings("s", SourceOptions(tfds_split="x"), validation="0.1")
    settings = Settings(scan, "vae", (EncoderSpec("t5", "sd3", 256), EncoderSpec("words")), batch=3)
    assert Settings.from_json(settings.to_json()) == settings
    told = [ScanSettings("s").validation_items(total) for total in (0, 1, 2, 101, 50_000, 10**7)]
    assert told == [0, 0, 1, 2, 500, 2000]
    assert difference({"a": 1, "b": [2]}, {"b": [2], "a": 1}) is None
    assert difference({"a": 1, "size": 256}, {"a": 1, "size": 512}) == "size was 256, is 512"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("dedupe", "exakt", "did you mean 'exact'"),
        ("validation", "many", "number of items"),
        ("validation", "1.5", "number of items"),
        ("validation", "-3", "number of items"),
        ("synthetic_share", 1.5, "0 to 1"),
        ("min_size", -1, "0 or more"),
        ("max_upsample", float("nan"), "0.01 or more"),
        ("shard_examples", 0, "1 or more"),
    ],
)
def test_bad_settings(field: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ScanSettings("s", **{field: value})


def test_gpus_are_shared_out() -> None:
    assert device_environment(3, 4, []) == {} and device_environment(0, 1, ["0", "1"]) == {}
    given = [device_environment(n, 4, ["5", "7"]) for n in range(4)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in given] == ["5", "7", "5", "7"]
    assert {environment["XLA_CLIENT_MEM_FRACTION"] for environment in given} == {"0.450"}
    assert device_environment(1, 2, ["0", "1"]) == {"CUDA_VISIBLE_DEVICES": "1"}


def _hold(path: Path, piece: int, held: Any) -> None:
    with Claims(path).attempt(piece) as mine:
        held.value = 1 if mine else 2
        time.sleep(60)


def test_a_claim_dies_with_its_holder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Value("i", 0)
    process = context.Process(target=_hold, args=(tmp_path / "lock", 5, held))
    process.start()
    deadline = time.monotonic() + 60
    while not held.value and time.monotonic() < deadline:
        time.sleep(0.01)
    claims = Claims(tmp_path / "lock")
    with claims.attempt(5) as mine, claims.attempt(6) as other:
        assert held.value == 1 and not mine and other
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with claims.attempt(5) as mine:
        assert mine
    claims.close()
