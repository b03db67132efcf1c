"""A measurement in a process of its own: a job as JSON on stdin, its answer as JSON on stdout, all else on stderr.

    echo '{"kind": "ceilings", …}' | python -m benchmarks.on_device.job

An answer has an ``error`` where there is nothing to measure: a line.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Answer one job."""
    job = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    answer = respond(job)
    with os.fdopen(out, "w") as stream:
        stream.write(json.dumps(answer))


def respond(job: dict[str, Any]) -> dict[str, Any]:
    """What was measured; {"error": line} of what can't be, {"no_gpu": line} where there is no GPU to measure."""
    import jax

    from mmdit_jax.errors import Diverged, UserError

    found = jax.default_backend()
    if found not in ("gpu", "tpu") and not job["tiny"]:
        return {"no_gpu": f"device: jax sees {found} alone; expected a GPU, or --tiny to try the benchmark without one"}
    from benchmarks.on_device import ceilings, sampling, training

    measure = {"ceilings": ceilings.measure, "training": training.measure, "sampling": sampling.measure}[job["kind"]]
    try:
        return measure(job)
    except (UserError, Diverged) as error:
        return {"error": str(error)}
    except jax.errors.JaxRuntimeError as error:
        if not training.out_of_memory(error):
            raise
        return {"error": f"out of memory: {str(error).splitlines()[0]}"}


if __name__ == "__main__":
    main()
