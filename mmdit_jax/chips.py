"""Data sheets of accelerators: what a device could do at most, in the units that plans and training logs count in.

TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, whose tables are per chip. Their "bidirectional ICI
bandwidth per chip" is the sum over all links and both directions: 1200 GB/s of a v5p are 6 links of 100 GB/s each way.
The chips of a pod are from there too: of v4, v5p and TPU7x 64, 140 and 144 cubes of 4 x 4 x 4, which optical switches
join to any box (of a v5p's cubes one slice may have 96). Usable memory is what libtpu 0.0.42.1 says is available when
it refuses a program that is too large. GPUs: NVIDIA's data sheets of the SXM modules, dense rates (half of those "with
sparsity"); memory as in XLA's own descriptions of them (openxla/xla, xla/backends/gpu/target_config/specs), but for the
H200. To the host: PCIe of 16 lanes, Gen4 of an A100, Gen5 of the other GPUs (64 and 128 GB/s, both directions
together); of TPUs by the scaling book, part 2 (jax-ml.github.io/scaling-book/tpus): 16 GB/s each way of a v4, 32 of a
v6e, "about 2x higher than v5".
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts them: of a TPU7x chip it is a half, with half of everything.

    Rates are peaks of the data sheet, per device and second; a link's are of one direction.
    """

    name: str
    """What topologies are called by: ``v5p``, ``h100``."""
    kind: str
    """``jax.Device.device_kind``."""
    platform: str
    """``tpu`` or ``cuda``."""
    bf16_flops: float
    """FLOP/s of dense bfloat16 products."""
    int8_flops: float
    """OP/s of dense int8 products, or 0 where the chip has none."""
    fp8_flops: float
    """FLOP/s of dense fp8 products, or 0 where the chip has none."""
    hbm_bytes: float
    """Memory that a program may use."""
    hbm_bandwidth: float
    link_bandwidth: float
    """Bytes/s out of a device over one link of its torus (TPU), or over NVLink in all (GPU)."""
    links: int
    """Links of a device: two an axis of the torus; 1 for NVLink."""
    network_bandwidth: float
    """Bytes/s a device beyond its slice (TPU) or node (GPU)."""
    host_bandwidth: float
    """Bytes/s between a device and its host, each way; 0 where no source has it."""
    source: str
    devices_per_chip: int = 1
    """Devices that share a chip's links; ``link_bandwidth`` is already one device's part."""
    topology_options: tuple[tuple[str, str], ...] = ()
    """For ``jax.experimental.topologies.get_topology_desc``, beside platform and name."""
    largest: tuple[int, ...] = ()
    """Chips along the axes of a whole pod (TPU); of pods of cubes one of the boxes that take all."""


_DOCS = "docs.cloud.google.com/tpu/docs"

