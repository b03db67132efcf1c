"""Where parameters live: which axes of each are cut, and by what, and how a block's kernels come together for use.

Parameters, their average and the optimizer's moments lie alike, by one rule from a name and a shape
(``parameter_spec``). The mesh's axes: ``mmdit_jax.sharding``.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmdit_jax.errors import UserError
from mmdit_jax.sharding import current_mesh

CUTS = ("fsdp", "sequence", "tensor")
"""Axes that parameters are cut by."""

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
