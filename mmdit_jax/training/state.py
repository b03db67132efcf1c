"""Everything that changes during training, in one pytree."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmdit_jax.config import OptimizerConfig
from mmdit_jax.diffusion import LossByTime
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, init_params
from mmdit_jax.parameter_sharding import state_shardings
from mmdit_jax.sharding import in_memory, memories
from mmdit_jax.training.optimizer import make_optimizer
from mmdit_jax.training.rounding import narrow

HOST = "pinned_host"
"""JAX's name of the host's memory that devices can copy from by themselves."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Step, weights, their moving average, and the optimizer's memory. Randomness is a function of seed and step."""

    step: jax.Array
    """Updates made so far, int32 scalar."""
    params: Any
    """Weights, float32, as ``mmdit_jax.models.init_params`` makes them."""
    ema: Any
    """Moving average of the weights, shaped as they are, in ``OptimizerConfig.ema_dtype``."""
    opt_state: Any
    """Optax state, its moments as ``OptimizerConfig.moments``."""
    loss_by_time: LossByTime
    """What an adaptive density is learned from."""


def init_state(
    model_config: MMDiTConfig,
    optimizer_config: OptimizerConfig,
    steps: int,
    seed: int,
    mesh: Mesh,
    offload: tuple[str, ...] = (),
) -> TrainState:
    """The state before the first step, born sharded: no device ever holds more than its part.

    Args:
      offload: what lies in the host's memory (see ``HardwareConfig.offload``).

    Raises:
      UserError: the mesh divides no axis of some parameter, or its platform has no memory of the host's to lie in.
    """
    make, shardings = _maker(model_config, optimizer_config, steps, mesh, offload)
    state: TrainState = jax.jit(make, out_shardings=shardings)(jnp.uint32(seed))
    return state


def abstract_state(
    model_config: MMDiTConfig,
    optimizer_config: OptimizerConfig,
    steps: int,
    mesh: Mesh,
    offload: tuple[str, ...] = (),
) -> TrainState:
    """Shapes, dtypes and shardings of ``init_state``, with nothing allocated: what a checkpoint is restored into."""
    make, shardings = _maker(model_config, optimizer_config, steps, mesh, offload)
    shapes = jax.eval_shape(make, jnp.uint32(0))
    state: TrainState = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    return state


@functools.lru_cache(maxsize=32)
def _maker(
    model_config: MMDiTConfig,
    optimizer_config: OptimizerConfig,
    steps: int,
    mesh: Mesh,
    offload: tuple[str, ...],
) -> tuple[Callable[[jax.Array], TrainState], TrainState]:
    optimizer = make_optimizer(optimizer_config, steps, model_config)

    def make(seed: jax.Array) -> TrainState:
        params = init_params(model_config, jax.random.key(seed))
        # The average is a copy of its own: the step gives both buffers away.
        ema = narrow(jax.tree.map(jnp.copy, params), optimizer_config.ema_dtype)
        return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), LossByTime.empty())

    shapes = jax.eval_shape(make, jnp.uint32(0))
    shardings: TrainState = state_shardings(shapes, mesh)
    known = memories(mesh)
    if offload and known and HOST not in known:
        raise UserError(f"hardware.offload={offload!r}: {mesh.devices.flat[0].platform} devices have no {HOST} memory")

    def away(tree: Any, like: Any) -> Any:
        return jax.tree.map(lambda to, leaf: in_memory(to, HOST) if leaf.ndim else to, tree, like)

    if "optimizer" in offload:
        shardings = dataclasses.replace(shardings, opt_state=away(shardings.opt_state, shapes.opt_state))
    if "ema" in offload:
        shardings = dataclasses.replace(shardings, ema=away(shardings.ema, shapes.ema))
    return make, shardings
