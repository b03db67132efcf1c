"""Encoding a whole set: scan, plan, shards, manifest. Any number of processes may call ``run`` on one folder at once.

    FOLDER/manifest.json       written last: its presence means finished
    FOLDER/*.array_record      shards
    FOLDER/dropped.jsonl       items left out, and why
    FOLDER/work                settings, plan, finished shards' accounts, claims: what a re-run goes on from
    FOLDER/../_scans/…         what was found in the source; other sets of the same source use it, too

Every file is renamed into place when it is whole, and has the same bytes whoever writes it.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from mmdit_jax.data.encode import plan_file
from mmdit_jax.data.encode.claims import Claims
from mmdit_jax.data.encode.models import describe, identity
from mmdit_jax.data.encode.plan import Unit, make_plan
from mmdit_jax.data.encode.scan import Scan, join, load, save, scan_part, scans_folder, without_places
from mmdit_jax.data.encode.settings import Settings, difference
from mmdit_jax.data.encode.shard import Changed, Models, Work, encode_shard
from mmdit_jax.data.encode.sizes import sample_bytes
from mmdit_jax.data.records import FORMAT
from mmdit_jax.data.sources import Source
from mmdit_jax.data.store import MANIFEST, SPLITS
from mmdit_jax.errors import Preempted, UserError
from mmdit_jax.files import write_atomic, write_json

_POLL = 0.5
"""Seconds between looks at what other processes have done."""
_SCANS_KEPT = 8
"""Parts in memory: of tars, each is a dozen megabytes. Shards are in the source's order, and come by few at a time."""

Report = Callable[[str, int, int], None]
"""Told (what, how many more, of how many): parts "scan"ned, images "found" encoded at the start, images "encode"d."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that share a folder; it only decides where each begins."""

    index: int = 0
    count: int = 1
    threads: int = 1
    """That read and decode images."""


