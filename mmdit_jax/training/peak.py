"""What a training step's FLOP rate is compared with: the chip's data sheet, and matrix products measured here."""

from __future__ import annotations

import collections
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mmdit_jax.chips import chip_of

AHEAD = 2
"""Calls that are timed and not yet waited for: the next one's place on the device is taken while one runs."""


@dataclass(frozen=True)
class Peak:
    """Rates of all devices of a run together, in FLOP/s. The fields are those of the ``start`` event."""

    device_kind: str
    """As JAX names it."""
    datasheet_flops_per_second: float | None
    """Dense bfloat16 products by the data sheet (``mmdit_jax.chips``); None where there is none, as of CPUs.

    It is what MFU is told against whatever the model computes in: what the chip could do, were it used best."""
    ceiling_flops_per_second: float
    """One square matrix product in ``ceiling_dtype``, measured."""
    ceiling_size: int
    """Rows and columns of that product."""
    ceiling_dtype: str
    """What the model computes in."""


def measured_peak(dtype: str) -> Peak:
    """The peak of this process's devices and their like in all others; measures for a second the first time."""
    kind = jax.local_devices()[0].device_kind
    chip = chip_of(kind)
    return Peak(
        device_kind=kind,
        datasheet_flops_per_second=None if chip is None else chip.bf16_flops * jax.device_count(),
        ceiling_flops_per_second=matmul_flops_per_second(dtype),
        ceiling_size=product_size(),
        ceiling_dtype=dtype,
    )


def product_size() -> int:
    """Rows and columns of the product that is timed, large enough that memory is no limit."""
    return 1024 if jax.default_backend() == "cpu" else 8192


@functools.lru_cache(maxsize=4)
def matmul_flops_per_second(dtype: str = "float32") -> float:
    """FLOP/s of one square matrix product of ``product_size`` on one device, times the number of devices.

    The other devices are idle meanwhile; those that share a power limit may be slower together. CPU devices of one
    process share its cores and count once. The numbers multiplied are random: on constant ones a GPU draws less power
    and clocks higher than on any real ones.
    """
    on_cpu, size = jax.default_backend() == "cpu", product_size()
    key = jax.device_put(jax.random.key(0), jax.local_devices()[0])
    a, b = jax.jit(lambda k: tuple(jax.random.normal(part, (size, size), dtype) for part in jax.random.split(k)))(key)
    multiply = jax.jit(jnp.matmul)
    calls, warm = (1, 2) if on_cpu else (10, 30)
    seconds = seconds_a_call(lambda: multiply(a, b), calls=calls, warm=warm)
    return 2.0 * size**3 / seconds * (jax.process_count() if on_cpu else jax.device_count())


def seconds_a_call(
    call: Callable[[], Any],
    *,
    calls: int,
    warm: int,
    samples: int = 9,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that ``call`` takes, the median of ``timings``."""
    return statistics.median(timings(call, calls=calls, warm=warm, samples=samples, clock=clock))


def timings(
    call: Callable[[], Any],
    *,
    calls: int,
    warm: int,
    samples: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Seconds that ``call`` takes, ``samples`` times; ``warm`` calls, the first of which may compile, come before them.

    A sample is of ``calls`` calls one after the other, ``AHEAD`` of them under way at a time, so that the host's part
    of one hides behind another. No more results than that are alive.
    """

    def several(count: int) -> None:
        under_way: collections.deque[Any] = collections.deque()
        for _ in range(count):
            if len(under_way) == AHEAD:
                jax.block_until_ready(under_way.popleft())
            under_way.append(call())
        jax.block_until_ready(list(under_way))

    several(warm)
    found = []
    for _ in range(samples):
        start = clock()
        several(calls)
        found.append((clock() - start) / calls)
    return found
