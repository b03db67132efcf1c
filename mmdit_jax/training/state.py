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
from mmdit_jax.models import MMDiTConfig, init_params
from mmdit_jax.training.optimizer import make_optimizer
from mmdit_jax.training.sharding import state_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Step, weights, their moving average, and the optimizer's memory. Randomness is a function of seed and step."""

    step: jax.Array
    """Updates made so far, int32 scalar."""
    params: Any
    """Weights, float32, as ``mmdit_jax.models.init_params`` makes them."""
    ema: Any
    """Moving average of the weights, shaped as they are."""
    opt_state: Any
    """Optax state."""
    loss_by_time: LossByTime
    """What an adaptive density is learned from."""


def init_state(
    model_config: MMDiTConfig, optimizer_config: OptimizerConfig, steps: int, seed: int, mesh: Mesh
) -> TrainState:
    """The state before the first step, born sharded: no device ever holds more than its part.

    Raises:
      UserError: the mesh's "fsdp" axis divides no axis of some parameter.
    """
    make, shardings = _maker(model_config, optimizer_config, steps, mesh)
    state: TrainState = jax.jit(make, out_shardings=shardings)(jnp.uint32(seed))
    return state


def abstract_state(model_config: MMDiTConfig, optimizer_config: OptimizerConfig, steps: int, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of ``init_state``, with nothing allocated: what a checkpoint is restored into."""
    make, shardings = _maker(model_config, optimizer_config, steps, mesh)
    shapes = jax.eval_shape(make, jnp.uint32(0))
    state: TrainState = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    return state


@functools.lru_cache(maxsize=32)
def _maker(
    model_config: MMDiTConfig, optimizer_config: OptimizerConfig, steps: int, mesh: Mesh
) -> tuple[Callable[[jax.Array], TrainState], TrainState]:
    optimizer = make_optimizer(optimizer_config, steps)

    def make(seed: jax.Array) -> TrainState:
        params = init_params(model_config, jax.random.key(seed))
        # The average is a copy of its own: the step gives both buffers away.
        ema = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), LossByTime.empty())

    return make, state_shardings(jax.eval_shape(make, jnp.uint32(0)), mesh)
