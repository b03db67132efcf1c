"""Where arrays live: the axes of the mesh, one rule for parameters, one for activations, one for batches.

The axes, from the slowest links to the fastest:

- ``data``: whole copies of the state. The only axis over which parameters are repeated.
- ``fsdp``: each device holds a part of every parameter, and gathers a block's when it needs them.
- ``sequence``: tokens of an image are spread (context parallelism); keys and values are gathered for the attention.
  Parameters are spread as over ``fsdp``.
- ``tensor``: heads, and the hidden channels of MLPs, are spread (Megatron-LM, arXiv 1909.08053): each device has the
  rows or columns of kernels that belong to its share, and uses them where they are.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmdit_jax.errors import UserError

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = ("data", "fsdp")
"""Axes that examples are spread over."""

# What activations are named by where they are placed: the mesh axes that carry each.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "batch": BATCH,
    "tokens": ("sequence",),
    "heads": ("tensor",),
    "hidden": ("tensor",),
}

# Layers whose columns (outputs) or rows (inputs) belong to heads or to hidden channels.
COLUMNS = ("qkv", "up", "cross_q", "cross_kv")
ROWS = ("out", "down", "cross_out")
# Layers whose input is a row an image: it is cheaper to send that to where the kernel's parts lie.
STAYS = ("modulation",)
# Biases, scales and counters: replicated where they don't divide. Nothing larger is.
SMALL = 2**16
STACKS = ("dual", "blocks")
"""Names under which blocks are stacked: the leading axis is their number, which is never cut."""


def make_mesh(
    data: int | None = None, fsdp: int = 1, sequence: int = 1, tensor: int = 1, *, devices: Any = None
) -> Mesh:
    """A mesh over all devices of all processes, or those given; ``data=None`` takes those that the others leave.

    Raises:
      UserError: the devices don't divide so.
    """
    count = jax.device_count() if devices is None else len(devices)
    taken = 1
    for name, size in (("tensor", tensor), ("sequence", sequence), ("fsdp", fsdp)):
        left = count // taken
        if size < 1 or left % size:
            works = [n for n in range(1, left + 1) if left % n == 0]
            beside = f"{left} devices" if taken == 1 else f"{left} devices that the axes beside it leave of {count}"
            raise UserError(f"{name}={size}: expected a divisor of the {beside} ({', '.join(map(str, works))})")
        taken *= size
    if data is None:
        data = count // taken
    if data * taken != count:
        raise UserError(f"data={data}: expected {count // taken}, for {count} devices with {taken} along other axes")
    types, shape = (AxisType.Auto,) * len(AXES), (data, fsdp, sequence, tensor)
    found = jax.devices() if devices is None else list(devices)
    if found[0].platform != "tpu":
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    # An axis of the mesh may take a part of one of the torus, as 2 of 4 chips: jax.make_mesh refuses that.
    slices = len({slice_of(device) for device in found})
    if slices == 1:
        laid = mesh_utils.create_device_mesh(shape, found, allow_split_physical_axes=True)
        return Mesh(laid, AXES, axis_types=types)
    if data % slices:
        raise UserError(f"data={data}: expected a multiple of the {slices} slices, which only data may cross")
    inside, across = (data // slices, *shape[1:]), (slices, *(1,) * (len(shape) - 1))
    laid = mesh_utils.create_hybrid_device_mesh(inside, across, found, allow_split_physical_axes=True)
    return Mesh(laid, AXES, axis_types=types)


def slice_of(device: Any) -> int:
    """Which slice a TPU is in; 0 for all other devices."""
    # A device of a lone slice has no such attribute.
    return device.slice_index if device.platform == "tpu" and hasattr(device, "slice_index") else 0


def parameter_spec(name: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Which axes of a parameter are cut, and by what.

    Kernels in COLUMNS and ROWS are cut by ``tensor`` along that axis. Then ``fsdp`` and ``sequence`` (and ``tensor``,
    of other parameters) cut the largest axis that they all divide, the later one of equals; where no axis has room for
    all of them, each its own. The axis of stacked blocks is never cut.

    Args:
      name: dotted path of the parameter, as ``blocks.latent.qkv.kernel``.
      shape: its shape.
      sizes: devices along each mesh axis, as ``mesh.shape``.

    Raises:
      UserError: a parameter of more than 65,536 numbers can't be cut so. It names the parameter and a size that works.
    """
    path = name.split(".")
    first = 1 if set(STACKS) & set(path) else 0
    cuts = {axis: sizes.get(axis, 1) for axis in ("fsdp", "sequence", "tensor")}
    found = _placed(path, shape, first, cuts)
    if found is not None:
        return found
    if math.prod(shape) <= SMALL:
        return PartitionSpec()
    by = max((axis for axis in cuts if cuts[axis] > 1), key=lambda axis: cuts[axis])
    works = max(n for n in range(1, cuts[by]) if n == 1 or _placed(path, shape, first, {**cuts, by: n}) is not None)
    beside = "".join(f", {axis}={cuts[axis]}" for axis in cuts if axis != by and cuts[axis] > 1)
    raise UserError(f"{by}={cuts[by]}{beside}: divides no axis of {name} {list(shape)}; {by}={works} would")


