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
import functools
import itertools
import math
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
CUTS = ("fsdp", "sequence", "tensor")
"""Axes that parameters are cut by."""

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
# Of COLUMNS, those that make several equal things side by side, each of them cut: how many.
PARTS = {"qkv": 3, "cross_kv": 2}
# Layers whose input is a row an image: it is cheaper to send that to where the kernel's parts lie.
STAYS = ("modulation",)
# Biases, scales and counters, of a block if they are stacked: replicated where they don't divide. Nothing larger is.
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
    all of them, each its own; where there is no such way, ``tensor`` takes any axis. That of stacked blocks is never
    cut.

    Args:
      name: dotted path of the parameter, as ``blocks.latent.qkv.kernel``.
      shape: its shape.
      sizes: devices along each mesh axis, as ``mesh.shape``.

    Raises:
      UserError: a parameter of more than 65,536 numbers (a block) can't be cut so. It names the parameter, and sizes
        that would cut it.
    """
    return parameter_specs({name: shape}, sizes)[name]


def parameter_specs(shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]) -> dict[str, PartitionSpec]:
    """``parameter_spec`` of each; what an error says would work, works for all of them."""
    cuts = tuple((axis, sizes.get(axis, 1)) for axis in CUTS)
    found = {name: _placed(name, shape, cuts) for name, shape in shapes.items()}
    fails = next((name for name, spec in found.items() if spec is None), None)
    if fails is not None:
        told = ", ".join(f"{axis}={size}" for axis, size in sorted(cuts, key=lambda cut: -cut[1]) if size > 1)
        works = _nearest(shapes, dict(cuts))
        raise UserError(f"{told}: can't cut {fails} {list(shapes[fails])} so; {works} would work")
    return {name: spec for name, spec in found.items() if spec is not None}


def _nearest(shapes: Mapping[str, tuple[int, ...]], cuts: Mapping[str, int]) -> str:
    """The mesh that cuts all parameters and differs in the fewest axes, then by least; each divides what it is now."""
    divisors = [[n for n in range(size, 0, -1) if size % n == 0] for size in cuts.values()]
    meshes = [dict(zip(cuts, sizes, strict=True)) for sizes in itertools.product(*divisors)]
    meshes.sort(key=lambda mesh: (sum(mesh[axis] != cuts[axis] for axis in cuts), -math.prod(mesh.values())))
    works = next(
        mesh
        for mesh in meshes
        if all(_placed(name, shape, tuple(mesh.items())) is not None for name, shape in shapes.items())
    )
    return ", ".join(f"{axis}={size}" for axis, size in works.items() if size != cuts[axis])


@functools.lru_cache(maxsize=2**16)
def _placed(name: str, shape: tuple[int, ...], sizes: tuple[tuple[str, int], ...]) -> PartitionSpec | None:
    """The rule of ``parameter_spec``, none where it has no answer."""
    path, cuts = name.split("."), dict(sizes)
    first = 1 if set(STACKS) & set(path) else 0
    found = _cut(path, shape, first, cuts)
    return PartitionSpec() if found is None and math.prod(shape[first:]) <= SMALL else found


def _cut(path: list[str], shape: tuple[int, ...], first: int, cuts: Mapping[str, int]) -> PartitionSpec | None:
    """Without the exception of what is small."""
    by_tensor = _tensor_axis(path, len(shape))
    pinned = by_tensor is not None and cuts["tensor"] > 1 and shape[by_tensor] % cuts["tensor"] == 0
    for held in ({by_tensor: ("tensor",)}, {}) if pinned else ({},):
        taken: dict[Any, tuple[str, ...]] = {axis: held.get(axis, ()) for axis in range(first, len(shape))}
        found = _filled(taken, shape, cuts)
        if found is not None:
            return found
    return None


def _filled(
    taken: Mapping[int, tuple[str, ...]], shape: tuple[int, ...], cuts: Mapping[str, int]
) -> PartitionSpec | None:
    """What ``taken`` has of the axes, and a place for all others of the mesh that cut; none where there is not."""
    left = tuple(axis for axis in cuts if cuts[axis] > 1 and (axis,) not in taken.values())

    def room(axis: int, names: tuple[str, ...]) -> bool:
        return shape[axis] > 0 and shape[axis] % math.prod(cuts[name] for name in (*taken[axis], *names)) == 0

    order = sorted(taken, key=lambda axis: (not taken[axis], shape[axis], axis), reverse=True)
    whole = [axis for axis in order if room(axis, left)]
    if whole:
        return _spec({**taken, whole[0]: (*taken[whole[0]], *left)})
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
    Over ``tensor``, a kernel of PARTS comes apart, [features_in, parts, part], each part cut: where its numbers lie is
    another cut, of all parts side by side, and what has to move for that moves before the rest is gathered.

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
        name, tensor, leaf = names[: names.index("kernel") + 1], mesh.shape["tensor"], leaf.astype(dtype)
        kept = parameter_spec(".".join(name), leaf.shape, mesh.shape)
        axis = _tensor_axis(name, leaf.ndim)
        used: list[Any] = [None] * leaf.ndim
        if axis is not None and leaf.shape[axis] % tensor == 0:
            used[axis] = "tensor"
        parts = PARTS.get(name[-2], 1)
        if tensor > 1 and parts > 1 and leaf.shape[-1] % (parts * tensor) == 0:
            rows = kept[0] if kept and "tensor" not in (kept[0] or ()) else None
            leaf = _moved(leaf, mesh, kept, kept).reshape(len(leaf), parts, -1)
            kept, used = PartitionSpec(rows, None, "tensor"), [None, None, "tensor"]
            leaf = _moved(leaf, mesh, kept, kept)
        return _moved(leaf, mesh, kept, PartitionSpec(*used))

    return jax.tree_util.tree_map_with_path(whole, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _moved(leaf: jax.Array, mesh: Mesh, there: PartitionSpec, here: PartitionSpec) -> jax.Array:
    """A kernel that lies ``there``, as ``here``; its gradient goes back the same way.

    By JAX's own rule the gradient would first be laid ``here``, too. So each device is asked for its part of the sum
    alone; whether the compiler makes that of a reduce-scatter, or of a whole sum, is its choice.
    """
    return _moved_forward(leaf, mesh, there, here)[0]


def _moved_forward(leaf: jax.Array, mesh: Mesh, there: PartitionSpec, here: PartitionSpec) -> tuple[jax.Array, None]:
    # Not by ``_moved``: policies of rematerialisation know this primitive, and keep nothing of it.
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, here)), None


def _moved_backward(
    mesh: Mesh, there: PartitionSpec, here: PartitionSpec, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, NamedSharding(mesh, there)),)


_moved.defvjp(_moved_forward, _moved_backward)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A tree of shardings for parameters, their average and the optimizer's moments, by ``parameter_spec``.

    Args:
      state: a tree of arrays or shapes; moments lie under the same names as the parameters they belong to.
    """

    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    shapes = {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}
    specs = parameter_specs(shapes, mesh.shape)
    return jax.tree.unflatten(structure, [NamedSharding(mesh, specs[name]) for name in shapes])


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
