"""From one kind of checkpoint to another, tensor by tensor: nothing is ever whole in memory but the largest tensor."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mmdit_jax.errors import UserError, unknown
from mmdit_jax.files import write_json
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.sd3.files import Planned, Shards
from mmdit_jax.models.sd3.infer import diffusers_config, usual_head_size
from mmdit_jax.models.sd3.layout import parts
from mmdit_jax.models.sd3.names import Entry, entries
from mmdit_jax.models.sd3.reader import HEAD_SIZE_KEY, STEM, Checkpoint, open_checkpoint
from mmdit_jax.models.sd3.tree import PARAMS, POSITIONS, TREE, TreeWriter

TARGETS = ("diffusers", "stability", "orbax")
STEMS = {"diffusers": STEM, "stability": "model"}


@dataclass(frozen=True)
class Written:
    """What ``convert`` wrote."""

    config: MMDiTConfig
    tensors: int
    """Arrays, the position table included; in an Orbax tree a stack of blocks is one."""
    parameters: int
    """Trainable numbers: without the position table."""
    bytes: int
    """Of all tensors' data."""


class Writer(Protocol):
    """What a checkpoint is written to."""

    tensors: int

    def put(self, entry: Entry, raw: np.ndarray) -> None:
        """Write one tensor, given in Stability's layout as raw words."""

    def close(self) -> None:
        """Finish."""


def convert(
    source: Path | Checkpoint,
    target: Path,
    to: str,
    *,
    shard_bytes: int | None = None,
    head_size: int | None = None,
    overwrite: bool = False,
) -> Written:
    """Write a checkpoint in another layout; every number keeps its bits.

    Args:
      source: what ``open_checkpoint`` takes, or a checkpoint that is open (``checkpoint_of``).
      target: made in one step when all is written: for "stability" a file if it is named *.safetensors, else a folder;
        for the others a folder.
      to: "diffusers", "stability" or "orbax".
      shard_bytes: at most so much data in a file (a larger tensor has one to itself); None: one file.
      head_size: see ``open_checkpoint``.
      overwrite: replace what a conversion left at ``target``.

    Raises:
      UserError: the source cannot be read whole, or the target is there already, holds other things, or does not fit
        on the disk. Nothing is left at ``target``.
    """
    if to not in TARGETS:
        unknown("to", to, TARGETS)
    if shard_bytes is not None and (shard_bytes < 1 or to == "orbax"):
        wanted = "no shards for orbax, whose arrays are files of their own" if to == "orbax" else "1 or more"
        raise UserError(f"shard_bytes={shard_bytes}: expected {wanted}")
    found = source if isinstance(source, Checkpoint) else open_checkpoint(source, head_size)
    items = entries(found.config)
    dtypes = {entry.stability: found.source.dtype(entry) for entry in items}
    size = sum(Planned(dtypes[entry.stability], entry.shape).size for entry in items)
    single = to == "stability" and target.suffix == ".safetensors"
    if single and shard_bytes is not None and size > shard_bytes:
        raise UserError(f"target={target}: {size:,} bytes make several shards; expected the name of a folder")
    _require_free(None if isinstance(source, Checkpoint) else source, target, overwrite)
    with Staging(target, size) as folder:
        writer: Writer
        if to == "orbax":
            writer = TreeWriter(folder, found.config, dtypes, found.computed)
        else:
            writer = FamilyWriter(folder, to, found.config, dtypes, shard_bytes)
        for entry in items:
            writer.put(entry, found.source.read(entry))
        writer.close()
        if single:
            (made,) = folder.iterdir()
            publish(made, target)
        else:
            publish(folder, target)
    return Written(found.config, writer.tensors, found.config.num_params(), size)


class FamilyWriter:
    """Takes the tensors of a checkpoint in any order, and makes files of one of the public families."""

    def __init__(
        self, folder: Path, family: str, config: MMDiTConfig, dtypes: Mapping[str, str], shard_bytes: int | None
    ) -> None:
        self._family = family
        planned = {
            name: Planned(dtypes[entry.stability], entry.part(family))
            for entry in entries(config)
            for name in entry.names(family)
        }
        metadata = {"format": "pt"}
        if not config.qk_norm and config.head_size != usual_head_size(config.width):
            metadata[HEAD_SIZE_KEY] = str(config.head_size)
        self._shards = Shards(folder, STEMS[family], planned, shard_bytes, metadata)
        self.tensors = len(planned)
        if family == "diffusers":
            write_json(folder / "config.json", diffusers_config(config))

    def put(self, entry: Entry, raw: np.ndarray) -> None:
        for name, part in parts(entry, raw, self._family):
            self._shards.put(name, part)

    def close(self) -> None:
        self._shards.close()


class Staging:
    """A folder beside the target, gone at the end whatever happens; what a killed process of this host left, too."""

    def __init__(self, target: Path, size: int) -> None:
        self._target, self._size = target, size

    def __enter__(self) -> Path:
        parent, name = self._target.parent, self._target.name
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"target={self._target}: {parent} is a file; expected a folder") from None
        host = re.sub(r"\W", "-", socket.gethostname())
        for left in parent.glob(f".{name}.{host}.*.tmp"):
            process = left.name.split(".")[-2]
            if process.isdecimal() and not _alive(int(process)):
                shutil.rmtree(left, ignore_errors=True)
        free = shutil.disk_usage(parent).free
        if free < self._size:
            raise UserError(f"target={self._target}: needs {self._size:,} bytes, the disk has {free:,} free")
        self.folder = parent / f".{name}.{host}.{os.getpid()}.tmp"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self.folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def publish(made: Path, target: Path) -> None:
    """Give what is finished its name. Something old there is set aside first, and deleted afterwards."""
    aside = made.with_name(f"{made.name}.old")
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    elif target.exists():
        target.rename(aside)
    made.rename(target)
    if aside.is_dir():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)


def _require_free(source: Path | None, target: Path, overwrite: bool) -> None:
    """Whether the target may be made.

    Raises:
      UserError: something is there which is not to be replaced.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise UserError(f"target={target}: exists already; choose another, or --overwrite")
    if source is not None and target.resolve() in (source.resolve(), *source.resolve().parents):
        raise UserError(f"target={target}: holds the source {source}; choose another place")
    known = rf"config\.json|{re.escape(TREE)}|{PARAMS}|{POSITIONS}\.safetensors"
    known += "|" + "|".join(rf"{stem}(-\d+-of-\d+)?\.safetensors(\.index\.json)?" for stem in STEMS.values())
    foreign = [item.name for item in target.iterdir() if not re.fullmatch(known, item.name)] if target.is_dir() else []
    if foreign:
        raise UserError(
            f"target={target}: holds {sorted(foreign)[0]!r}, which no conversion made; choose another place"
        )
    if target.is_file() and target.suffix != ".safetensors":
        raise UserError(f"target={target}: is no *.safetensors, which a conversion would replace; choose another place")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