class Job:
    """One process's part in encoding a set.

    Args:
        folder: of the set, on a file system that all processes see.
        source: what is encoded.
        place: this process among them.
        stop: whether to stop; asked between batches.
        report: of progress.
    """

    def __init__(self, folder: Path, source: Source, place: Place, stop: Callable[[], bool], report: Report) -> None:
        self._folder, self._source, self._place = folder, source, place
        self._stop, self._report = stop, report
        self._work = folder / "work"
        self._scans = scans_folder(folder.parent, source)
        self._scan = functools.lru_cache(maxsize=_SCANS_KEPT)(self._load_scan)

    def encode(self, settings: Settings, models: Models) -> dict[str, Any]:
        """Do what is left to do, together with others; returns the manifest.

        Raises:
            UserError: the folder was begun with other settings, or an input is bad.
            Preempted: told to stop.
            OSError: the folder can't be written.
        """
        wanted = json.loads(json.dumps(identity(settings, self._source, models)))
        if (self._folder / MANIFEST).exists():
            self._agree(json.loads((self._folder / MANIFEST).read_text())["settings"], wanted, "was encoded")
            return self._finish(settings, models, wanted, [])
        self._settle(wanted)
        self._scan_all()
        plan = self._plan(settings)
        if not plan.units:
            why = ", ".join(f"{count:,} {reason}" for reason, count in plan.reasons.items()) or "it is empty"
            raise UserError(f"source={self._source.name!r}: no image can be used ({why})")
        there = sum(len(unit.items) for unit in plan.units if _finished(self._folder, unit))
        self._report("found", there, plan.images)
        with self._pool() as pool:

            def one(number: int) -> None:
                self._encode_unit(plan, plan.units[number], settings, models, pool)

            self._all(
                self._work / "shards.lock",
                len(plan.units),
                lambda n: _finished(self._folder, plan.units[n]) is not None,
                one,
            )
        return self._finish(settings, models, wanted, list(plan.units))

    def scan(self) -> Scan:
        """Scan the parts that nobody has scanned; returns the whole."""
        self._scan_all()
        return join([self._load_scan(part) for part in range(self._source.parts)])

    def _scan_all(self) -> None:
        self._report("scan", 0, self._source.parts)
        with self._pool() as pool:

            def one(part: int) -> None:
                save(scan_part(self._source, part, pool, self._check_stop), self._scan_path(part))
                self._report("scan", 1, self._source.parts)

            lock = self._scans / "scan.lock"
            self._all(lock, self._source.parts, lambda part: self._scan_path(part).exists(), one)

    def _settle(self, wanted: dict[str, Any]) -> None:
        """Make sure that all who work in this folder want the same set."""
        path = self._work / "settings.json"
        if not path.exists():
            self._work.mkdir(parents=True, exist_ok=True)
            claims = Claims(self._work / "settings.lock")
            with claims.wait(0):
                if not path.exists():
                    write_json(path, wanted)
            claims.close()
        self._agree(json.loads(path.read_text()), wanted, "was begun")

    def _agree(self, found: dict[str, Any], wanted: dict[str, Any], how: str) -> None:
        other = difference(found, wanted)
        if other:
            raise UserError(f"{self._folder}: {how} with other settings ({other}); give another --name, or delete it")

    def _plan(self, settings: Settings) -> plan_file.Stored:
        path = self._work / "plan.npz"

        def one(_: int) -> None:
            parts = [without_places(self._load_scan(part)) for part in range(self._source.parts)]
            plan_file.save(make_plan(join(parts), settings.scan), [len(part) for part in parts], path)

        self._all(self._work / "plan.lock", 1, lambda _: path.exists(), one)
        return plan_file.load(path)

    def _encode_unit(
        self, plan: plan_file.Stored, unit: Unit, settings: Settings, models: Models, pool: ThreadPoolExecutor
    ) -> None:
        self._check_stop()
        work = []
        for item in unit.items.tolist():
            part, row = plan.locate(item)
            scan = self._scan(part)
            work.append(Work(scan.entries[row], int(scan.content[row])))

        def progress(images: int) -> None:
            self._report("encode", images, plan.images)
            self._check_stop()

        choice = (settings.scan.seed, settings.scan.synthetic_share)
        path = self._folder / unit.file
        try:
            account = encode_shard(
                work, unit.bucket, self._source, models, settings.batch, choice, path, pool, progress
            )
        except Changed as error:
            raise UserError(f"{error}; delete {self._scans}, and give another --name") from None
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            size = f"images of {unit.bucket[0]}x{unit.bucket[1]}"
            raise UserError(
                f"batch={settings.batch}: not enough memory for {size}; give a smaller --batch (and another --name)"
            ) from None
        factor = models.vae.factor
        bucket = [unit.bucket[0] // factor, unit.bucket[1] // factor]
        told = {"file": unit.file, "split": unit.split, "bucket": bucket, "examples": len(unit.items), **account}
        write_json(_account(self._folder, unit), told)

    def _finish(self, settings: Settings, models: Models, wanted: dict[str, Any], units: list[Unit]) -> dict[str, Any]:
        """The manifest, written unless it is there."""
        path = self._folder / MANIFEST

        def one(_: int) -> None:
            for half in self._folder.glob(".*.array_record.*.tmp"):
                half.unlink(missing_ok=True)  # of a host that died: every shard is finished
            plan = plan_file.load(self._work / "plan.npz")
            splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
            synthetic = 0
            for unit in units:
                account = _finished(self._folder, unit)
                assert account is not None  # all are done, or we would not be here
                synthetic += account.pop("synthetic")
                splits[account.pop("split")].append(account)
            lines = [json.dumps({"key": key, "reason": reason}, ensure_ascii=False) for key, reason in plan.dropped]
            write_atomic(self._folder / "dropped.jsonl", "".join(line + "\n" for line in lines))
            vae = models.vae
            write_json(
                path,
                {
                    "format": FORMAT,
                    "size": settings.scan.size,
                    **describe(settings, models),
                    "splits": splits,
                    "examples": {split: sum(shard["examples"] for shard in splits[split]) for split in SPLITS},
                    "buckets": [
                        {
                            "pixels": list(b),
                            "latent": [b[0] // vae.factor, b[1] // vae.factor],
                            "train": t,
                            "validation": v,
                        }
                        for b, t, v in plan.buckets
                    ],
                    "synthetic_captions": synthetic,
                    "dropped": plan.reasons,
                    "bytes_per_sample": sample_bytes(plan.buckets, vae.channels, vae.factor, models.text),
                    "settings": wanted,
                },
            )

        self._all(self._work / "manifest.lock", 1, lambda _: path.exists(), one)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _all(self, lock: Path, count: int, done: Callable[[int], bool], do: Callable[[int], None]) -> None:
        """Do all pieces that are not done, sharing them with other processes; returns when every one is done.

        Pieces that others hold are waited for, and done here if their holder dies.
        """
        claims = Claims(lock)
        try:
            first = count * self._place.index // self._place.count
            left = [*range(first, count), *range(first)]
            while left:
                held_elsewhere = []
                for piece in left:
                    if done(piece):
                        continue
                    with claims.attempt(piece) as mine:
                        if mine and not done(piece):
                            self._check_stop()
                            do(piece)
                        elif not mine:
                            held_elsewhere.append(piece)
                left = held_elsewhere
                if left:
                    self._check_stop()
                    time.sleep(_POLL)
        finally:
            claims.close()

    def _check_stop(self) -> None:
        if self._stop():
            raise Preempted(f"{self._folder}: stopped; finished shards are kept, run again to go on")

    def _scan_path(self, part: int) -> Path:
        return self._scans / f"{part:06d}.npz"

    def _load_scan(self, part: int) -> Scan:
        path = self._scan_path(part)
        try:
            return load(path)
        except ValueError as error:
            raise UserError(f"{error}; delete this file and run again") from None

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(self._place.threads, thread_name_prefix="read")
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _account(folder: Path, unit: Unit) -> Path:
    return folder / "work" / "shards" / f"{unit.file}.json"


def _finished(folder: Path, unit: Unit) -> dict[str, Any] | None:
    """A shard's account, if it is whole."""
    try:
        account: dict[str, Any] = json.loads(_account(folder, unit).read_text())
        whole = os.path.getsize(folder / unit.file) == account["bytes"]
    except FileNotFoundError:
        return None
    return account if whole else None
