"""Where arrays live: the axes of the mesh, one rule for activations, one for batches; ``parameter_sharding`` has that
of parameters.

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
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
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


def own_rows(mesh: Mesh, batch: int, process: int | None = None) -> np.ndarray:
    """Rows of a global batch that a process's devices hold, ascending int64; None is this process.

    They need not follow one another: on a TPU the mesh follows the torus, not the processes. Processes whose devices
    lie side by side along ``sequence`` or ``tensor`` hold some of the same rows.

    Raises:
      UserError: the batch does not divide into the parts of the mesh.
    """
    number = jax.process_index() if process is None else process
    data, fsdp = mesh.devices.shape[:2]
    if batch < 1 or batch % (data * fsdp):
        raise UserError(f"batch={batch}: expected a multiple of {data * fsdp}, data x fsdp of the mesh")
    own = np.array([device.process_index == number for device in mesh.devices.flat])
    blocks = own.reshape(data * fsdp, -1).any(axis=1)
    return np.flatnonzero(blocks.repeat(batch // (data * fsdp)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's examples as global arrays over the mesh, whose row i is example i of the global batch.

    Args:
      batch: a tree of numpy arrays, first axis the examples: those at ``own_rows``, in that order.

    Raises:
      UserError: another number of examples than this process's blocks can have.
    """
    sharding, parts = batch_sharding(mesh), batch_parts(mesh)
    blocks = own_rows(mesh, parts)  # of a batch with one example a block

    def whole(own: np.ndarray) -> jax.Array:
        each, over = divmod(len(own), len(blocks))
        if over:
            raise UserError(f"examples={len(own)}: expected a multiple of {len(blocks)}, this process's blocks")

        def block(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(each * parts)
            at = int(np.searchsorted(blocks, start // each)) * each
            return own[at : at + stop - start]

        return jax.make_array_from_callback((each * parts, *own.shape[1:]), sharding, block)

    return jax.tree.map(whole, batch)


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
