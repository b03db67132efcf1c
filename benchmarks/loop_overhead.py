"""What a run costs outside its training step: data, metrics, events, wandb (offline), checkpoints.

    python -m benchmarks.loop_overhead --depth 2 --steps 600 --rounds 3

Two figures, each a median over rounds. Outside: the wall time of the whole training loop, from its first batch to its
last checkpoint on disk, less validation (an evaluation, not an overhead) and less the time in which a step runs. Each
step is waited for, so nothing hides behind it. Against bare steps: the same loop, not waiting, over the same compiled
step called as many times on one batch that is on the device; it also holds what other threads take from a step, and all
of a noisy machine's noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax


def main(argv: list[str] | None = None) -> None:
    """Print the overhead as a share of the loop's wall time, and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--checkpoint-every", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=Path("studies/_data"))
    args = parser.parse_args(argv)

    from mmdit_jax.host import prepare_host

    prepare_host()
    from experiments import quickstart
    from mmdit_jax.config import HardwareConfig
    from mmdit_jax.diffusion import formulation
    from mmdit_jax.training import loop as training_loop
    from mmdit_jax.training.data import global_batches, training_data
    from mmdit_jax.training.events import read_events
    from mmdit_jax.training.sharding import batch_sharding, make_mesh
    from mmdit_jax.training.state import init_state
    from mmdit_jax.training.step import make_train_step

    run = replace(
        quickstart.study().runs[0],
        name=f"overhead-d{args.depth}",
        model=quickstart.model(args.depth),
        steps=args.steps,
        validate_every=args.steps,
        hardware=HardwareConfig(checkpoint_every=args.checkpoint_every),
    )
    data = training_data(run.data, args.data_dir)
    mesh = make_mesh()
    step = make_train_step(run.model, run.optimizer, run.steps, run.data.text_drop, mesh)
    f = formulation(run.formulation)

    def floor() -> float:
        state = init_state(run.model, run.optimizer, run.steps, run.seed, mesh)
        batch = next(global_batches(run, data, 0, batch_sharding(mesh)))
        jax.block_until_ready((state, batch))
        start = time.perf_counter()
        for _ in range(args.steps):
            state, metrics = step(state, batch, f, run.seed)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    def loop() -> float:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            start = time.perf_counter()
            training_loop.train(run, folder, data, project="overhead", quiet=True)
            seconds = time.perf_counter() - start
            return seconds - sum(event["seconds"] for event in read_events(folder) if event["event"] == "validation")

    def waiting_loop() -> tuple[float, float]:
        """Seconds of a loop that waits for each step, and the part of them in which a step runs."""
        inside = 0.0

        def timed(*arguments: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            out = jax.block_until_ready(step(*arguments))
            inside += time.perf_counter() - start
            return out

        with mock.patch.object(training_loop, "make_train_step", lambda *_: timed):
            whole = loop()
        return whole, inside

    floor(), loop()  # compile, and let wandb start its service
    outside, against = [], []
    for _ in range(args.rounds):
        whole, inside = waiting_loop()
        outside.append(1 - inside / whole)
        print(f"waiting: loop {whole:.2f} s, in steps {inside:.2f} s, outside {100 * outside[-1]:.1f} %", flush=True)
        bare, free = floor(), loop()
        against.append(free / bare - 1)
        print(f"not waiting: loop {free:.2f} s, bare steps {bare:.2f} s, {100 * against[-1]:+.1f} %", flush=True)
    result = {"depth": args.depth, "steps": args.steps, "outside": outside, "against_bare_steps": against}
    print(
        f"median: {100 * statistics.median(outside):.1f} % of the loop's wall time is outside the step", file=sys.stderr
    )
    print(f"median: the loop takes {100 * statistics.median(against):+.1f} % over bare steps", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
