"""The programs that plans are made of, lowered for devices that are not here. For the child process only."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from launch.planning.gpu import target_config
from launch.planning.request import Request
from launch.planning.target import Target
from mmdit_jax.config import Run, context_tokens, text_shapes
from mmdit_jax.data.store import BUILDERS
from mmdit_jax.diffusion import SamplerConfig, formulation, plan
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.text_to_image import Conditioning, sampler_program
from mmdit_jax.models import init_params
from mmdit_jax.sharding import batch_sharding, make_mesh, placed_on
from mmdit_jax.training.program import mesh_of, step_of
from mmdit_jax.training.state import abstract_state


def devices_of(target: Target) -> Sequence[Any]:
    """Devices to compile for, in the order of the machine.

    Raises:
      UserError: there is no such topology.
    """
    if not target.is_tpu:
        nodes, gpus = target.shape
        found = topologies.get_topology_desc(
            platform="cuda", target_config=target_config(target.chip), topology=f"1x{nodes}x{gpus}"
        )
        return found.devices
    options: dict[str, Any] = dict(target.chip.topology_options)
    if target.slices > 1:
        options["num_slices"] = target.slices
    name = f"{target.chip.name}:{'x'.join(map(str, target.shape))}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # XLA has one type for all
        bounds = re.search(r'chips_per_host_bounds "([\dx]+)"', str(error))
        if not bounds:
            raise UserError(f"topology={target.name!r}: {str(error).splitlines()[0]}") from error
        host = [int(size) for size in bounds[1].split("x")]
        near = [-(-size // by) * by for size, by in zip(target.shape, [*host, *[1] * 3], strict=False)]
        raise UserError(
            f"topology={target.name!r}: hosts of {bounds[1]} chips do not fill it; "
            f"did you mean {replace(target, shape=tuple(near)).name}?"
        ) from error


def lowered(request: Request) -> tuple[Any, Mesh]:
    """The program, and the mesh it is for."""
    run, devices = request.run, devices_of(request.target)
    if not request.target.is_tpu:
        # XLA recomputes of its own where memory is nearly full, which it takes to be at 80 % of a GPU that is not here.
        jax.config.update("jax_compiler_enable_remat_pass", False)
        if run.model.attention in ("auto", "cudnn"):
            _take_cudnn_as_given()
    if request.sampling:
        mesh = make_mesh(devices=devices[:1])
        return sampling(run, mesh), mesh
    mesh = mesh_of(run, devices)
    state = abstract_state(run.model, run.optimizer, run.steps, mesh, run.hardware.offload)
    lower: Any = step_of(run, mesh)
    # What lies in the memory of hosts that are not here is sharded over an abstract mesh (``sharding.in_memory``).
    with jax.set_mesh(mesh) if run.hardware.offload else contextlib.nullcontext():
        return lower.lower(state, abstract_batch(run, mesh), formulation(run.formulation), np.uint32(0)), mesh


def compiler_options(target: Target) -> dict[str, str | bool]:
    """What the compiler is told beside its defaults.

    Of a GPU: no Triton kernels for matrix products. They are chosen by trying them out on the device; without one XLA
    takes tiles that do not exist for some of ours. cuBLAS's calls, which it has instead, take the same memory.
    """
    return {} if target.is_tpu else {"xla_gpu_enable_triton_gemm": False}


def abstract_batch(run: Run, mesh: Mesh) -> dict[str, Any]:
    """Shapes of a batch with the states of the run's text encoders: of images, or of latents as encoded sets have."""
    where = batch_sharding(mesh)

    built_in = run.data.name in BUILDERS

    def array(*shape: int, dtype: Any = jnp.float16 if built_in else jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((run.batch, *shape), dtype, sharding=where)

    size, channels = run.data.resolution, run.model.in_channels
    text = {
        name: (array(shape.length, shape.width), array(shape.pooled_width))
        for name, shape in text_shapes(run.data.text_encoders, run.data.text_shapes).items()
    }
    if built_in:
        return {"image": array(size, size, channels, dtype=jnp.uint8), "text": text}
    one, square = array(dtype=jnp.float32), array(size, size, channels)
    return {"latents": {"mean": square, "logvar": square, "shift": one, "scale": one}, "text": text}


def sampling_arguments(run: Run, mesh: Mesh) -> tuple[Any, ...]:
    """Shapes of what ``sampler_program`` takes to draw ``run.batch`` images with guidance.

    Weights are in the blocks' dtype, the text is encoded beforehand, the table is of 50 steps.
    """
    where = NamedSharding(mesh, PartitionSpec())

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    config, size = run.model, run.data.resolution
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: array(*leaf.shape, dtype=config.dtype), shapes)
    text = Conditioning(
        array(run.batch, context_tokens(run), config.context_dim),  # type: ignore[arg-type]
        array(run.batch, config.pooled_dim),  # type: ignore[arg-type]
    )
    table = jax.tree.map(
        lambda leaf: array(*np.shape(leaf), dtype=np.asarray(leaf).dtype),
        plan(formulation(run.formulation), SamplerConfig(steps=50, guidance=5.0)),
    )
    noise = array(run.batch, size, size, config.in_channels)
    return params, None, table, text, text, noise


def sampling(run: Run, mesh: Mesh) -> Any:
    """The loop that draws them, lowered."""
    program: Any = sampler_program(run.model, True)
    with placed_on(mesh):
        return program.lower(*sampling_arguments(run, mesh))


def _take_cudnn_as_given() -> None:
    """JAX asks cuDNN's version before it writes a call of it; here is none, and the call is all that is wanted."""
    import jax._src.cudnn.fused_attention_stablehlo as fused

    for name in ("check_cudnn_version", "check_compute_capability"):
        if name not in vars(fused):
            raise UserError(f"jax={jax.__version__}: has no {name} any more; plan with --set model.attention=xla")
    fused.check_cudnn_version = lambda: 91000
    fused.check_compute_capability = lambda *_: True
