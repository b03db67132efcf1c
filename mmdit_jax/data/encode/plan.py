"""From scans to shards: which items stay, their split and bucket, and which shard each goes to. Pure, deterministic."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmdit_jax.data import duplicates
from mmdit_jax.data.encode.buckets import Bucket, bucket_list, enlargement, merge_sparse, nearest
from mmdit_jax.data.encode.scan import Scan
from mmdit_jax.data.encode.settings import ScanSettings
from mmdit_jax.data.store import SPLITS


@dataclass(frozen=True)
class Unit:
    """One shard: examples of one split and one bucket."""

    file: str
    split: str
    bucket: Bucket
    """(h, w), pixels."""
    items: np.ndarray
    """Numbers of items in the whole source's order, int64, ascending."""


@dataclass(frozen=True)
class Plan:
    """What will be written."""

    units: tuple[Unit, ...]
    dropped: tuple[tuple[str, str], ...]
    """(key, reason), in the source's order."""
    buckets: tuple[tuple[Bucket, int, int], ...]
    """(bucket, images of train, images of validation), those in use."""
    reasons: dict[str, int]
    """Items dropped, by kind of reason."""

    @property
    def examples(self) -> dict[str, int]:
        """Items of each split."""
        return {split: sum(len(unit.items) for unit in self.units if unit.split == split) for split in SPLITS}


def make_plan(scan: Scan, settings: ScanSettings) -> Plan:
    """Decide on every item.

    Filters come first, then duplicates (the first of each group stays), then the split, by a hash of the content of
    an item's group of duplicates, so that no picture is on both sides; then buckets and shards, in the source's order.

    Args:
        scan: of the whole source.
        settings: of the set.

    Raises:
        UserError: settings that can't be.
    """
    buckets = bucket_list(settings.size, settings.multiple, settings.bucket_aspect)
    reasons, place = filtered(scan, settings, buckets)
    kept = np.flatnonzero([not reason for reason in reasons])
    group = _groups(scan, kept, settings)
    if settings.dedupe != "none":
        for item, first in zip(kept[group != kept], group[group != kept], strict=True):
            reasons[item] = f"duplicate of {scan.entries[first].key}"
        kept = kept[group == kept]
        group = kept
    validation = _validation(scan.pixels, kept, group, settings)
    counts = np.bincount(place[kept[~validation]], minlength=len(buckets))
    if validation.all():
        counts = np.bincount(place[kept], minlength=len(buckets))
    target = np.array(merge_sparse(counts.tolist(), buckets, settings.min_bucket))
    used = np.flatnonzero(counts)
    if len(used):
        # A bucket that only validation has would be a shape that training never compiles.
        stays = np.unique(target[used])
        logs = np.log([w / h for h, w in buckets])
        lone = [b for b in range(len(buckets)) if target[b] not in stays]
        for bucket in lone:
            target[bucket] = stays[np.argmin(np.abs(logs[stays] - logs[bucket]))]
    final = target[place[kept]]
    units = [
        unit
        for split, member in zip(SPLITS, (~validation, validation), strict=True)
        for number, bucket in enumerate(buckets)
        for unit in _cut(split, bucket, kept[member & (final == number)], settings.shard_examples)
    ]
    dropped = tuple((scan.entries[i].key, reason) for i, reason in enumerate(reasons) if reason)
    sizes = [
        (b, int((final[~validation] == n).sum()), int((final[validation] == n).sum())) for n, b in enumerate(buckets)
    ]
    kinds = collections.Counter(_kind(reason) for _, reason in dropped)
    return Plan(tuple(units), dropped, tuple(size for size in sizes if size[1] + size[2]), dict(sorted(kinds.items())))


def filtered(scan: Scan, settings: ScanSettings, buckets: Sequence[Bucket]) -> tuple[list[str], np.ndarray]:
    """Why each item is dropped ("" where it is not), and its bucket's number, int64 [N]."""
    reasons = list(scan.problems)
    usable = np.flatnonzero([not reason for reason in reasons])
    place = np.zeros(len(scan), np.int64)
    if not len(usable):
        return reasons, place
    heights, widths = scan.sizes[usable].astype(np.float64).T
    place[usable] = nearest(heights, widths, buckets)
    factor = enlargement(heights, widths, np.array(buckets)[place[usable]])
    aspect = np.maximum(heights / widths, widths / heights)
    for item, height, width, grown, ratio in zip(usable, heights, widths, factor, aspect, strict=True):
        size = f"{int(height)}x{int(width)}"
        if min(height, width) < settings.min_size:
            reasons[item] = f"too small: {size}, shorter side below {settings.min_size}"
        elif ratio > settings.max_aspect:
            reasons[item] = f"too long: {size}, aspect above {settings.max_aspect:g}"
        elif grown > settings.max_upsample + 1e-9:
            reasons[item] = f"too small: {size}, would be enlarged {grown:.2f} times"
    return reasons, place


def _groups(scan: Scan, kept: np.ndarray, settings: ScanSettings) -> np.ndarray:
    """The first item of each kept item's group of duplicates, int64."""
    root = duplicates.groups(len(kept), duplicates.exact_pairs(scan.pixels[kept]))
    if settings.dedupe == "perceptual":
        # One of those with the same pixels stands for all: copies of one picture are as many pairs as their square.
        single = np.unique(root)
        items = kept[single]
        near = duplicates.near_duplicates(scan.perceptual[items], scan.colours[items], settings.distance)
        root = single[duplicates.groups(len(single), near)[np.searchsorted(single, root)]]
    return kept[root]


def _validation(pixels: np.ndarray, kept: np.ndarray, group: np.ndarray, settings: ScanSettings) -> np.ndarray:
    """Which kept items are split validation, bool: whole groups in the order of a hash of their first one's pixels."""
    wanted = settings.validation_items(len(kept))
    chosen = np.zeros(len(kept), bool)
    if not wanted:
        return chosen
    firsts, which, sizes = np.unique(group, return_inverse=True, return_counts=True)
    rank = [_keyed(settings.seed, pixels[item].tobytes()) for item in firsts]
    taken = np.zeros(len(firsts), bool)
    for number in np.argsort(np.array(rank, np.uint64), kind="stable"):
        if sizes[number] <= wanted:
            taken[number] = True
            wanted -= int(sizes[number])
        if not wanted:
            break
    return taken[which]


def _keyed(seed: int, content: bytes) -> int:
    digest = hashlib.blake2b(content, digest_size=8, key=f"validation:{seed}".encode()).digest()
    return int.from_bytes(digest, "little")


def _cut(split: str, bucket: Bucket, items: np.ndarray, most: int) -> list[Unit]:
    """Shards of at most ``most`` examples, as even as can be."""
    count = -(-len(items) // most)
    name = f"{split}-{bucket[0]}x{bucket[1]}"
    pieces = np.array_split(items, count) if count else []
    return [Unit(f"{name}-{i:05d}-of-{count:05d}.array_record", split, bucket, piece) for i, piece in enumerate(pieces)]


def _kind(reason: str) -> str:
    """A reason without the particulars, for counting."""
    if reason.startswith("duplicate of"):
        return "duplicate"
    return reason.split(":")[0].split(" (")[0]
