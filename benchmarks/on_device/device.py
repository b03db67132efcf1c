"""The device of a child process: what it is, what it holds, and random arrays on it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmdit_jax.chips import chip_of
from mmdit_jax.versions import versions

PERIOD = 1_048_573
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "jax-cuda13-plugin", "jax-cuda12-plugin")


def described() -> dict[str, Any]:
    """Name, platform, memory and data sheet of the first device, and versions; plain values."""
    device = jax.local_devices()[0]
    chip = chip_of(device.device_kind)
    found = {name: version for name, version in versions(PACKAGES).items() if version is not None}
    return {
        "name": device.device_kind,
        "platform": device.platform,
        "memory_bytes": memory_limit(),
        "datasheet_flops_per_second": None if chip is None else chip.bf16_flops,
        "datasheet_bytes_per_second": None if chip is None else chip.hbm_bandwidth,
        "versions": {"python": platform.python_version(), **found},
    }


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


def random_like(tree: Any, seed: int, finished: Callable[[str, jax.Array], jax.Array] | None = None) -> Any:
    """Standard normal numbers for a tree of floating shapes with shardings, made on the device where they lie.

    Random, since on constant numbers a GPU draws less power and clocks higher. They repeat after ``PERIOD``, a prime,
    so that no two rows or layers are alike: a generator for all of them would take memory that counts as the peak.

    Args:
      finished: (name of the leaf, numbers) -> what is wanted of them.
    """
    found, structure = jax.tree_util.tree_flatten_with_path(tree)

    def make(key: jax.Array) -> Any:
        block = jax.random.normal(key, (PERIOD,))
        made = []
        for path, leaf in found:
            repeats = -(-leaf.size // PERIOD)
            numbers = jnp.tile(block.astype(leaf.dtype), repeats)[: leaf.size].reshape(leaf.shape)
            made.append(numbers if finished is None else finished(path[-1].key, numbers))
        return jax.tree.unflatten(structure, made)

    where = jax.tree.unflatten(structure, [leaf.sharding for _, leaf in found])
    return jax.block_until_ready(jax.jit(make, out_shardings=where)(jax.random.key(seed)))
