"""Our training step beside that of diffusers' SD3Transformer2DModel under torch.compile, on the same device.

    python -m benchmarks.train_step_vs_diffusers --peer-python /path/to/venv/bin/python
    python -m benchmarks.train_step_vs_diffusers --device cuda --torch-mode max-autotune-no-cudagraphs

Both sides train the same shape (heads = depth, head size 64, QK-norm): forward, backward, clipping, AdamW and a moving
average of the weights. Ours is the step that studies train with, so it also scales uint8 images and drops texts. On a
CPU in float32, small images; on a GPU in bfloat16 with weights and optimizer in float32 (ours by ``model.dtype``,
theirs by autocast), latents and texts of SD3's sizes; float32 products are TF32 there on both sides. Neither side
recomputes activations. ``--torch-mode`` is that of torch.compile.

Speed: each side lives in a process of its own and waits while the other is timed; rounds alternate, and a figure is the
median over rounds of a round's mean. On a CPU the number of torch threads is the faster of one and all.

Compilation: the first step less a steady one, of a process that has compiled something trivial before (what is imported
or started once doesn't count) and finds nothing compiled: JAX's cache is off, torch has an empty
TORCHINDUCTOR_CACHE_DIR. Only one side works meanwhile. ``--compiles`` takes the median of so many processes.

``--peer-python`` is an interpreter that has torch and diffusers; without it, this one is used.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEAD_SIZE = 64
LEARNING_RATE, CLIP_NORM, EMA_DECAY = 1e-4, 1.0, 0.999
MODES = ("default", "max-autotune-no-cudagraphs")


@dataclasses.dataclass(frozen=True)
class Case:
    """What both sides train. Sizes are of images in pixels, or latents in theirs, and of a text's states."""

    depth: int
    device: str
    dtype: str
    batch: int
    resolution: int
    channels: int
    patch: int
    tokens: int
    context_dim: int
    pooled_dim: int
    scan: bool
    """Ours scans over the blocks instead of unrolling them."""
    torch_mode: str


SHAPES: dict[str, dict[str, Any]] = {
    "cpu": {
        "dtype": "float32",
        "batch": 64,
        "resolution": 32,
        "channels": 3,
        "patch": 4,
        "tokens": 16,
        "context_dim": 128,
        "pooled_dim": 128,
    },
    "cuda": {
        "dtype": "bfloat16",
        "batch": 32,
        "resolution": 64,
        "channels": 16,
        "patch": 2,
        "tokens": 154,
        "context_dim": 4096,
        "pooled_dim": 2048,
    },
}
DEPTHS = {"cpu": [2, 3], "cuda": [15, 24]}


@dataclasses.dataclass(frozen=True)
class Ready:
    """What a side tells when it has compiled."""

    device: str
    compile_seconds: float
    step_flops: float | None
    """Per-stream count of a training step; only our side counts."""


Run = Callable[[int], float]
"""Runs so many steps, and returns seconds a step."""


def jax_side(case: Case) -> tuple[Run, Ready]:
    """Our step, compiled."""
    from mmdit_jax.host import prepare_host

    prepare_host()
    import jax
    import numpy as np

    from mmdit_jax.config import OptimizerConfig
    from mmdit_jax.diffusion import formulation
    from mmdit_jax.models import MMDiTConfig
    from mmdit_jax.sharding import make_mesh, shard_batch
    from mmdit_jax.training.state import init_state
    from mmdit_jax.training.step import make_train_step

    jax.config.update("jax_enable_compilation_cache", False)
    model = MMDiTConfig(
        depth=case.depth,
        head_size=HEAD_SIZE,
        patch_size=case.patch,
        in_channels=case.channels,
        context_dim=case.context_dim,
        pooled_dim=case.pooled_dim,
        position_table=case.resolution // case.patch,
        qk_norm=True,
        scan=case.scan,
        dtype=case.dtype,
    )
    optimizer = OptimizerConfig(
        learning_rate=LEARNING_RATE, warmup_steps=10, clip_norm=CLIP_NORM, ema_decay=EMA_DECAY, weight_decay=0.01
    )
    mesh = make_mesh()
    if mesh.size > 1:
        raise SystemExit(f"{mesh.size} devices: expected one, as torch uses; set CUDA_VISIBLE_DEVICES=0")
    state = init_state(model, optimizer, 1000, 0, mesh)
    step = make_train_step(model, optimizer, 1000, 0.464, mesh, onednn=True)
    random = np.random.default_rng(0)
    size = case.resolution
    batch = shard_batch(
        {
            "image": random.integers(0, 256, (case.batch, size, size, case.channels), dtype=np.uint8),
            "text": {
                "words": (
                    random.standard_normal((case.batch, case.tokens, case.context_dim), dtype=np.float32),
                    random.standard_normal((case.batch, case.pooled_dim), dtype=np.float32),
                )
            },
        },
        mesh,
    )
    f = formulation("rf/lognorm(0.00,1.00)")
    jax.block_until_ready((state, batch))

    def run(steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, batch, f, 0)
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - start) / steps

    flops = 3.0 * case.batch * model.flops_per_image(size, size, case.tokens)
    return run, Ready(jax.devices()[0].device_kind, first_less_steady(run), flops)


