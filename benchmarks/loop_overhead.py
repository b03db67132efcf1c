"""What a run costs outside its training step: data, metrics, events, wandb (offline), checkpoints.

    python -m benchmarks.loop_overhead --depth 2 --steps 300 --rounds 3

Floor: the same compiled step, called as many times on one batch that is already on the device. Measured: the whole
training loop from its first batch to its last checkpoint on disk, less validation (an evaluation, not an overhead).
Rounds alternate in one process; the figure is the median ratio.
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

import jax


def main(argv: list[str] | None = None) -> None:
    """Print the overhead as a share of the loop's wall time, and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=Path("studies/_data"))
    args = parser.parse_args(argv)

    from mmdit_jax.host import prepare_host

    prepare_host()
    from experiments import quickstart
    from mmdit_jax.config import HardwareConfig
    from mmdit_jax.diffusion import formulation
    from mmdit_jax.training.data import global_batches, training_data
    from mmdit_jax.training.events import read_events
    from mmdit_jax.training.loop import train
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
            train(run, folder, data, project="overhead", quiet=True)
            seconds = time.perf_counter() - start
            return seconds - sum(event["seconds"] for event in read_events(folder) if event["event"] == "validation")

    floor(), loop()  # compile, and let wandb start its service
    rounds = [(floor(), loop()) for _ in range(args.rounds)]
    shares = [1 - bare / whole for bare, whole in rounds]
    for bare, whole in rounds:
        print(f"bare steps {bare:.2f} s   whole loop {whole:.2f} s   outside the step {100 * (1 - bare / whole):.1f} %")
    overhead = statistics.median(shares)
    print(f"median: {100 * overhead:.1f} % of the loop's wall time outside the step", file=sys.stderr)
    print(json.dumps({"depth": args.depth, "steps": args.steps, "overhead": overhead, "rounds": rounds}))


if __name__ == "__main__":
    main()
