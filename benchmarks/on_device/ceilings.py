"""What the device does at most: a copy in its memory, and one large product in bfloat16."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.on_device.device import described
from mmdit_jax.training.peak import timings


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a copy of ``copy_bytes`` and of a product of ``product_size`` squared, on random numbers.

    The copy negates, so that it is a kernel that reads and writes, as those of the programs are.
    """
    size, bytes_ = job["product_size"], job["copy_bytes"]
    keys = jax.random.split(jax.random.key(0), 3)
    a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys[:2])
    multiply = jax.jit(jnp.matmul)
    product = timings(lambda: multiply(a, b), calls=10, warm=job["warm"], samples=job["rounds"])
    array = jax.random.normal(keys[2], (bytes_ // 2,), jnp.bfloat16)
    negate = jax.jit(jnp.negative)
    copy = timings(lambda: negate(array), calls=5, warm=5, samples=job["rounds"])
    return {
        "device": described(),
        "product_size": size,
        "product_flops": 2.0 * size**3,
        "product_seconds": product,
        "copy_bytes": 2.0 * array.nbytes,
        "copy_seconds": copy,
    }