def torch_side(case: Case, threads: int) -> tuple[Run, Ready]:
    """The same for diffusers' model: compiled model and loss, fused AdamW, clipping and averaging over whole lists.

    ``threads``: of the CPU; 0 leaves them as torch has them.
    """
    import torch
    from diffusers import SD3Transformer2DModel

    if case.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("device='cuda': torch finds none; --device cpu would work")
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    if case.device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, which XLA takes there by default
    model = SD3Transformer2DModel(
        sample_size=case.resolution,
        patch_size=case.patch,
        in_channels=case.channels,
        out_channels=case.channels,
        num_layers=case.depth,
        attention_head_dim=HEAD_SIZE,
        num_attention_heads=case.depth,
        joint_attention_dim=case.context_dim,
        caption_projection_dim=HEAD_SIZE * case.depth,
        pooled_projection_dim=case.pooled_dim,
        pos_embed_max_size=case.resolution // case.patch,
        qk_norm="rms_norm",
    ).to(case.device)
    parameters = list(model.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    x0 = torch.randn(case.batch, case.channels, case.resolution, case.resolution, device=case.device)
    context = torch.randn(case.batch, case.tokens, case.context_dim, device=case.device)
    pooled = torch.randn(case.batch, case.pooled_dim, device=case.device)

    def loss_of(x0: Any, noise: Any, t: Any) -> Any:
        at = t[:, None, None, None]
        z = (1 - at) * x0 + at * noise
        with torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "bfloat16"):
            out = model(
                hidden_states=z,
                timestep=1000 * t,
                encoder_hidden_states=context,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
        return torch.mean((out.float() - (noise - x0)) ** 2)

    compiled = torch.compile(loss_of, mode=case.torch_mode)

    def waited() -> None:
        if case.device == "cuda":
            torch.cuda.synchronize()

    def run(steps: int) -> float:
        waited()
        start = time.perf_counter()
        for _ in range(steps):
            t = torch.sigmoid(torch.randn(case.batch, device=case.device))
            compiled(x0, torch.randn_like(x0), t).backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            torch._foreach_lerp_(averages, parameters, 1 - EMA_DECAY)
        waited()
        return (time.perf_counter() - start) / steps

    trivial = torch.zeros(8, device=case.device, requires_grad=True)
    torch.compile(lambda x: (x * 2).sum(), mode=case.torch_mode)(trivial).backward()
    name = torch.cuda.get_device_name() if case.device == "cuda" else "cpu"
    return run, Ready(name, first_less_steady(run), None)


def first_less_steady(run: Run) -> float:
    """Seconds that the first step takes more than the median of three after the second."""
    first, _, *steady = (run(1) for _ in range(5))
    return first - statistics.median(steady)


def serve(side: str, case: Case, threads: int) -> None:
    """The child's loop: a number of steps on a line of stdin, seconds a step on a line of stdout."""
    run, ready = jax_side(case) if side == "jax" else torch_side(case, threads)
    print(f"ready {json.dumps(dataclasses.asdict(ready))}", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(int(line))), flush=True)


class Side:
    """A child process that has compiled, and times steps when asked."""

    def __init__(self, python: str, side: str, case: Case, threads: int = 0) -> None:
        # A file, not a module: the peer's interpreter need not have this package.
        case_told = json.dumps(dataclasses.asdict(case))
        command = [python, str(Path(__file__).resolve()), "--serve", side, case_told, str(threads)]
        self._cache = tempfile.TemporaryDirectory()
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": self._cache.name}
        if side == "jax":
            env |= {
                "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
                "JAX_PLATFORMS": case.device,
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the other side needs memory, too
            }
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, env=env
        )
        self.ready = self._wait_ready(side)

    def _wait_ready(self, side: str) -> Ready:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready "):
                return Ready(**json.loads(line.removeprefix("ready ")))
        raise SystemExit(f"{side}: its process ended with {self.process.wait()} before it was ready")

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
        self._cache.cleanup()


