"""Machines of Google Kubernetes Engine: the nodes that a topology is, and how a pod asks for one of them.

Sources. TPUs: docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, whose table has the label, the
topologies and the machine types of each version; the same in xpk 1.16.0 (src/xpk/core/system_characteristics.py), which
tests/test_xpk.py compares with. GPUs: docs.cloud.google.com/kubernetes-engine/docs/how-to/gpus, and xpk likewise.
"""

from __future__ import annotations

import math

from launch.executors.job import Machine
from launch.planning.target import Target
from mmdit_jax.errors import UserError

TPU_RESOURCE = "google.com/tpu"
GPU_RESOURCE = "nvidia.com/gpu"

_TPUS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
"""``cloud.google.com/gke-tpu-accelerator`` of each chip."""
_GPUS = {
    "a100": "nvidia-a100-80gb",  # a2-ultragpu
    "h100": "nvidia-h100-80gb",  # a3-highgpu; of a3-megagpu it is nvidia-h100-mega-80gb
    "h200": "nvidia-h200-141gb",  # a3-ultragpu
    "b200": "nvidia-b200",  # a4-highgpu
}
"""``cloud.google.com/gke-accelerator`` of each chip."""
_FLAT = {
    (1, 1): (1,),  # ct5lp-hightpu-1t, ct6e-standard-1t
    (2, 2): (4,),  # ct5lp-hightpu-4t, ct6e-standard-4t
    (2, 4): (8, 4),  # one ct5lp-hightpu-8t (ct6e-standard-8t), or two of 4 chips
    (4, 4): (4,),
    (4, 8): (4,),
    (8, 8): (4,),
    (8, 16): (4,),
    (16, 16): (4,),
}
"""Slices of a v5e or a v6e: chips a host may have, the usual first."""
_SMALL_BOXES = ((1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4))
"""Slices of the others below a cube of 4 x 4 x 4, sides in rising order; from there on every side divides by four."""


def machine_for(target: Target | None, chips_per_host: int | None = None) -> Machine:
    """The nodes of one run: a process a node, with all its chips. ``None``: one node without accelerators.

    ``chips_per_host`` chooses between the machine types of a slice that has two (2x4 of a v5e or a v6e).

    Raises:
      UserError: GKE has no such slice, no such host for it, or no several slices of one host each.
    """
    if target is None:
        return Machine()
    choices = host_sizes(target)
    if chips_per_host is not None and chips_per_host not in choices:
        raise UserError(
            f"chips_per_host={chips_per_host}: {target.name} has hosts of {' or '.join(map(str, choices))} chips"
        )
    chips = chips_per_host or choices[0]
    return Machine(target=target, nodes=math.prod(target.shape) * target.slices // chips)


def host_sizes(target: Target) -> tuple[int, ...]:
    """Chips that a host of it may have, the usual first; one size of GPUs."""
    if not target.is_tpu:
        return (target.shape[1],)
    sides = tuple(sorted(target.shape))
    sizes = _FLAT.get(sides, ()) if len(sides) == 2 else _box_hosts(target.chip.name, sides)
    if not sizes:
        has = [written(flat) for flat in _FLAT] if len(sides) == 2 else ["2x2x1, 2x2x2, 2x2x4, 2x4x4", "4Ax4Bx4C"]
        raise UserError(f"topology={target.name!r}: GKE has no such slice of a {target.chip.name}; {', '.join(has)}")
    if target.slices == 1:
        return sizes
    # Multislice is for node pools of several hosts only: docs.cloud.google.com/.../how-to/tpu-multislice.
    several = tuple(size for size in sizes if math.prod(sides) > size)
    if not several:
        raise UserError(
            f"topology={target.name!r}: GKE joins slices of several hosts only; one larger slice would work"
        )
    return several


def topology_label(target: Target) -> str:
    """``cloud.google.com/gke-tpu-topology``. GKE writes the sides of a slice in rising order, but for 2x2x1."""
    return written(tuple(sorted(target.shape)))


def written(sides: tuple[int, ...]) -> str:
    """Sides as GKE writes them."""
    return "2x2x1" if sides == (1, 2, 2) else "x".join(map(str, sides))


def hosts_per_slice(machine: Machine) -> int:
    """Pods of one slice; of GPUs and CPUs all nodes are one.

    Raises:
      UserError: the machine is none that ``machine_for`` gives.
    """
    if machine.processes_per_node != 1:
        raise UserError(f"processes_per_node={machine.processes_per_node}: on Kubernetes a pod is one process, use 1")
    target = machine.target
    if target is None:
        return machine.nodes
    nodes = [machine_for(target, size).nodes for size in host_sizes(target)]
    if machine.nodes not in nodes:
        raise UserError(f"nodes={machine.nodes}: {target.name} has {' or '.join(map(str, nodes))}")
    return machine.nodes // target.slices


def node_labels(target: Target | None) -> dict[str, str]:
    """Labels of the nodes that have these chips."""
    if target is None:
        return {}
    if target.is_tpu:
        return {
            "cloud.google.com/gke-tpu-accelerator": _TPUS[target.chip.name],
            "cloud.google.com/gke-tpu-topology": topology_label(target),
        }
    return {"cloud.google.com/gke-accelerator": _GPUS[target.chip.name]}


def resource_of(target: Target | None) -> str | None:
    """What a container asks for to get chips; none of CPUs."""
    if target is None:
        return None
    return TPU_RESOURCE if target.is_tpu else GPU_RESOURCE


def _box_hosts(chip: str, sides: tuple[int, ...]) -> tuple[int, ...]:
    if sides == (1, 1, 1):
        return (1,) if chip == "tpu7x" else ()  # tpu7x-standard-1t; the others have no such machine
    return (4,) if sides in _SMALL_BOXES or all(side % 4 == 0 for side in sides) else ()
