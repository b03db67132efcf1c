"""Drawing images with guidance: weights in bfloat16, the text encoded beforehand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.on_device.device import needed_bytes, peak_bytes, random_like
from benchmarks.on_device.programs import bound, run_of
from launch.planning.lower import sampling, sampling_arguments
from mmdit_jax.config import Run, context_tokens
from mmdit_jax.diffusion import SamplerConfig, formulation, plan
from mmdit_jax.errors import Diverged
from mmdit_jax.sharding import make_mesh
from mmdit_jax.training.peak import timings

GUIDANCE = 5.0
_WARM_EVALUATIONS = 2


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of drawing the job's batch in all its steps.

    Raises:
      Diverged: what is drawn is not finite.
    """
    run = run_of(job, job["batch"], sampling=True)
    mesh = make_mesh(devices=jax.local_devices()[:1])
    compiled = sampling(run, mesh).compile()
    shapes, _, rows, text, _, noise_shape = sampling_arguments(run, mesh)
    params = weights(shapes)
    prompts, negative, noise = (random_like(tree, seed) for seed, tree in enumerate((text, text, noise_shape), start=1))
    table = plan(formulation(run.formulation), SamplerConfig(steps=job["steps"], guidance=GUIDANCE), rows.t.shape[0])
    # Warm on a few evaluations: it is the same program.
    few = table._replace(evaluations=np.int32(min(_WARM_EVALUATIONS, job["steps"])))
    jax.block_until_ready(compiled(params, None, few, prompts, negative, noise))
    drawn = []

    def draw() -> jax.Array:
        drawn.append(compiled(params, None, table, prompts, negative, noise))
        del drawn[:-1]
        return drawn[-1]

    seconds = timings(draw, calls=1, warm=0, samples=job["rounds"])  # warm already
    if not bool(jnp.isfinite(drawn[0]).all()):
        raise Diverged("what is drawn is not finite")
    program = bound(compiled.as_text(), jax.local_devices()[0].device_kind, job["rates"])
    return {
        "batch": run.batch,
        "steps": job["steps"],
        "seconds": seconds,
        "flops": flops(run, job["steps"]),
        "floor_bytes": float(job["steps"] * sum(leaf.nbytes for leaf in jax.tree.leaves(params))),
        "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "analysis_bytes": needed_bytes(compiled),
        "peak_bytes": peak_bytes(),
        "bound": program if program is None or "error" in program else of_steps(program, job["steps"]),
    }


def flops(run: Run, steps: int) -> float:
    """Of all evaluations with guidance, which are two of each image."""
    size = run.data.resolution
    return 2.0 * steps * run.batch * run.model.flops_per_image(size, size, context_tokens(run))


def of_steps(program: dict[str, Any], steps: int) -> dict[str, Any]:
    """The bound of all evaluations: the loop's length is an argument, so that its text counts one."""
    times = steps if program["uncounted_loops"] else 1
    scaled = ("seconds", "compute_seconds", "memory_seconds", "hbm_bytes")
    return {**program, **{name: times * program[name] for name in scaled}}


def weights(shapes: Any) -> Any:
    """Random weights in the shapes' dtypes, made on the device: never whole in float32.

    Kernels keep the size of what they are given, biases are 0 and scales of norms 1. Layers that start at zero are
    random, too: products of zeros would flatter the device.
    """

    def finished(name: str, numbers: jax.Array) -> jax.Array:
        if name == "kernel":
            return (numbers * numbers.shape[-2] ** -0.5).astype(numbers.dtype)
        return jnp.zeros_like(numbers) if name == "bias" else jnp.ones_like(numbers)

    return random_like(shapes, 0, finished)