CHIPS: tuple[Chip, ...] = (
    Chip(
        name="v4",
        kind="TPU v4",
        platform="tpu",
        bf16_flops=275e12,
        int8_flops=275e12,
        fp8_flops=0,
        hbm_bytes=30.75 * GIB,
        hbm_bandwidth=1.2e12,
        link_bandwidth=50e9,
        links=6,
        network_bandwidth=3.125e9,
        host_bandwidth=16e9,
        source=f"{_DOCS}/v4; links of 50 GB/s from Jouppi et al. 2023 (arXiv 2304.01433); network as of a v5e, as the "
        "documentation has none",
        # A real v4 shows both cores of a chip as one device; the topology of this name would show two.
        topology_options=(("chip_config_name", "megacore"),),
        largest=(16, 16, 16),
    ),
    Chip(
        name="v5e",
        kind="TPU v5 lite",
        platform="tpu",
        bf16_flops=197e12,
        int8_flops=393e12,
        fp8_flops=0,
        hbm_bytes=15.75 * GIB,
        hbm_bandwidth=819e9,
        link_bandwidth=50e9,
        links=4,
        network_bandwidth=3.125e9,
        host_bandwidth=16e9,
        source=f"{_DOCS}/v5e: ICI 400 GB/s a chip in both directions, network 6.4 Tb/s a pod of 256",
        largest=(16, 16),
    ),
    Chip(
        name="v5p",
        kind="TPU v5",
        platform="tpu",
        bf16_flops=459e12,
        int8_flops=918e12,
        fp8_flops=459e12,
        hbm_bytes=95.74 * GIB,
        hbm_bandwidth=2.765e12,
        link_bandwidth=100e9,
        links=6,
        network_bandwidth=6.25e9,
        host_bandwidth=16e9,
        source=f"{_DOCS}/v5p: ICI 1200 GB/s a chip in both directions, network 50 Gb/s a chip; int8 from Google's "
        "announcement of 6 December 2023",
        largest=(16, 20, 28),
    ),
    Chip(
        name="v6e",
        kind="TPU v6 lite",
        platform="tpu",
        bf16_flops=918e12,
        int8_flops=1836e12,
        fp8_flops=918e12,
        hbm_bytes=31.25 * GIB,
        hbm_bandwidth=1.638e12,
        link_bandwidth=100e9,
        links=4,
        network_bandwidth=12.5e9,
        host_bandwidth=32e9,
        source=f"{_DOCS}/v6e and /tpu7x: ICI 800 GB/s a chip in both directions, network 100 Gb/s a chip",
        largest=(16, 16),
    ),
    Chip(
        name="tpu7x",
        kind="TPU7x",
        platform="tpu",
        bf16_flops=1153.5e12,
        int8_flops=0,
        fp8_flops=2307e12,
        hbm_bytes=94.75 * GIB,
        hbm_bandwidth=3.69e12,
        link_bandwidth=50e9,
        links=6,
        network_bandwidth=6.25e9,
        host_bandwidth=0,
        source=f"{_DOCS}/tpu7x, halved: ICI 1200 GB/s a chip in both directions, network 100 Gb/s a chip",
        devices_per_chip=2,
        largest=(16, 24, 24),
    ),
    Chip(
        name="a100",
        kind="NVIDIA A100-SXM4-80GB",
        platform="cuda",
        bf16_flops=312e12,
        int8_flops=624e12,
        fp8_flops=0,
        hbm_bytes=85_100_068_864,
        hbm_bandwidth=2.039e12,
        link_bandwidth=300e9,
        links=1,
        network_bandwidth=25e9,
        host_bandwidth=32e9,
        source="NVIDIA A100 80GB SXM data sheet; 200 Gb/s of InfiniBand a GPU as in DGX A100",
    ),
    Chip(
        name="h100",
        kind="NVIDIA H100 80GB HBM3",
        platform="cuda",
        bf16_flops=989.4e12,
        int8_flops=1978.9e12,
        fp8_flops=1978.9e12,
        hbm_bytes=84_929_347_584,
        hbm_bandwidth=3.35e12,
        link_bandwidth=450e9,
        links=1,
        network_bandwidth=50e9,
        host_bandwidth=64e9,
        source="NVIDIA H100 SXM data sheet; 400 Gb/s of InfiniBand a GPU as in DGX H100",
    ),
    Chip(
        name="h200",
        kind="NVIDIA H200",
        platform="cuda",
        bf16_flops=989.4e12,
        int8_flops=1978.9e12,
        fp8_flops=1978.9e12,
        hbm_bytes=139.8 * GIB,
        hbm_bandwidth=4.8e12,
        link_bandwidth=450e9,
        links=1,
        network_bandwidth=50e9,
        host_bandwidth=64e9,
        source="NVIDIA H200 SXM data sheet; 400 Gb/s of InfiniBand a GPU as in DGX H200; memory a little under XLA's "
        "151.4 GB, not measured",
    ),
    Chip(
        name="b200",
        kind="NVIDIA B200",
        platform="cuda",
        bf16_flops=2250e12,
        int8_flops=4500e12,
        fp8_flops=4500e12,
        hbm_bytes=191_514_411_008,
        hbm_bandwidth=7.7e12,
        link_bandwidth=900e9,
        links=1,
        network_bandwidth=50e9,
        host_bandwidth=64e9,
        source="NVIDIA HGX B200 data sheet (180 GB, 7.7 TB/s); 400 Gb/s of InfiniBand a GPU as in DGX B200",
    ),
)


def chip_of(device_kind: str) -> Chip | None:
    """The data sheet of a device by the name that JAX gives its kind; none of others, as CPUs."""
    return next((chip for chip in CHIPS if chip.kind == device_kind), None)
