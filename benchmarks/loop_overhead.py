"""What a run costs outside its training step: data, metrics, events, wandb (offline), checkpoints, result.json.

    python -m benchmarks.loop_overhead --rounds 3

Runs of the quickstart, through the code that executes them. Each step is waited for, so that nothing hides behind it;
what is left of the run's wall time after its steps, its validations and its evaluation is "outside". It is told as a
share of the run's wall time (without compilation: nothing compiles when it is measured) and of steps and outside
together. What other threads (wandb, a checkpoint being written) take from a step shows in neither; so the same run is
made without waiting, too, beside the same compiled step called as often on one batch. Medians over rounds.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax

Clock = collections.Counter[str]


def timed(clock: Clock, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` that adds the seconds it takes, until its result is there, to ``clock[part]``."""

    def call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        out = jax.block_until_ready(function(*arguments, **options))
        clock[part] += time.perf_counter() - start
        return out

    return call


@contextlib.contextmanager
def parts_timed(clock: Clock, wait: bool) -> Iterator[None]:
    """Validation and evaluation add up on ``clock`` in here; with ``wait`` the rest, too, and steps are waited for."""
    from launch import execute
    from mmdit_jax.training import checkpoint, data, member, meter, program

    make_step, batches = program.make_train_step, data.global_batches

    def timed_batches(*arguments: Any) -> Iterator[Any]:
        advance = timed(clock, "batches", batches(*arguments).__next__)
        while True:
            yield advance()

    parts: list[tuple[Any, str, Any]] = [
        (member, "validation_loss", timed(clock, "validation", member.validation_loss)),
        (execute, "evaluate", timed(clock, "evaluation", execute.evaluate)),
    ]
    if wait:
        parts += [
            (program, "make_train_step", lambda *given, **named: timed(clock, "steps", make_step(*given, **named))),
            (data, "global_batches", timed_batches),
            (meter.Meter, "read", timed(clock, "metrics", meter.Meter.read)),
            (checkpoint.Checkpoints, "save", timed(clock, "checkpoints", checkpoint.Checkpoints.save)),
            (checkpoint.Checkpoints, "close", timed(clock, "checkpoints", checkpoint.Checkpoints.close)),
        ]
    with contextlib.ExitStack() as stack:  # timers go around the real parts and come off again; nothing is replaced
        for owner, name, replacement in parts:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def measure(depth: int, rounds: int, data_dir: Path) -> dict[str, Any]:
    """Medians over ``rounds`` for the quickstart's run of ``depth``: seconds of each part, shares outside the step."""
    from experiments import quickstart
    from launch.execute import Handling, execute
    from launch.places import Places
    from mmdit_jax.diffusion import formulation
    from mmdit_jax.sharding import make_mesh
    from mmdit_jax.training.data import global_batches, training_data
    from mmdit_jax.training.program import step_of
    from mmdit_jax.training.state import init_state

    run = next(run for run in quickstart.study().runs if run.model.depth == depth)
    data, mesh, f = training_data(run, data_dir), make_mesh(), formulation(run.formulation)
    step = step_of(run, mesh)

    def bare_steps() -> float:
        state = init_state(run.model, run.optimizer, run.steps, run.seed, mesh)
        batch = next(global_batches(run, data, 0, mesh))
        start = time.perf_counter()
        for _ in range(run.steps):
            state, metrics = step(state, batch, f, run.seed)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    def whole_run() -> float:
        with tempfile.TemporaryDirectory() as name:
            start = time.perf_counter()
            execute(run, Places(Path(name), "overhead", data_dir), Handling(quiet=True))
            return time.perf_counter() - start

    whole_run()  # compiles, and lets wandb start its service
    clocks: list[Clock] = []
    for number in range(rounds):
        clock = Clock()
        with parts_timed(clock, wait=True):
            clock["run"] = whole_run()
        clock["bare steps"] = bare_steps()
        free = Clock()
        with parts_timed(free, wait=False):
            clock["free run"] = whole_run() - free["evaluation"] - free["validation"]
        clock["outside"] = clock["run"] - clock["steps"] - clock["validation"] - clock["evaluation"]
        print(f"depth {depth}, round {number + 1}: {_seconds(clock)}", file=sys.stderr, flush=True)
        clocks.append(clock)
    median = {part: statistics.median(clock[part] for clock in clocks) for part in clocks[0]}
    return {
        "depth": depth,
        "steps": run.steps,
        "seconds": median,
        "outside_share_of_run": statistics.median(clock["outside"] / clock["run"] for clock in clocks),
        "outside_share_of_loop": statistics.median(
            clock["outside"] / (clock["outside"] + clock["steps"]) for clock in clocks
        ),
        "over_bare_steps": statistics.median(clock["free run"] / clock["bare steps"] - 1 for clock in clocks),
    }


def main(argv: list[str] | None = None) -> None:
    """Print the shares of each depth, and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=Path("studies/_data"))
    args = parser.parse_args(argv)

    from mmdit_jax.host import prepare_host

    prepare_host()
    rows = []
    for depth in args.depths:
        row = measure(depth, args.rounds, args.data_dir)
        rows.append(row)
        print(
            f"depth {depth}: outside the step {row['seconds']['outside']:.2f} s of {row['seconds']['run']:.1f} s, "
            f"{100 * row['outside_share_of_run']:.1f} % of the run "
            f"({100 * row['outside_share_of_loop']:.1f} % of steps and outside together); "
            f"without waiting {100 * row['over_bare_steps']:+.1f} % over bare steps",
            file=sys.stderr,
            flush=True,
        )
    print(json.dumps(rows))


def _seconds(clock: Clock) -> str:
    return ", ".join(f"{part} {seconds:.2f} s" for part, seconds in clock.items())


if __name__ == "__main__":
    main()