def compare(case: Case, peer: str, rounds: int, steps: int, compiles: int) -> dict[str, Any]:
    """Alternate between both sides; medians in seconds, and ratios torch / ours (above 1: ours is faster)."""
    threads = [0] if case.device == "cuda" else sorted({1, len(os.sched_getaffinity(0))})
    compiling: dict[str, list[float]] = {"torch": [], "jax": []}
    for _ in range(compiles - 1):
        for name, python in (("torch", peer), ("jax", sys.executable)):
            side = Side(python, name, case, threads[-1])
            compiling[name].append(side.ready.compile_seconds)
            side.close()
    torch_sides = {n: Side(peer, "torch", case, n) for n in threads}
    ours = Side(sys.executable, "jax", case)
    compiling["torch"].append(torch_sides[threads[-1]].ready.compile_seconds)
    compiling["jax"].append(ours.ready.compile_seconds)
    # The number of torch threads: whichever is faster in a few steps, before anything counts.
    tried = {n: side.time(steps) for n, side in torch_sides.items()}
    chosen = min(tried, key=lambda n: tried[n])
    seconds: dict[str, list[float]] = {"torch": [], "jax": []}
    for _ in range(rounds):
        for name, side in (("torch", torch_sides[chosen]), ("jax", ours)):
            side.time(2)  # wakes its threads and caches; not counted
            seconds[name].append(side.time(steps))
    for side in (*torch_sides.values(), ours):
        side.close()
    ratios = [torch / jax for torch, jax in zip(seconds["torch"], seconds["jax"], strict=True)]
    compiled = {name: statistics.median(found) for name, found in compiling.items()}
    return {
        **dataclasses.asdict(case),
        "jax_device": ours.ready.device,
        "torch_device": torch_sides[chosen].ready.device,
        "step_flops": ours.ready.step_flops,
        "jax_seconds": statistics.median(seconds["jax"]),
        "torch_seconds": statistics.median(seconds["torch"]),
        "torch_threads": chosen or None,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "jax_compile_seconds": compiled["jax"],
        "torch_compile_seconds": compiled["torch"],
        "compile_ratio": compiled["torch"] / compiled["jax"],
    }


def told(row: dict[str, Any]) -> str:
    """A row in two lines."""
    threads = f" on {row['torch_threads']} threads" if row["torch_threads"] else ""
    rates = " and ".join(f"{row['step_flops'] / row[f'{side}_seconds'] / 1e12:.3g}" for side in ("jax", "torch"))
    blocks = "scanned" if row["scan"] else "unrolled"
    return (
        f"depth {row['depth']}, batch {row['batch']}, {row['dtype']} on {row['jax_device']}: "
        f"ours ({blocks}) {1000 * row['jax_seconds']:.1f} ms, torch{threads} ({row['torch_mode']}) "
        f"{1000 * row['torch_seconds']:.1f} ms a step ({rates} TFLOP/s, per-stream count); "
        f"speed over torch.compile {row['ratio']:.2f}x (rounds {row['ratio_min']:.2f} to {row['ratio_max']:.2f})\n"
        f"  compilation: ours {row['jax_compile_seconds']:.1f} s, torch {row['torch_compile_seconds']:.1f} s "
        f"({row['compile_ratio']:.2f}x)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with torch and diffusers")
    parser.add_argument("--device", choices=sorted(SHAPES), default="cpu", help="default: %(default)s")
    parser.add_argument("--depths", type=int, nargs="+", help="default: 2 3, on cuda 15 24")
    for name in ("batch", "resolution", "channels", "patch", "tokens", "context_dim", "pooled_dim"):
        defaults = " or ".join(str(SHAPES[device][name]) for device in ("cpu", "cuda"))
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default: {defaults}, by the device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32, on cuda bfloat16")
    parser.add_argument("--torch-mode", choices=MODES, default=MODES[0], help="mode of torch.compile (%(default)s)")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a side in a round")
    parser.add_argument("--compiles", type=int, default=1, help="processes that compile, of each side")
    parser.add_argument("--scan", action="store_true", help="ours scans over the blocks instead of unrolling them")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=3, metavar=("SIDE", "CASE", "THREADS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], Case(**json.loads(args.serve[1])), int(args.serve[2]))
        return
    given = {name: vars(args)[name] for name in SHAPES[args.device] if vars(args)[name] is not None}
    shape = SHAPES[args.device] | given
    rows = []
    for depth in args.depths or DEPTHS[args.device]:
        case = Case(depth=depth, device=args.device, scan=args.scan, torch_mode=args.torch_mode, **shape)
        rows.append(compare(case, args.peer_python, args.rounds, args.steps, args.compiles))
        if not args.json:
            print(told(rows[-1]), flush=True)
    if args.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
