"""Times of collectives on tori and nodes against closed forms and simulated traffic; the bound that follows."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from launch.planning.collectives import Collective
from launch.planning.hlo import Counts, Opaque, Work
from launch.planning.links import Fabric, Links, gpu_fabric, tpu_fabric
from launch.planning.roofline import peak_flops, roofline
from mmdit_jax.chips import CHIPS, GIB, Chip, chip_of
from mmdit_jax.errors import UserError

BY_NAME = {chip.name: chip for chip in CHIPS}
V5P, V5E, V6E, TPU7X, H100 = (BY_NAME[name] for name in ("v5p", "v5e", "v6e", "tpu7x", "h100"))


def slices(*torus: int, number: int = 1, halves: int = 1) -> Fabric:
    """As libtpu numbers devices: half chips fastest, then x, y, z."""
    grid = [tuple(reversed(c)) for c in itertools.product(*(range(size) for size in reversed(torus)))]
    return tpu_fabric([(s, chip) for s in range(number) for chip in grid for _ in range(halves)])


def one(kind: str, size: float, groups: tuple[tuple[int, ...], ...], slices: int = 1) -> Collective:
    """With ``size`` bytes of the whole array of a gather or a scatter, of the operand of others."""
    part = size / max(map(len, groups), default=1)
    operand = part if kind == "all-gather" else size
    result = {"all-gather": size, "reduce-scatter": part}.get(kind, size)
    return Collective(kind, "c", "", operand, result, groups, 1, slices)


def seconds(chip: Chip, fabric: Fabric, kind: str, size: float, *groups: tuple[int, ...]) -> tuple[float, float]:
    return Links(fabric, chip).seconds(one(kind, size, groups))


@pytest.mark.parametrize(
    ("chip", "torus", "group", "links"),
    [
        # A cube closes into rings on three axes: six links.
        (V5P, (4, 4, 4), range(64), 6),
        (V5P, (8, 8, 4), range(256), 6),
        # One axis of it: two; two axes: four.
        (V5P, (8, 8, 4), range(8), 2),
        (V5P, (8, 8, 4), range(64), 4),
        (V5P, (8, 8, 4), range(0, 256, 64), 2),
        # Half an axis is a line.
        (V5P, (8, 8, 4), range(4), 1),
        # Every second chip of an axis shares it with those between.
        (V5P, (8, 8, 4), range(0, 8, 2), 1),
        # Less than a cube has no rings: at its corner two links, or three.
        (V5P, (2, 2, 1), range(4), 2),
        (V5P, (2, 4, 4), range(32), 3),
        # 2-D slices close at 16.
        (V5E, (16, 16, 1), range(256), 4),
        (V5E, (8, 16, 1), range(128), 3),
        (V6E, (4, 4, 1), range(16), 2),
        (V6E, (16, 16, 1), range(0, 256, 16), 2),
        # No box.
        (V5P, (4, 4, 4), (0, 5, 10, 15), 1),
    ],
)
def test_links_of_a_group(chip: Chip, torus: tuple[int, ...], group: range | tuple[int, ...], links: float) -> None:
    members, size = tuple(group), 6e9
    bandwidth = links * chip.link_bandwidth
    share = size * (1 - 1 / len(members))
    fabric = slices(*torus)
    assert seconds(chip, fabric, "all-gather", size, members) == pytest.approx((share / bandwidth, 0))
    assert seconds(chip, fabric, "reduce-scatter", size, members) == pytest.approx((share / bandwidth, 0))
    assert seconds(chip, fabric, "all-reduce", size, members) == pytest.approx((2 * share / bandwidth, 0))


def test_the_slowest_group_counts() -> None:
    fabric = slices(8, 8, 4)
    whole, half = tuple(range(8)), tuple(range(8, 12))
    slow = seconds(V5P, fabric, "all-gather", 1e9, half)
    assert seconds(V5P, fabric, "all-gather", 1e9, whole, half) == slow
    assert slow > seconds(V5P, fabric, "all-gather", 1e9, whole)


def busiest_link(torus: tuple[int, ...], ring: bool) -> float:
    """Bytes over the busiest link if every chip sends 1 byte, in equal parts, to all chips, axis by axis.

    On a ring the shorter way; of two equal ways half on each.
    """
    chips = list(itertools.product(*(range(size) for size in torus)))
    load: Counter[tuple[tuple[int, ...], int, int]] = Counter()
    for source, target in itertools.product(chips, chips):
        at = list(source)
        for axis, size in enumerate(torus):
            ahead = (target[axis] - at[axis]) % size
            if not ring:
                ways = {(1 if target[axis] > at[axis] else -1): (abs(target[axis] - at[axis]), 1.0)}
            elif 2 * ahead == size:
                ways = {1: (ahead, 0.5), -1: (ahead, 0.5)}
            else:
                ways = {1: (ahead, 1.0)} if 2 * ahead < size else {-1: (size - ahead, 1.0)}
            for step, (hops, part) in ways.items():
                where = list(at)
                for _ in range(hops):
                    load[tuple(where), axis, step] += part / len(chips)  # type: ignore[assignment]
                    where[axis] = (where[axis] + step) % size
            at[axis] = target[axis]
    return max(load.values())


@pytest.mark.parametrize(
    ("chip", "torus", "ring"),
    [(V5P, (4, 4, 4), True), (V5P, (4, 4, 8), True), (V5P, (2, 2, 2), False), (V6E, (4, 8, 1), False)],
)
def test_all_to_all_takes_as_long_as_its_busiest_link(chip: Chip, torus: tuple[int, ...], ring: bool) -> None:
    fabric = slices(*torus)
    taken, _ = seconds(chip, fabric, "all-to-all", 1e9, tuple(range(len(fabric.places))))
    # A corner with few links may need longer to send than the busiest link of the middle.
    links = sum((2 if ring else 1) for size in torus if size > 1)
    leaving = (1 - 1 / len(fabric.places)) / links
    assert taken == pytest.approx(1e9 * max(busiest_link(torus, ring), leaving) / chip.link_bandwidth)


def test_half_chips_share_their_links() -> None:
    """A TPU7x device has half of 100 GB/s a link; a group of both halves has all of it."""
    fabric = slices(4, 4, 4, halves=2)
    halves = tuple(range(0, 8, 2))
    both = tuple(range(8))
    assert seconds(TPU7X, fabric, "all-gather", 1e9, halves)[0] == pytest.approx(1e9 * 3 / 4 / (2 * 50e9))
    assert seconds(TPU7X, fabric, "all-gather", 1e9, both)[0] == pytest.approx(1e9 * 3 / 4 / (2 * 100e9))
    assert seconds(TPU7X, fabric, "all-gather", 1e9, (0, 1))[0] == pytest.approx(1e9 / 2 / 600e9)


def test_gpus_within_a_node_and_across() -> None:
    fabric = gpu_fabric(128)
    size = 8e9
    node, two = tuple(range(8)), tuple(range(16))
    assert seconds(H100, fabric, "all-gather", size, node) == pytest.approx((size * 7 / 8 / 450e9, 0))
    # Each of 8 GPUs takes an eighth of the other node's half, while NVLink spreads the whole.
    assert seconds(H100, fabric, "all-gather", size, two) == pytest.approx((size * 7 / 8 / 450e9, size / 2 / 8 / 50e9))
    # One GPU a node: all over the network.
    spread = tuple(range(0, 128, 8))
    assert seconds(H100, fabric, "all-reduce", size, spread) == pytest.approx((0, 2 * size * 15 / 16 / 50e9))
    # Of 16 parts 8 go to the other node, 7 to others of this.
    assert seconds(H100, fabric, "all-to-all", size, two) == pytest.approx((size * 7 / 16 / 450e9, size / 2 / 50e9))


def test_permutations() -> None:
    fabric = gpu_fabric(16)
    assert seconds(H100, fabric, "collective-permute", 9e9, (0, 1), (1, 0)) == pytest.approx((9e9 / 450e9, 0))
    assert seconds(H100, fabric, "collective-permute", 9e9, (7, 8), (8, 9)) == pytest.approx((9e9 / 450e9, 9e9 / 50e9))
    assert seconds(V5P, slices(4, 4, 4), "collective-permute", 9e9, (0, 1)) == pytest.approx((9e9 / 100e9, 0))


def test_slices_of_a_tpu_talk_over_the_network() -> None:
    """As one collective over all devices, or as XLA writes it: the part of a device, between slices."""
    fabric = slices(2, 2, 1, number=2)
    inside, across = seconds(V5P, fabric, "all-reduce", 4e9, tuple(range(8)))
    assert (inside, across) == pytest.approx((2 * 4e9 * 3 / 4 / 200e9, 2 * 4e9 / 2 / 4 / 6.25e9))
    between = Links(fabric, V5P).seconds(one("all-reduce", 1e9, (), slices=2))
    assert between == pytest.approx((0, across))


def test_a_group_of_devices_that_are_not_there() -> None:
    with pytest.raises(UserError, match="device 9: expected less than 8"):
        seconds(H100, gpu_fabric(8), "all-gather", 1.0, (0, 9))
    with pytest.raises(UserError, match="0 GPUs"):
        gpu_fabric(0)
    with pytest.raises(UserError, match="no devices"):
        tpu_fabric([])


def job(name: str, count: float, flops: dict[str, float], bytes_: float, beside: bool = False) -> Work:
    return Work(name, "fusion", f"jit(step)/{name}", count, flops, bytes_, 0, beside)


def test_the_bound_adds_the_longer_of_products_and_memory() -> None:
    second = V5P.hbm_bandwidth
    counts = Counts(
        64,
        (
            job("product", 10, {"bf16": 459e12}, 0.25 * second),
            job("sum", 4, {}, 0.5 * second),
            job("int8", 1, {"s8": 918e12}, 0),
        ),
        (one("all-reduce", 600e9, (tuple(range(64)),)),),
        (),
        (),
    )
    bound = roofline(counts, V5P, slices(4, 4, 4))
    assert bound.compute_seconds == pytest.approx(11)
    assert bound.hbm_seconds == pytest.approx(10 * 0.25 + 4 * 0.5)
    assert bound.device_seconds == pytest.approx(10 + 2 + 1)
    assert bound.interconnect_seconds == pytest.approx(2 * 63 / 64)
    assert bound.by_kind == {"all-reduce": bound.interconnect_seconds}
    assert (bound.step_seconds, bound.bound, bound.network_seconds) == (bound.device_seconds, "compute", 0)
    assert [(c.name, c.bound) for c in bound.costly] == [
        ("product", "compute"),
        ("sum", "hbm"),
        ("c", "interconnect"),
        ("int8", "compute"),
    ]
    assert bound.costly[0].flops == pytest.approx(4590e12)
    assert bound.mfu(13 * 459e12, V5P) == pytest.approx(1)
    assert json.loads(json.dumps(bound.to_json()))["step_seconds"] == bound.step_seconds


def test_what_runs_beside_others_takes_memory_alone() -> None:
    """A product that is bound by compute hides copies; these and a sum take no less than their bytes."""
    second = V5P.hbm_bandwidth
    product, sum_ = job("product", 1, {"bf16": 4 * V5P.bf16_flops}, second), job("sum", 1, {}, second)

    def device(copied: float) -> float:
        copy = job("copy-start", 2, {}, copied * second, beside=True)
        return roofline(Counts(1, (product, sum_, copy), (), (), ()), V5P, slices(1, 1, 1)).device_seconds

    assert device(0) == device(1) == device(1.5) == pytest.approx(4 + 1)
    assert device(3) == pytest.approx(1 + 1 + 2 * 3)


def test_copies_of_the_host() -> None:
    """Both ways at once beside everything else; a chip whose link is not known does not count them."""
    copies = Work("copy-start", "copy-start", "", 3, {}, 2e9, 2e9, beside=True)
    alone = slices(1, 1, 1)
    for chip, rate in ((H100, 64e9), (V5P, 16e9)):
        found = roofline(Counts(1, (copies,), (), (), ()), chip, alone)
        assert found.host_seconds == pytest.approx(3 * 2e9 / (2 * rate))
        assert (found.step_seconds, found.bound) == (found.host_seconds, "host")
    longer = Work("product", "dot", "", 1, {"bf16": H100.bf16_flops}, 0, 0)
    found = roofline(Counts(1, (copies, longer), (), (), ()), H100, alone)
    assert found.bound == "compute" and found.step_seconds == pytest.approx(1)
    unknown = roofline(Counts(1, (copies,), (), (), ()), TPU7X, alone)
    assert unknown.host_seconds == 0 and unknown.bound == "hbm"


def test_collectives_that_cannot_hide() -> None:
    gather = one("all-gather", 1600e9, (tuple(range(128)),))
    counts = Counts(128, (job("sum", 1, {}, 3.35e12),), (gather,), (), ())
    bound = roofline(counts, H100, gpu_fabric(128), top=1)
    # 15 of 16 parts over 8 network cards of 50 GB/s: 3.75 s, longer than 7 of 8 over NVLink, 3.1 s.
    assert (bound.step_seconds, bound.bound) == (pytest.approx(3.75), "interconnect")
    assert bound.network_seconds == bound.interconnect_seconds
    assert [cost.bound for cost in bound.costly] == ["interconnect"]


def test_supplied_flops_count_with_their_kernel() -> None:
    kernel = Opaque("attention", "__cudnn$fmhaSoftmax", "", (), (), 24)
    counts = Counts(8, (job("attention", 24, {}, 0), job("other", 1, {"bf16": 1.0}, 0)), (), (kernel,), ())
    supplied = counts.supply(lambda opaque: ("bf16", 989.4e12 if opaque.target.startswith("__cudnn$fmha") else 0))
    assert roofline(supplied, H100, gpu_fabric(8)).compute_seconds == pytest.approx(24)


def test_rates_of_types() -> None:
    assert peak_flops(V5P, "f32") == 459e12
    assert peak_flops(V5P, "f32:highest") == 459e12 / 6
    assert peak_flops(V5P, "f32:high") == 459e12 / 3
    assert peak_flops(H100, "f32") == 989.4e12 / 2
    assert peak_flops(H100, "f8e4m3fn") == 1978.9e12
    assert peak_flops(V6E, "s8") == 1836e12
    assert peak_flops(TPU7X, "s8") == TPU7X.bf16_flops
    assert peak_flops(V5E, "f8e5m2") == V5E.bf16_flops


@pytest.mark.parametrize(
    ("chip", "chips", "ports", "across", "network"),
    [(V5E, 51.2e12, 4, 1.6e12, 6.4e12), (V6E, 102.4e12, 4, 3.2e12, 25.6e12)],
)
def test_links_are_those_of_a_pod(chip: Chip, chips: float, ports: int, across: float, network: float) -> None:
    """The documentation's other rows, of pods of 16 x 16: all-reduce and bisection bandwidth, network in bits."""
    assert chip.links == ports
    assert 256 * chip.links * chip.link_bandwidth == chips
    assert 2 * 16 * chip.link_bandwidth == across
    assert 256 * chip.network_bandwidth * 8 == network


def test_chips_by_their_kind() -> None:
    assert chip_of("TPU v5") == V5P
    assert chip_of("cpu") is None
    assert len({chip.kind for chip in CHIPS}) == len({chip.name for chip in CHIPS}) == len(CHIPS)
    # Two devices of a TPU7x have the 192 GiB and 4614 TFLOP/s of the chip, but for what the system keeps.
    assert 0.95 * 192 * GIB < TPU7X.devices_per_chip * TPU7X.hbm_bytes < 192 * GIB
    assert TPU7X.devices_per_chip * TPU7X.fp8_flops == 4614e12
