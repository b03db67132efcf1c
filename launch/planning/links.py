"""How the devices of a machine are connected, and what a collective takes on that.

What is assumed:

- A TPU slice is a torus of chips. Along an axis of it a group that spans all chips has two links a chip where the axis
  closes into a ring, else one: in a line the outermost chip has no more. Axes of 3-D slices close where all are
  multiples of 4 (whole cubes behind optical switches), axes of 2-D slices at 16 chips (a pod's side).
- A group that spans several axes uses the links of all at once. One that takes a block of an axis has one link on it;
  one that takes every k-th chip shares the axis with the k - 1 groups between. A group that is no box of the torus
  gets one link.
- Half chips (TPU7x) share their chip's links; between the two halves data crosses as fast as over all its links.
- A GPU sends to the other GPUs of its node at NVLink's full rate; nothing is reduced inside switches.
- Between slices or nodes every device has its own part of the network. Such a collective runs in two stages, inside
  and across, that overlap perfectly: the longer one counts. That is where the plan flatters a machine.
- An all-to-all is bound by the links across the middle of the longest axis.
- A permutation has one link. No collective waits, and none starts up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from launch.planning.collectives import Collective
from mmdit_jax.chips import Chip
from mmdit_jax.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where a device is."""

    domain: int
    """Its TPU slice or its node of GPUs."""
    coordinates: tuple[int, ...] = ()
    """Of its chip in the slice's torus; empty for GPUs."""


@dataclass(frozen=True)
class Fabric:
    """Devices in the order in which the program numbers them (``mesh.devices.flat``), and the torus of a slice."""

    places: tuple[Place, ...]
    torus: tuple[int, ...]
    """Chips along each axis of a slice; empty for GPUs."""

    def rings(self, links: int) -> tuple[bool, ...]:
        """Of each axis of the torus, whether its ends are connected; chips with 6 links build 3-D slices."""
        if links == 6:
            return (all(size % 4 == 0 for size in self.torus),) * len(self.torus)
        return tuple(size >= 16 for size in self.torus)


def tpu_fabric(places: Sequence[tuple[int, Sequence[int]]]) -> Fabric:
    """Of each device its slice and its chip's coordinates: ``(d.slice_index, d.coords)``.

    Of several slices, all devices of the first come first: XLA numbers the devices of one slice.
    """
    if not places:
        raise UserError("no devices: expected one place or more")
    torus = tuple(1 + max(axis) for axis in zip(*(coordinates for _, coordinates in places), strict=True))
    return Fabric(tuple(Place(domain, tuple(coordinates)) for domain, coordinates in places), torus)


