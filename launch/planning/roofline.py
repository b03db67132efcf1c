"""The least time that a program's counts allow on a chip: compute, memory, links and the host's each at their peak."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from launch.planning.hlo import Counts, Work
from launch.planning.links import Fabric, Links
from mmdit_jax.chips import Chip


@dataclass(frozen=True)
class Costly:
    """An instruction or a collective by the time of all its executions."""

    name: str
    op_name: str
    """Where in the user's program it comes from."""
    count: float
    flops: float
    """Of all executions, as the bytes and the seconds."""
    bytes: float
    """Of HBM, or those that a collective sends."""
    seconds: float
    bound: str
    """``compute``, ``hbm`` or ``interconnect``."""


@dataclass(frozen=True)
class Roofline:
    """Seconds of one device and one run of the program."""

    compute_seconds: float
    """Of the matrix products at their peak."""
    hbm_seconds: float
    """Of the bytes of HBM at its peak."""
    device_seconds: float
    """The longer of both, added up over what nothing runs beside; at least ``hbm_seconds``."""
    interconnect_seconds: float
    """Of the collectives one after the other."""
    network_seconds: float
    """That part of it in which the network between slices or nodes is what takes longest."""
    by_kind: dict[str, float]
    """``interconnect_seconds`` by kind of collective."""
    host_seconds: float
    """Of the bytes to and from the host, both ways at once and as full; 0 where the chip's link is not known."""
    step_seconds: float
    """Lower bound: the device's work, the collectives and the host's copies all at once, the longest of them."""
    bound: str
    """What takes longest: ``compute``, ``hbm``, ``interconnect`` or ``host``."""
    costly: tuple[Costly, ...]
    """The costliest instructions and collectives, the costliest first."""

    def mfu(self, flops: float, chip: Chip) -> float:
        """The model FLOPs utilization that the bound allows: ``flops`` are the model's, of one device and step."""
        return flops / self.step_seconds / chip.bf16_flops

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def peak_flops(chip: Chip, type_: str) -> float:
    """FLOP/s of products whose factors have this type (see ``matrix_flops``).

    float32 factors: a TPU rounds them to bfloat16, or multiplies 3 or 6 parts of them for ``high`` and ``highest``; a
    GPU runs TF32 at half of bfloat16's rate (its rate at ``highest`` is lower still). A type that the chip has no
    units for is as fast as bfloat16.
    """
    if type_.startswith("f32"):
        return chip.bf16_flops / ({"high": 3, "highest": 6}.get(type_[4:], 1) if chip.platform == "tpu" else 2)
    if type_.startswith("f8"):
        return chip.fp8_flops or chip.bf16_flops
    if type_ in ("s8", "u8", "s4", "u4"):
        return chip.int8_flops or chip.bf16_flops
    return chip.bf16_flops


def roofline(counts: Counts, chip: Chip, fabric: Fabric, top: int = 10) -> Roofline:
    """Lower bound of a step; ``top`` of its costliest instructions are told.

    Collectives and asynchronous copies hide behind other instructions, but share the memory with them.
    """
    links = Links(fabric, chip)
    compute = memory = serial = 0.0
    costly = []
    for work in counts.work:
        products, bytes_ = _work_seconds(work, chip)
        compute, memory = compute + products * work.count, memory + bytes_ * work.count
        seconds = max(products, bytes_) * work.count
        serial += 0.0 if work.beside else seconds
        bound = "compute" if products > bytes_ else "hbm"
        flops = sum(work.flops.values()) * work.count
        size = work.hbm_bytes * work.count
        costly.append(Costly(work.name, work.op_name, work.count, flops, size, seconds, bound))
    by_kind: defaultdict[str, float] = defaultdict(float)
    network = 0.0
    for one in counts.collectives:
        inside, across = links.seconds(one)
        seconds = max(inside, across) * one.executions
        by_kind[one.kind] += seconds
        network += seconds if across > inside else 0.0
        size = one.wire_bytes * one.executions
        costly.append(Costly(one.name, one.op_name, one.executions, 0.0, size, seconds, "interconnect"))
    interconnect = sum(by_kind.values())
    host = counts.host_bytes / (2 * chip.host_bandwidth) if chip.host_bandwidth else 0.0
    busiest, device = {"compute": compute, "hbm": memory}, max(serial, memory)
    device_bound = max(busiest, key=lambda name: busiest[name])
    at_once = {device_bound: device, "interconnect": interconnect, "host": host}
    return Roofline(
        compute_seconds=compute,
        hbm_seconds=memory,
        device_seconds=device,
        interconnect_seconds=interconnect,
        network_seconds=network,
        by_kind=dict(by_kind),
        host_seconds=host,
        step_seconds=max(at_once.values()),
        bound=max(at_once, key=lambda name: at_once[name]),
        costly=tuple(sorted(costly, key=lambda c: -c.seconds)[:top]),
    )


def _work_seconds(work: Work, chip: Chip) -> tuple[float, float]:
    """Of one execution: the products', the memory's."""
    products = sum(flops / peak_flops(chip, type_) for type_, flops in work.flops.items())
    return products, work.hbm_bytes / chip.hbm_bandwidth
