"""Where arrays live: the mesh, one rule for parameters, one for batches."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmdit_jax.errors import UserError

AXES = ("data", "fsdp")
# Biases, scales and counters: replicated where they don't divide. Nothing larger is.
SMALL = 2**16


def make_mesh(data: int | None = None, fsdp: int = 1) -> Mesh:
    """A mesh ("data", "fsdp") over all devices of all processes; ``data=None`` takes those that ``fsdp`` leaves.

    Raises:
      UserError: the devices don't divide so.
    """
    devices = jax.device_count()
    if fsdp < 1 or devices % fsdp:
        works = [n for n in range(1, devices + 1) if devices % n == 0]
        raise UserError(f"fsdp={fsdp}: expected a divisor of the {devices} devices ({', '.join(map(str, works))})")
    if data is None:
        data = devices // fsdp
    if data * fsdp != devices:
        raise UserError(f"data={data}: with fsdp={fsdp} expected {devices // fsdp}, for {devices} devices")
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def parameter_spec(name: str, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """The largest axis that ``fsdp`` divides is sharded, the later one of equals; never the axis of stacked blocks.

    Args:
      name: dotted path of the parameter, as ``blocks.latent.qkv.kernel``.
      shape: its shape.
      fsdp: devices along the "fsdp" axis.

    Raises:
      UserError: a parameter of more than 65,536 numbers has no such axis. It names the parameter and a size that works.
    """
    if fsdp == 1:
        return PartitionSpec()
    first = 1 if {"dual", "blocks"} & set(name.split(".")) else 0
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % fsdp == 0 and shape[axis] > 0]
    if axes:
        chosen = max(axes, key=lambda axis: (shape[axis], axis))
        return PartitionSpec(*(None,) * chosen, "fsdp")
    if math.prod(shape) <= SMALL:
        return PartitionSpec()
    works = max(n for n in range(1, fsdp) if any(size % n == 0 for size in shape[first:]))
    raise UserError(f"fsdp={fsdp}: divides no axis of {name} {list(shape)}; fsdp={works} would")


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A tree of shardings for parameters, their average and the optimizer's moments, by ``parameter_spec``.

    Args:
      state: a tree of arrays or shapes; moments lie under the same names as the parameters they belong to.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(sharding, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples, along the first axis, over every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's examples (a tree of numpy arrays, first axis the examples) as global arrays over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)
