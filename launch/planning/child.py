"""The process that compiles for another machine: a request in, pickled, on stdin; what the compiler said out, as JSON.

It is apart because libtpu takes a lock on the host, is loud when it is imported, and may end the process. Its
environment (``environment``) makes libtpu and the CUDA plugin load without their devices.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import time
from typing import Any

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # libtpu: no metadata server, no lock on the host, any host it is told of will do
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    # the CUDA plugin: no device, no libraries
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
}

TOO_LARGE = (
    r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm",
    r"required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)",
)
"""What libtpu says of a program that does not fit: what it needs, and what there is."""


def environment() -> dict[str, str]:
    """The variables that the process needs; nothing of this process's choice of platform or fake devices stays."""
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    return {**kept, **ENVIRONMENT}


def main() -> None:
    """Answer one request."""
    request = pickle.load(sys.stdin.buffer)
    out = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    answer = respond(request)
    with os.fdopen(out, "w") as stream:
        stream.write(json.dumps(answer))


def respond(request: Any) -> dict[str, Any]:
    """Compile what is asked for; {"error": line} for what the user can mend."""
    from mmdit_jax.errors import UserError

    try:
        from launch.planning.lower import compiler_options, lowered

        started = time.perf_counter()
        program, mesh = lowered(request)
        traced = time.perf_counter()
        try:
            compiled = program.compile(compiler_options=compiler_options(request.target))
        except Exception as error:  # XLA has one type for all
            full = next((found for form in TOO_LARGE if (found := re.search(form, str(error)))), None)
            if full is None:
                raise
            units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
            used, has = float(full[1]) * units[full[2]], float(full[3]) * units[full[4]]
            return {"needs_bytes": used, "hbm_bytes": has, "lower_seconds": traced - started}
        seconds = time.perf_counter() - traced
        memory = compiled.memory_analysis()
        sizes = ("argument", "output", "alias", "temp")
        return {
            **{f"{name}_bytes": int(_statistic(memory, f"{name}_size_in_bytes")) for name in sizes},
            "host_bytes": sum(int(_statistic(memory, f"host_{name}_size_in_bytes")) for name in ("argument", "temp")),
            "lower_seconds": traced - started,
            "compile_seconds": seconds,
            "places": [_place(device) for device in mesh.devices.flat],
            "text": compiled.as_text(),
        }
    except UserError as error:
        return {"error": str(error)}


def _place(device: Any) -> list[Any]:
    """Slice and coordinates of a TPU's chip."""
    from mmdit_jax.sharding import slice_of

    return [slice_of(device), list(device.coords)] if device.platform == "tpu" else []


def _statistic(memory: Any, name: str) -> Any:
    """A number of XLA's memory statistics."""
    return object.__getattribute__(memory, name)


if __name__ == "__main__":
    main()
