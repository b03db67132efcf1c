"""The update rule of a run: clipping, AdamW or Muon, warm-up and schedule, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from mmdit_jax.config import OptimizerConfig
from mmdit_jax.models import MMDiTConfig
from mmdit_jax.models.parametrization import Rule, rules
from mmdit_jax.training.rounding import narrow, stored, widened

# Matrices inside the blocks, which Muon orthogonalises. Modulations, embeddings and the output layer stay with AdamW:
# they start at zero, or map from and to inputs whose channels mean something one by one.
MUON_LAYERS = ("qkv", "out", "up", "down", "cross_q", "cross_kv", "cross_out", "conv_in", "conv_out", "shortcut")
# Muon's own rate is about ten times AdamW's on the same network.
ADAM_SHARE = 0.1
ROUNDING_SEED = 403_03208
"""Key of the random rounding of moments."""


def learning_rate(config: OptimizerConfig, steps: int, peak: float | None = None) -> optax.Schedule:
    """Linear warm-up from zero to the peak, then constant, or a cosine or a line that reaches zero at ``steps``.

    The rate of update n (from 0) is schedule(n). The first update has rate peak / (warmup_steps + 1), not zero.
    """
    peak = config.learning_rate if peak is None else peak
    warmup, rest = config.warmup_steps, max(steps - config.warmup_steps, 1)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        n = jnp.asarray(count, jnp.float32)
        progress = jnp.clip((n - warmup) / rest, 0.0, 1.0)
        falls = {
            "constant": lambda: jnp.ones_like(n),
            "cosine": lambda: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            "linear": lambda: 1 - progress,
        }
        return peak * jnp.minimum(1.0, (n + 1) / (warmup + 1)) * falls[config.schedule]()

    return schedule


def make_optimizer(config: OptimizerConfig, steps: int, model: MMDiTConfig) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW or Muon with decoupled weight decay; AdamW by ``model``'s parametrization.

    Decay is on kernels only: biases and the scales of norms are left free. Under ``muon`` the block matrices named in
    ``MUON_LAYERS`` are orthogonalised, each layer of the stack on its own; everything else is AdamW's, at
    ``adam_learning_rate``.
    """
    rate = learning_rate(config, steps)
    if model.parametrization == "mup":
        chain = _mup(config, rate, model)
    elif config.name == "adamw":
        update = optax.adamw(
            rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=is_kernel
        )
        chain = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    else:
        adam_peak = config.adam_learning_rate
        adam_rate = learning_rate(config, steps, ADAM_SHARE * config.learning_rate if adam_peak is None else adam_peak)
        update = optax.contrib.muon(
            rate,
            adam_learning_rate=adam_rate,
            adam_b1=config.b1,
            adam_b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=muon_dimensions,
        )
        chain = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return chain if config.moments == "float32" else _narrowed(chain, config.moments)


class NarrowState(NamedTuple):
    """The state of an optimizer whose moments are stored in fewer bits."""

    updates: jax.Array
    """How many so far, of which the random rounding is a function."""
    inner: Any


def _narrowed(optimizer: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """``optimizer`` with its moments in ``dtype`` between updates, which are computed in float32."""

    def init(params: Any) -> NarrowState:
        return NarrowState(jnp.zeros((), jnp.int32), narrow(optimizer.init(params), dtype))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, NarrowState]:
        updates, inner = optimizer.update(updates, widened(state.inner), params)
        key = jax.random.fold_in(jax.random.key(ROUNDING_SEED), state.updates)
        return updates, NarrowState(state.updates + 1, stored(inner, dtype, key))

    return optax.GradientTransformation(init, update)


def _mup(config: OptimizerConfig, rate: optax.Schedule, model: MMDiTConfig) -> optax.GradientTransformation:
    """Clipping and AdamW by the rules of each parameter, as if the network had their multipliers.

    Clipping sees the gradients of that network, whose norm does not grow with the width. To divide a gradient by its
    size before Adam, and not by it again, multiplies epsilon by the size.
    """

    def by(factor: Callable[[Rule], Any]) -> optax.GradientTransformation:
        def scaled(updates: Any, _: Any) -> Any:
            of_each = rules(model, updates)
            return jax.tree.map(lambda own, leaf: factor(own) * leaf, of_each, updates, is_leaf=_is_rule)

        return optax.stateless(scaled)

    return optax.chain(
        by(lambda own: own.multiplier),
        optax.clip_by_global_norm(config.clip_norm),
        by(lambda own: 1 / own.gradient),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        by(lambda own: own.multiplier * own.rate),
        optax.add_decayed_weights(config.weight_decay, is_kernel),
        optax.scale_by_learning_rate(rate),
    )


def _is_rule(item: Any) -> bool:
    return isinstance(item, Rule)


def ema_decay(config: OptimizerConfig, step: jax.Array) -> jax.Array:
    """Decay of the moving average at update ``step`` (from 0), float32: min(decay, (1 + n) / (10 + n)), n the updates
    of the average before; 1, which leaves it as it is, at steps between two of them.

    The ramp forgets the initial weights, so that an average over a short run is worth having.
    """
    n = (step // config.ema_every).astype(jnp.float32)
    decay = jnp.minimum(config.ema_decay, (1 + n) / (10 + n))
    return decay if config.ema_every == 1 else jnp.where((step + 1) % config.ema_every == 0, decay, 1.0)


def is_kernel(params: Any) -> Any:
    """A tree of booleans: which parameters are kernels of dense layers."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def muon_dimensions(params: Any) -> Any:
    """A tree that holds the matrix axes of each parameter under Muon, and None for AdamW's.

    The leading axis of a stacked kernel is a batch of matrices, which the last two axes make.
    """

    def dimensions(path: tuple[Any, ...], _: Any) -> MuonDimensionNumbers | None:
        names = [entry.key for entry in path]
        if names[-1] == "kernel" and names[-2] in MUON_LAYERS and {"dual", "blocks", "last"} & set(names):
            return MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
        return None

    return jax.tree_util.tree_map_with_path(dimensions, params)
