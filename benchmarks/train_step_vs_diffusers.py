"""Speed of our training step over that of diffusers' SD3Transformer2DModel under torch.compile, on the same cores.

    python -m benchmarks.train_step_vs_diffusers --peer-python /path/to/venv/bin/python

Both sides train the same shape (heads = depth, head size 64, 32 x 32 x 3 images in 4 x 4 patches, 16 text tokens,
QK-norm): forward, backward, clipping, AdamW and a moving average of the weights, in float32. Ours is the step that
studies train with, so it also scales uint8 images and drops texts. Each side lives in a process of its own and waits
while the other is timed; rounds alternate, and a figure is the median over rounds of a round's mean. The number of
torch threads is the faster of one and all. ``--peer-python`` is an interpreter that has torch and diffusers; without
it, this one is used.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, RESOLUTION, CHANNELS, PATCH = 64, 32, 3, 4
TOKENS, CONTEXT_DIM, POOLED_DIM, HEAD_SIZE = 16, 128, 128, 64
LEARNING_RATE, CLIP_NORM, EMA_DECAY = 1e-4, 1.0, 0.999


def jax_side(depth: int, scan: bool) -> Callable[[int], float]:
    """Compile and warm our step; the function given back runs n steps and returns seconds a step."""
    from mmdit_jax.host import prepare_host

    prepare_host()
    import jax
    import numpy as np

    from mmdit_jax.config import OptimizerConfig
    from mmdit_jax.diffusion import formulation
    from mmdit_jax.models import MMDiTConfig
    from mmdit_jax.training.sharding import make_mesh, shard_batch
    from mmdit_jax.training.state import init_state
    from mmdit_jax.training.step import make_train_step

    model = MMDiTConfig(
        depth=depth,
        head_size=HEAD_SIZE,
        patch_size=PATCH,
        in_channels=CHANNELS,
        context_dim=CONTEXT_DIM,
        pooled_dim=POOLED_DIM,
        position_table=RESOLUTION // PATCH,
        qk_norm=True,
        scan=scan,
    )
    optimizer = OptimizerConfig(
        learning_rate=LEARNING_RATE, warmup_steps=10, clip_norm=CLIP_NORM, ema_decay=EMA_DECAY, weight_decay=0.01
    )
    mesh = make_mesh()
    state = init_state(model, optimizer, 1000, 0, mesh)
    step = make_train_step(model, optimizer, 1000, 0.464, mesh, onednn=True)
    random = np.random.default_rng(0)
    batch = shard_batch(
        {
            "image": random.integers(0, 256, (BATCH, RESOLUTION, RESOLUTION, CHANNELS), dtype=np.uint8),
            "text": {
                "words": (
                    random.standard_normal((BATCH, TOKENS, CONTEXT_DIM), dtype=np.float32),
                    random.standard_normal((BATCH, POOLED_DIM), dtype=np.float32),
                )
            },
        },
        mesh,
    )
    f = formulation("rf/lognorm(0.00,1.00)")

    def run(steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, batch, f, 0)
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - start) / steps

    run(3)
    return run


def torch_side(depth: int, threads: int) -> Callable[[int], float]:
    """The same for diffusers' model: compiled model and loss, fused AdamW, clipping and averaging over whole lists."""
    import torch
    from diffusers import SD3Transformer2DModel

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=RESOLUTION,
        patch_size=PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=depth,
        attention_head_dim=HEAD_SIZE,
        num_attention_heads=depth,
        joint_attention_dim=CONTEXT_DIM,
        caption_projection_dim=HEAD_SIZE * depth,
        pooled_projection_dim=POOLED_DIM,
        pos_embed_max_size=RESOLUTION // PATCH,
        qk_norm="rms_norm",
    )
    parameters = list(model.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    x0 = torch.randn(BATCH, CHANNELS, RESOLUTION, RESOLUTION)
    context, pooled = torch.randn(BATCH, TOKENS, CONTEXT_DIM), torch.randn(BATCH, POOLED_DIM)

    @torch.compile
    def loss_of(x0: Any, noise: Any, t: Any) -> Any:
        at = t[:, None, None, None]
        z = (1 - at) * x0 + at * noise
        out = model(
            hidden_states=z,
            timestep=1000 * t,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return torch.mean((out - (noise - x0)) ** 2)

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            loss = loss_of(x0, torch.randn_like(x0), torch.sigmoid(torch.randn(BATCH)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            torch._foreach_lerp_(averages, parameters, 1 - EMA_DECAY)
        return (time.perf_counter() - start) / steps

    run(3)
    return run


def serve(side: str, depth: int, option: int) -> None:
    """The child's loop: a number of steps on a line of stdin, seconds a step on a line of stdout."""
    run = jax_side(depth, bool(option)) if side == "jax" else torch_side(depth, option)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(int(line))), flush=True)


class Side:
    """A child process that times steps when asked."""

    def __init__(self, python: str, side: str, depth: int, option: int) -> None:
        # A file, not a module: the peer's interpreter need not have this package.
        command = [python, str(Path(__file__).resolve()), "--serve", side, str(depth), str(option)]
        root = str(Path(__file__).resolve().parents[1])
        env = {**os.environ, "PYTHONPATH": root} if side == "jax" else dict(os.environ)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, env=env
        )

    def wait_ready(self) -> None:
        """Return once the child has compiled."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == "ready":
                return
        raise SystemExit(f"{self.process.args}: ended with {self.process.wait()}")

    def time(self, steps: int) -> float:
        """Seconds a step, over ``steps`` of them."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the child."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(depth: int, peer: str, rounds: int, steps: int, scan: bool) -> dict[str, Any]:
    """Alternate between both sides; medians in seconds, and the ratio torch / ours (above 1: ours is faster)."""
    torch_sides = {n: Side(peer, "torch", depth, n) for n in sorted({1, len(os.sched_getaffinity(0))})}
    ours = Side(sys.executable, "jax", depth, int(scan))
    for side in (*torch_sides.values(), ours):
        side.wait_ready()
    # The number of torch threads: whichever is faster in a few steps, before anything counts.
    tried = {n: side.time(steps) for n, side in torch_sides.items()}
    threads = min(tried, key=lambda n: tried[n])
    seconds: dict[str, list[float]] = {"torch": [], "jax": []}
    for _ in range(rounds):
        for name, side in (("torch", torch_sides[threads]), ("jax", ours)):
            side.time(2)  # wakes its threads and caches; not counted
            seconds[name].append(side.time(steps))
    for side in (*torch_sides.values(), ours):
        side.close()
    ratios = [torch / jax for torch, jax in zip(seconds["torch"], seconds["jax"], strict=True)]
    return {
        "depth": depth,
        "jax_seconds": statistics.median(seconds["jax"]),
        "torch_seconds": statistics.median(seconds["torch"]),
        "torch_threads": threads,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with torch and diffusers")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a side in a round")
    parser.add_argument("--scan", action="store_true", help="scan over the blocks instead of unrolling them")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=3, metavar=("SIDE", "DEPTH", "OPTION"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], int(args.serve[1]), int(args.serve[2]))
        return
    rows = [compare(depth, args.peer_python, args.rounds, args.steps, args.scan) for depth in args.depths]
    if args.json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        print(
            f"depth {row['depth']}: ours {1000 * row['jax_seconds']:.1f} ms, "
            f"torch on {row['torch_threads']} threads {1000 * row['torch_seconds']:.1f} ms a step; "
            f"speed over torch.compile {row['ratio']:.2f}x (rounds {row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        )


if __name__ == "__main__":
    main()