def gpu_fabric(devices: int, node: int = 8) -> Fabric:
    """Of GPUs that are numbered node by node."""
    if devices < 1 or node < 1:
        raise UserError(f"{devices} GPUs in nodes of {node}: expected 1 or more")
    return Fabric(tuple(Place(i // node) for i in range(devices)), ())


@dataclass(frozen=True)
class Spread:
    """How a group lies on a fabric."""

    domains: int
    """Slices or nodes."""
    inside: int
    """Devices in the domain that has fewest."""
    chips: int
    """Chips in that domain."""
    axes: tuple[tuple[int, float], ...]
    """Chips along each axis of the torus that it spans, and links a chip that it has there."""
    box: bool


class Links:
    """Times of collectives of a chip's devices on a fabric."""

    def __init__(self, fabric: Fabric, chip: Chip) -> None:
        self._fabric = fabric
        self._chip = chip
        self._spreads: dict[tuple[int, ...], Spread] = {}
        self._known: dict[tuple[object, ...], tuple[float, float]] = {}

    def seconds(self, collective: Collective) -> tuple[float, float]:
        """Of one execution, inside slices or nodes and on the network between them, of the group that takes longest."""
        key = (collective.kind, collective.groups, collective.volume, collective.slices)
        if key not in self._known:
            self._known[key] = self._seconds(collective)
        return self._known[key]

    def _seconds(self, collective: Collective) -> tuple[float, float]:
        chip = self._chip
        if collective.slices > 1:
            return 0.0, collective.wire_bytes / chip.network_bandwidth
        if collective.kind == "collective-permute":
            return self._permute(collective)
        # Groups that lie alike take as long.
        spreads = {self.spread(group) for group in collective.groups if len(group) > 1}
        times = [self._group(collective, spread) for spread in spreads]
        return max(times, key=max, default=(0.0, 0.0))

    def _permute(self, collective: Collective) -> tuple[float, float]:
        places = self._fabric.places
        moves = [(places[a], places[b]) for a, b in collective.groups if a != b]
        across = any(a.domain != b.domain for a, b in moves)
        inside = any(a.domain == b.domain for a, b in moves)
        return (
            collective.volume / self._chip.link_bandwidth if inside else 0.0,
            collective.volume / self._chip.network_bandwidth if across else 0.0,
        )

    def _group(self, collective: Collective, spread: Spread) -> tuple[float, float]:
        size, slices, inside = collective.volume * collective.passes, spread.domains, spread.inside
        if collective.kind == "all-to-all":
            devices = slices * inside
            across = size * (devices - inside) / devices
            return self._exchange(size / slices, spread), across / self._chip.network_bandwidth
        across = size * (1 - 1 / slices) / inside
        return self._ring(size, spread), across / self._chip.network_bandwidth

    def _ring(self, size: float, spread: Spread) -> float:
        """Of a gather of so many bytes among the devices of one domain."""
        if spread.inside == 1:
            return 0.0
        chip = self._chip
        if not self._fabric.torus:
            return size * (1 - 1 / spread.inside) / (chip.link_bandwidth * chip.links)
        halves = spread.inside // spread.chips
        if spread.chips == 1:
            return size * (1 - 1 / halves) / (chip.link_bandwidth * chip.links * halves)
        links = sum(links for _, links in spread.axes) if spread.box else 1.0
        return size * (1 - 1 / spread.chips) / (links * chip.link_bandwidth * halves)

    def _exchange(self, size: float, spread: Spread) -> float:
        """Of an all-to-all in which each device of one domain has so many bytes for all devices of it."""
        least = self._ring(size, spread)
        if not self._fabric.torus or spread.chips == 1:
            return least
        # Both halves of a chip send, over the links of both: their number cancels.
        axes = spread.axes if spread.box else ((spread.chips, 1.0),)
        middle = max((size * (n // 2) * (-(-n // 2)) / n / links for n, links in axes), default=0.0)
        return max(least, middle / self._chip.link_bandwidth)

    def spread(self, group: tuple[int, ...]) -> Spread:
        """How a group of devices lies; ``UserError`` if the fabric has no such devices."""
        if group not in self._spreads:
            places = self._fabric.places
            if max(group) >= len(places):
                raise UserError(f"device {max(group)}: expected less than {len(places)}, the devices of this machine")
            domains: dict[int, list[Place]] = defaultdict(list)
            for index in group:
                domains[places[index].domain].append(places[index])
            self._spreads[group] = self._lie(len(domains), min(domains.values(), key=len))
        return self._spreads[group]

    def _lie(self, domains: int, members: list[Place]) -> Spread:
        fabric = self._fabric
        chips = {place.coordinates for place in members} if fabric.torus else set(range(len(members)))
        axes: list[tuple[int, float]] = []
        box = 1
        for axis, (size, ring) in enumerate(zip(fabric.torus, fabric.rings(self._chip.links), strict=True)):
            taken = sorted({place.coordinates[axis] for place in members})
            box *= len(taken)
            if len(taken) > 1:
                axes.append((len(taken), _axis_links(taken, size, ring)))
        return Spread(domains, len(members), len(chips), tuple(axes), box == len(chips))


def _axis_links(taken: Sequence[int], size: int, ring: bool) -> float:
    """Links a chip that a group has on an axis of which it takes these positions."""
    whole = 2.0 if ring and size > 2 else 1.0
    count, span = len(taken), taken[-1] - taken[0] + 1
    if count == size:
        return whole
    if count == span:
        return 1.0
    stride = taken[1] - taken[0]
    if all(b - a == stride for a, b in pairwise(taken)) and stride * count == size:
        return whole / stride
    return count / span