def _placed(path: list[str], shape: tuple[int, ...], first: int, cuts: Mapping[str, int]) -> PartitionSpec | None:
    """The rule of ``parameter_spec``, none where it has no answer."""
    taken: dict[int, tuple[str, ...]] = {axis: () for axis in range(first, len(shape))}
    left = [axis for axis in cuts if cuts[axis] > 1]

    def room(axis: int, names: tuple[str, ...]) -> bool:
        return shape[axis] > 0 and shape[axis] % math.prod(cuts[name] for name in (*taken[axis], *names)) == 0

    by_tensor = _tensor_axis(path, len(shape))
    if "tensor" in left and by_tensor is not None and room(by_tensor, ("tensor",)):
        taken[by_tensor] = ("tensor",)
        left.remove("tensor")
    order = sorted(taken, key=lambda axis: (not taken[axis], shape[axis], axis), reverse=True)
    whole = [axis for axis in order if room(axis, tuple(left))]
    if whole:
        taken[whole[0]] = (*taken[whole[0]], *left)
        return _spec(taken)
    for axes in itertools.product(order, repeat=len(left)):
        parts = {axis: tuple(n for n, at in zip(left, axes, strict=True) if at == axis) for axis in order}
        if all(room(axis, names) for axis, names in parts.items()):
            return _spec({axis: (*taken[axis], *parts[axis]) for axis in order})
    return None


def _tensor_axis(path: list[str], rank: int) -> int | None:
    """The axis that belongs to heads or hidden channels."""
    if len(path) < 2 or path[-2] not in (*COLUMNS, *ROWS):
        return None
    if path[-1] == "kernel":
        return rank - 1 if path[-2] in COLUMNS else rank - 2
    return rank - 1 if path[-2] in COLUMNS else None


def _spec(taken: Mapping[int, tuple[str, ...]]) -> PartitionSpec:
    entries = [taken.get(axis, ()) for axis in range(max((a for a, names in taken.items() if names), default=-1) + 1)]
    return PartitionSpec(*(None if not names else names[0] if len(names) == 1 else names for names in entries))


def gathered(weights: Any, dtype: str) -> Any:
    """Kernels as products take them: in ``dtype``, whole but for ``tensor``; all else, and kernels of STAYS, as it is.

    The cast comes first, so that what passes between devices is in ``dtype``. Outside of ``placed_on``: as they are.

    Args:
      weights: a tree of parameters, stacks of blocks left out or taken apart.
    """
    mesh = current_mesh()
    if mesh is None:
        return weights

    def whole(path: tuple[Any, ...], leaf: Any) -> Any:
        names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        names = [name for name in names if name != "value"]
        if "kernel" not in names or set(STAYS) & set(names):
            return leaf
        axis = _tensor_axis(names[: names.index("kernel") + 1], leaf.ndim)
        cut = axis is not None and leaf.shape[axis] % mesh.shape["tensor"] == 0
        used = PartitionSpec(*("tensor" if cut and i == axis else None for i in range(leaf.ndim)))
        return jax.lax.with_sharding_constraint(leaf.astype(dtype), NamedSharding(mesh, used))

    return jax.tree_util.tree_map_with_path(whole, weights)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A tree of shardings for parameters, their average and the optimizer's moments, by ``parameter_spec``.

    Args:
      state: a tree of arrays or shapes; moments lie under the same names as the parameters they belong to.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(sharding, state)


def memories(mesh: Mesh) -> tuple[str, ...]:
    """Kinds of memory that this process's first device tells of; GPUs that are compiled for, not here, tell none."""
    return tuple(item.kind for item in mesh.local_devices[0].addressable_memories())


def in_memory(sharding: NamedSharding, kind: str) -> NamedSharding:
    """``sharding``, in that memory of its devices.

    JAX drops the kind where devices tell of no memories. There the sharding is of the abstract mesh, which keeps it,
    and finds its devices under ``jax.set_mesh``.
    """
    mesh: Any = sharding.mesh
    return NamedSharding(mesh if memories(mesh) else mesh.abstract_mesh, sharding.spec, memory_kind=kind)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples, along the first axis, over the axes that carry them; others hold them again."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def own_part(mesh: Mesh) -> tuple[int, int]:
    """(index, count): of the equal parts of a batch that processes hold, the one that this process's devices do.

    Processes whose devices lie along ``sequence`` or ``tensor`` only have the same one.
    """
    parts = batch_parts(mesh)
    slices = batch_sharding(mesh).addressable_devices_indices_map((parts,)).values()
    mine = sorted({item[0].start or 0 for item in slices if item})
    return mine[0] // len(mine), parts // len(mine)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's examples (a tree of numpy arrays, first axis the examples) as global arrays over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)


_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh that activations are placed on", default=None)


@contextlib.contextmanager
def placed_on(mesh: Mesh | None) -> Iterator[None]:
    """What is traced in here has its activations placed on ``mesh``; with None, left to the compiler."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def current_mesh() -> Mesh | None:
    """The mesh of ``placed_on``, where it has more than one device."""
    mesh = _MESH.get()
    return None if mesh is None or mesh.size == 1 else mesh


def platform() -> str:
    """What the traced program will run on, here or on the machine of ``placed_on``: ``cpu``, ``gpu`` or ``tpu``."""
    mesh = _MESH.get()
    name: str = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def spec(*names: str | None) -> PartitionSpec:
    """The spec of an activation whose axes are named as in ACTIVATIONS; None for an axis that is whole everywhere."""
    return PartitionSpec(*(None if name is None else ACTIVATIONS[name] for name in names))


def place(x: jax.Array, *names: str | None) -> jax.Array:
    """``x`` where activations so named belong, axes named None whole; outside of ``placed_on``, where it is."""
    mesh = current_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(*names)))
