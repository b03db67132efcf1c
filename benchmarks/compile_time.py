"""Compile time of the training step against depth: the blocks are scanned, so it should not grow with them.

    python -m benchmarks.compile_time

Lowers and compiles the whole step (forward, backward, clipping, AdamW, averaging) of a narrow model, each depth in a
process of its own without a compilation cache, the depths in turn; a figure is the median over rounds. What counts is
from the first line of tracing to the executable, on this machine's default backend.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

WIDTH, HEAD_SIZE, BATCH, RESOLUTION, PATCH, TOKENS, TEXT_DIM = 64, 16, 8, 32, 4, 16, 32


def compile_seconds(depth: int) -> float:
    """Seconds to trace, lower and compile the step of ``depth`` blocks in this process."""
    import jax
    import jax.numpy as jnp

    from mmdit_jax.config import OptimizerConfig
    from mmdit_jax.diffusion import formulation
    from mmdit_jax.models import MMDiTConfig
    from mmdit_jax.sharding import make_mesh
    from mmdit_jax.training.state import abstract_state
    from mmdit_jax.training.step import make_train_step

    jax.config.update("jax_enable_compilation_cache", False)
    model = MMDiTConfig.from_depth(
        depth,
        width=WIDTH,
        head_size=HEAD_SIZE,
        patch_size=PATCH,
        in_channels=3,
        context_dim=TEXT_DIM,
        pooled_dim=TEXT_DIM,
        position_table=RESOLUTION // PATCH,
        qk_norm=True,
    )
    optimizer, mesh = OptimizerConfig(), make_mesh()
    text = (
        jax.ShapeDtypeStruct((BATCH, TOKENS, TEXT_DIM), jnp.float32),
        jax.ShapeDtypeStruct((BATCH, TEXT_DIM), jnp.float32),
    )
    image = jax.ShapeDtypeStruct((BATCH, RESOLUTION, RESOLUTION, 3), jnp.uint8)
    batch = {"image": image, "text": {"words": text}}
    # Whatever a process does once (starting the backend, importing lazily) is not the step's compile time.
    jax.jit(lambda x: x + 1)(jnp.zeros(8)).block_until_ready()
    state = abstract_state(model, optimizer, 1000, mesh)
    start = time.perf_counter()
    step = make_train_step(model, optimizer, 1000, 0.464, mesh)
    step.lower(state, batch, formulation("rf/lognorm(0.00,1.00)"), 0).compile()  # type: ignore[attr-defined]
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs=2, default=[4, 38])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, metavar="DEPTH", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        print(json.dumps(compile_seconds(args.serve)))
        return
    seconds: dict[int, list[float]] = {depth: [] for depth in args.depths}
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    for _ in range(args.rounds):
        for depth in args.depths:
            command = [sys.executable, "-m", "benchmarks.compile_time", "--serve", str(depth)]
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
            seconds[depth].append(json.loads(out.splitlines()[-1]))
    shallow, deep = (statistics.median(seconds[depth]) for depth in args.depths)
    if args.json:
        print(json.dumps({"depths": args.depths, "seconds": [shallow, deep], "ratio": deep / shallow}))
        return
    first, second = args.depths
    print(f"compile depth {first}: {shallow:.1f} s, depth {second}: {deep:.1f} s, ratio {deep / shallow:.2f}x")


if __name__ == "__main__":
    main()
