"""The device of a child process: what it is, what it holds, and random arrays on it."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import jax
import jax.numpy as jnp

from mmdit_jax.chips import chip_of

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "jax-cuda13-plugin", "jax-cuda12-plugin")


def described() -> dict[str, Any]:
    """Name, platform, memory and data sheet of the first device, and versions; plain values."""
    device = jax.local_devices()[0]
    chip = chip_of(device.device_kind)
    return {
        "name": device.device_kind,
        "platform": device.platform,
        "memory_bytes": memory_limit(),
        "datasheet_flops_per_second": None if chip is None else chip.bf16_flops,
        "datasheet_bytes_per_second": None if chip is None else chip.hbm_bandwidth,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def memory_limit() -> int | None:
    """Bytes that this process may take of the device's memory; None where that is not told, as of CPUs."""
    return _statistic("bytes_limit")


def peak_bytes() -> int | None:
    """Bytes that were in use at the fullest since the process began; None as above."""
    return _statistic("peak_bytes_in_use")


def _statistic(name: str) -> int | None:
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None or name not in stats else int(stats[name])


def needed_bytes(compiled: Any) -> int:
    """Device memory that a compiled program takes with its arguments, by the compiler."""
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(kept + memory.temp_size_in_bytes)


def touched_bytes(compiled: Any) -> int:
    """Bytes of a program's arguments and results: what it moves at the least, each being read or written once."""
    memory = compiled.memory_analysis()
    return int(memory.argument_size_in_bytes + memory.output_size_in_bytes)


def random_like(tree: Any, seed: int) -> Any:
    """Standard normal numbers for a tree of floating shapes with shardings, the largest array first.

    Random, since on constant numbers a GPU draws less power and clocks higher. An array at a time, so that what makes
    the last is no more at the peak than the small ones are.
    """
    leaves, structure = jax.tree.flatten(tree)
    made: dict[int, jax.Array] = {}
    for index in sorted(range(len(leaves)), key=lambda i: -leaves[i].size):
        leaf = leaves[index]
        key = jax.random.fold_in(jax.random.key(seed), index)
        made[index] = jax.jit(_normal, static_argnums=(1, 2), out_shardings=leaf.sharding)(key, leaf.shape, leaf.dtype)
        jax.block_until_ready(made[index])
    return jax.tree.unflatten(structure, [made[index] for index in range(len(leaves))])


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if len(shape) < 3:
        return jax.random.normal(key, shape, jnp.dtype(dtype))
    # Bits take up to eight times a bfloat16 array's memory on a GPU: of one layer of a stack at a time.
    keys = jax.random.split(key, shape[0])
    return jax.lax.map(lambda one: jax.random.normal(one, shape[1:], jnp.dtype(dtype)), keys)
