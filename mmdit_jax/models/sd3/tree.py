"""The training tree on disk: an Orbax checkpoint of ``init_params``'s tree, written and read a block at a time.

Orbax itself would want every stacked parameter whole in memory (5 GB for the widest of the 8B model in float32). So it
writes the checkpoint of a tree of empty arrays, which are then replaced on disk by arrays of the real shapes, with one
block to a chunk. ``orbax.checkpoint.v1.load(folder / "params", abstract)`` restores it as any other.

    FOLDER/model.json              format, fields of the MMDiTConfig, whether the stored position table is its own
    FOLDER/params/                 the Orbax checkpoint; dtypes are those of the source
    FOLDER/positions.safetensors   the source's position table as it was stored, which training does not need
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.files import write_json
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.sd3.files import RAW, WIDE, Planned, Shards, read_header, read_into
from mmdit_jax.models.sd3.layout import from_ours, our_shape, to_ours
from mmdit_jax.models.sd3.names import TABLE, Entry, entries

TREE = "model.json"
PARAMS = "params"
POSITIONS = "positions"
FORMAT = "mmdit-params-1"


class TreeWriter:
    """Takes the tensors of a checkpoint in any order, and makes a folder of them."""

    def __init__(self, folder: Path, config: MMDiTConfig, dtypes: Mapping[str, str], computed: bool) -> None:
        """``dtypes`` of the entries by their Stability name.

        Raises:
          UserError: blocks of one stack differ in dtype.
        """
        items = entries(config)
        stacks: dict[tuple[str, ...], list[Entry]] = {}
        for entry in items[1:]:
            stacks.setdefault(entry.path, []).append(entry)
        for path, stack in stacks.items():
            found = sorted({dtypes[entry.stability] for entry in stack})
            if len(found) > 1:
                raise UserError(
                    f"to=orbax: {'.'.join(path)} is {' and '.join(found)} in different blocks; expected one"
                )
        self._folder, self._config, self._computed = folder, config, computed
        table = {TABLE: Planned(dtypes[TABLE], items[0].shape)}
        self._positions = Shards(folder, POSITIONS, table, None, {})
        described = {path: dtypes[stack[0].stability] for path, stack in stacks.items()}
        root = _empty_checkpoint(folder / PARAMS, described)
        self._arrays = {
            path: _create(root / ".".join(path), described[path], our_shape(stack[0]), _length(stack))
            for path, stack in stacks.items()
        }
        self.tensors = len(stacks) + 1

    def put(self, entry: Entry, raw: np.ndarray) -> None:
        """Write one tensor, given in Stability's layout as raw words."""
        if not entry.path:
            self._positions.put(TABLE, raw)
            return
        array = self._arrays[entry.path]
        values = to_ours(entry, raw).view(array.dtype.numpy_dtype)
        (array if entry.block is None else array[entry.block]).write(values).result()

    def close(self) -> None:
        """Finish; what says that the folder is whole is written last."""
        self._positions.close()
        model = dataclasses.asdict(self._config)
        write_json(self._folder / TREE, {"format": FORMAT, "model": model, "computed_positions": self._computed})


class OurTree:
    """A folder that ``TreeWriter`` made, read back a tensor at a time.

    Raises:
      UserError: the folder is damaged, or of another version of the format.
    """

    def __init__(self, folder: Path) -> None:
        try:
            told = json.loads((folder / TREE).read_text())
            self.config, self.computed = MMDiTConfig(**told["model"]), bool(told["computed_positions"])
            if told["format"] != FORMAT:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"checkpoint={folder / TREE}: expected format {FORMAT!r} and a model's fields") from None
        self._table = read_header(folder / f"{POSITIONS}.safetensors")[0][TABLE]
        self._arrays = {
            path: _open(folder / PARAMS, path) for path in sorted({entry.path for entry in entries(self.config)} - {()})
        }

    def dtype(self, entry: Entry) -> str:
        if not entry.path:
            return self._table.dtype
        kind = self._arrays[entry.path].dtype.numpy_dtype
        return next(name for name, wide in WIDE.items() if wide == kind)

    def read(self, entry: Entry) -> np.ndarray:
        raw_dtype = RAW[self.dtype(entry)]
        if not entry.path:
            raw = np.empty(self._table.shape, raw_dtype)
            read_into(self._table, raw)
            return raw
        array = self._arrays[entry.path]
        values = (array if entry.block is None else array[entry.block]).read().result()
        return from_ours(entry, values.view(raw_dtype))


def _length(stack: list[Entry]) -> int | None:
    return None if stack[0].block is None else len(stack)


def _empty_checkpoint(folder: Path, dtypes: Mapping[tuple[str, ...], str]) -> Path:
    """An Orbax checkpoint of arrays of one zero each; returns the folder that holds a folder for each array."""
    from orbax.checkpoint import v1 as ocp

    tree: dict[str, Any] = {}
    for path, dtype in dtypes.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = np.zeros((1,), WIDE[dtype])
    context = ocp.Context()
    context.array.saving.use_ocdbt = False
    context.array.saving.use_zarr3 = False
    with context:
        ocp.save(folder.resolve(), tree)
    return _arrays_folder(folder)


def _arrays_folder(folder: Path) -> Path:
    found = sorted(folder.glob("*/_METADATA"))
    if len(found) != 1:
        raise UserError(f"checkpoint={folder}: not an Orbax checkpoint that mmdit convert wrote")
    return found[0].parent


def _create(path: Path, dtype: str, shape: tuple[int, ...], length: int | None) -> Any:
    """In place of the empty array: one of the real shape, a chunk to a block, uncompressed (weights don't shrink)."""
    import tensorstore

    kind = "bfloat16" if dtype == "BF16" else WIDE[dtype].str
    whole, chunks = (shape, shape) if length is None else ((length, *shape), (1, *shape))
    metadata = {"shape": whole, "chunks": chunks, "dtype": kind, "compressor": None, "order": "C", "filters": None}
    metadata |= {"fill_value": None, "dimension_separator": "."}
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
    return tensorstore.open(spec, create=True, delete_existing=True).result()


def _open(folder: Path, path: tuple[str, ...]) -> Any:
    import tensorstore

    place = _arrays_folder(folder) / ".".join(path)
    if not (place / ".zarray").is_file():
        raise UserError(f"checkpoint={folder}: {'.'.join(path)} is missing; convert it anew")
    return tensorstore.open({"driver": "zarr", "kvstore": {"driver": "file", "path": str(place)}}).result()
