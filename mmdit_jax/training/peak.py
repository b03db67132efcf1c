"""The matrix-product ceiling of this machine, measured: what a training step's FLOP rate is compared with."""

from __future__ import annotations

import functools
import statistics
import time

import jax
import jax.numpy as jnp


@functools.lru_cache(maxsize=4)
def matmul_flops_per_second(dtype: str = "float32") -> float:
    """FLOP/s of one square matrix product on one device, median of five, times the number of devices.

    The size is 1024 on CPU and 8192 elsewhere: large enough that memory is no limit. CPU devices of one process share
    its cores and count once.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = 1024 if on_cpu else 8192
    device = jax.local_devices()[0]
    a = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(lambda x: x @ x)
    product(a).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    devices = jax.process_count() if on_cpu else jax.device_count()
    return 2.0 * size**3 / statistics.median(seconds) * devices
