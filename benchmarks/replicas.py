"""Images a second of N runs in one program over N runs one after the other, on this machine's devices.

    python -m benchmarks.replicas --depth 1 --replicas 1 2 4 8

The runs differ in formulation and share their batches, as those of a sweep do. Both ways make the same steps from the
same states, in rounds that alternate; a figure is the median over rounds, compilation left out. Runs in turn use all
devices for each run's batch, as ``mmdit study run`` does; replicas have whole runs on each device. The states of all
runs lie on the devices the whole time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import quickstart
from mmdit_jax.config import OptimizerConfig
from mmdit_jax.diffusion import formulation
from mmdit_jax.host import prepare_host
from mmdit_jax.models import MMDiTConfig
from mmdit_jax.sharding import make_mesh
from mmdit_jax.training.replicas import make_replica_step, replica_mesh, stack
from mmdit_jax.training.state import init_state
from mmdit_jax.training.step import make_train_step

RESOLUTION, TOKENS, STEPS, DROP = 32, 16, 10_000, 0.464
NAMES = ("rf", "rf/lognorm(0.00,1.00)", "rf/mode(1.29)", "rf/cosmap", "rf/lognorm(0.50,0.60)")


def model(depth: int, dtype: str) -> MMDiTConfig:
    """The quickstart's model of ``depth``, its blocks scanned where there are many."""
    return dataclasses.replace(quickstart.model(depth), scan=depth > 4, dtype=dtype)


def images(config: MMDiTConfig, batch: int) -> dict[str, Any]:
    """A batch of random images and texts; what is in it makes no difference to the time."""
    rng = np.random.default_rng(0)
    text = (
        rng.normal(size=(batch, TOKENS, config.context_dim)).astype(np.float16),
        rng.normal(size=(batch, config.pooled_dim)).astype(np.float16),
    )
    return {"image": rng.integers(0, 256, (batch, RESOLUTION, RESOLUTION, 3), np.uint8), "text": {"text": text}}


def measure(
    config: MMDiTConfig,
    optimizer: OptimizerConfig,
    replicas: int,
    batch: int,
    rounds: int,
    seconds: float,
    onednn: bool,
) -> dict[str, float]:
    """Images a second both ways, and their ratio: medians over ``rounds`` of about ``seconds`` each way."""
    given, fs = images(config, batch), [formulation(NAMES[i % len(NAMES)]) for i in range(replicas)]
    mesh, over = make_mesh(), replica_mesh(replicas)
    if replicas % over.size:
        raise SystemExit(f"replicas={replicas}: expected a divisor or a multiple of the {jax.device_count()} devices")
    alone = make_train_step(config, optimizer, STEPS, DROP, mesh, onednn)
    together = make_replica_step(config, optimizer, STEPS, DROP, over, shared_batch=True, onednn=onednn)
    states = [init_state(config, optimizer, STEPS, 0, mesh) for _ in range(replicas)]
    stacked = stack(states, over)
    f, seeds = stack(fs, over), stack([np.uint32(0)] * replicas, over)

    def in_turn(steps: int) -> None:
        for i in range(replicas):
            for _ in range(steps):
                states[i], _ = alone(states[i], given, fs[i], 0)
        jax.block_until_ready(states)

    def at_once(steps: int) -> None:
        nonlocal stacked
        for _ in range(steps):
            stacked, _ = together(stacked, given, f, seeds)
        jax.block_until_ready(stacked)

    for way in (in_turn, at_once):
        way(2)  # compiles, and settles where the arrays lie
    steps = max(2, round(seconds / _timed(in_turn, 2) * 2))
    times: dict[str, list[float]] = {"in_turn": [], "at_once": []}
    for number in range(rounds):
        pair = [("in_turn", in_turn), ("at_once", at_once)]
        for name, way in pair if number % 2 else reversed(pair):
            times[name].append(_timed(way, steps))
    total = replicas * batch * steps
    return {
        "replicas": replicas,
        "in_turn_images_per_second": total / statistics.median(times["in_turn"]),
        "at_once_images_per_second": total / statistics.median(times["at_once"]),
        "ratio": statistics.median(a / b for a, b in zip(times["in_turn"], times["at_once"], strict=True)),
    }


def _timed(way: Callable[[int], None], steps: int) -> float:
    start = time.perf_counter()
    way(steps)
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> None:
    """Print a table, and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, nargs="+", default=[1, 2], help="as of the quickstart (default: 1 2)")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch", type=int, default=32, help="images a step and run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round, each way (default: %(default)s)")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the activations")
    parser.add_argument("--onednn", action="store_true", help="products by oneDNN, on an x86 CPU")
    args = parser.parse_args(argv)

    prepare_host()
    device = jax.devices()[0]
    optimizer = OptimizerConfig(name=args.optimizer, learning_rate=1e-3, warmup_steps=20)
    rows = []
    print(f"{jax.device_count()} x {device.device_kind}, batch {args.batch}, {args.optimizer}, {args.dtype}")
    print("depth  replicas  in turn, images/s  at once, images/s  ratio")
    for depth in args.depth:
        for replicas in args.replicas:
            config = model(depth, args.dtype)
            try:
                row = measure(config, optimizer, replicas, args.batch, args.rounds, args.seconds, args.onednn)
            except jax.errors.JaxRuntimeError as error:  # out of memory: the next size may still be of use
                print(f"{depth:5}  {replicas:8}  {str(error).splitlines()[0][:100]}", flush=True)
                continue
            rows.append({"depth": depth, "batch": args.batch, **row})
            print(
                f"{depth:5}  {replicas:8}  {row['in_turn_images_per_second']:17,.0f}  "
                f"{row['at_once_images_per_second']:17,.0f}  {row['ratio']:5.2f}",
                flush=True,
            )
    print(json.dumps({"device": device.device_kind, "devices": jax.device_count(), **vars(args), "rows": rows}))


if __name__ == "__main__":
    sys.exit(main())
