"""What XLA is told of a GPU that is not here."""

from __future__ import annotations

from mmdit_jax.chips import Chip
from mmdit_jax.errors import UserError

# NVIDIA's tuning guides: compute capability, multiprocessors, shared memory of each, L2 cache, clock.
_SHAPES = {
    "a100": ((8, 0), 108, 167_936, 166_912, 40 * 2**20, 1.41),
    "h100": ((9, 0), 132, 233_472, 232_448, 50 * 2**20, 1.98),
    "h200": ((9, 0), 132, 233_472, 232_448, 50 * 2**20, 1.98),
    "b200": ((10, 0), 148, 233_472, 232_448, 126 * 2**20, 1.97),
}


def target_config(chip: Chip) -> str:
    """The text of XLA's GpuTargetConfigProto.

    Raises:
      UserError: XLA has not been told of this chip.
    """
    if chip.name not in _SHAPES:
        raise UserError(f"topology={chip.name!r}: has no compiler target; use one of {', '.join(_SHAPES)}")
    (major, minor), cores, shared, optin, cache, clock = _SHAPES[chip.name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.hbm_bandwidth)} l2_cache_size: {cache} clock_rate_ghz: {clock}
  device_memory_size: {int(chip.hbm_bytes)} shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 }}
device_description_str: "{chip.kind}"
"""
