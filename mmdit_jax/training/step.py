"""The training step: one compiled function for every formulation of a path and every seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from mmdit_jax.config import OptimizerConfig
from mmdit_jax.diffusion import Formulation, learned, training_loss
from mmdit_jax.diffusion.adaptive import bin_members
from mmdit_jax.host import onednn_options
from mmdit_jax.models import MMDiTConfig, apply
from mmdit_jax.models.layers import rows_in_parts
from mmdit_jax.models.text import assemble
from mmdit_jax.training.clean import clean
from mmdit_jax.training.optimizer import ema_decay, make_optimizer
from mmdit_jax.training.sharding import batch_sharding, replicated
from mmdit_jax.training.state import TrainState, abstract_state

BINS = 8
POSTERIOR = 2
"""Of the key, third of a step's, that latents are sampled with: the first two are as they were without latents."""

Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch, Formulation, Any], tuple[TrainState, Metrics]]


def step_function(
    model_config: MMDiTConfig,
    optimizer_config: OptimizerConfig,
    steps: int,
    drop: float,
    onednn: bool = False,
    layout: str = "channels",
) -> TrainStep:
    """The step of a run as a pure function, to be jitted (``make_train_step``) or mapped over replicas first.

    ``step(state, batch, formulation, seed)`` returns the next state and the metrics of the batch, which are of the
    weights before the update. A batch holds

    - "image": uint8 [batch, height, width, channels], scaled to [-1, 1] inside, or "latents", of which a sample is
      drawn inside (``clean.Inputs``);
    - "text": for each encoder, (tokens [batch, length, width], pooled [batch, pooled_width]).

    All its randomness (timesteps, noise, samples of latents, which texts are dropped) is a function of the seed and
    ``state.step``, and does not depend on the devices. Metrics are float32: "loss" (weighted, mean over the batch),
    "grad_norm" (before clipping), and over 8 equal bins of t "bin_loss" [8] (mean in the bin, 0 where empty) and
    "bin_count" [8].

    Args:
      steps: length of the run, which the learning rate's schedule needs.
      drop: probability that an encoder's text is replaced by zeros, drawn per example and encoder.
      onednn: whether oneDNN will do the matrix products, which other forms of some sums suit.
      layout: how the encoders' states lie in the context (``models.text.assemble``).
    """
    optimizer = make_optimizer(optimizer_config, steps)

    def step(state: TrainState, batch: Batch, f: Formulation, seed: jax.Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        drop_key, loss_key = jax.random.split(step_key)
        posterior_key = jax.random.fold_in(step_key, POSTERIOR)
        x0 = clean(batch, lambda shape: jax.random.normal(posterior_key, shape))
        text = batch["text"]
        keep = keep_masks(drop_key, sorted(text), len(x0), drop)
        context, pooled = assemble(text, keep, layout=layout)
        drawn_from = learned(f, state.loss_by_time)

        def mean_loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            def network(z: jax.Array, t: jax.Array) -> jax.Array:
                return apply(model_config, params, z, t, context, pooled)

            losses, t = training_loss(drawn_from, network, x0, loss_key)
            return jnp.mean(losses), (losses, t)

        with rows_in_parts(onednn):
            (loss, (losses, t)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(optimizer_config, state.step)
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        bin_loss, bin_count = loss_by_bin(losses, t)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "bin_loss": bin_loss,
            "bin_count": bin_count,
        }
        return TrainState(state.step + 1, params, ema, opt_state, state.loss_by_time.add(losses, t)), metrics

    return step


@functools.lru_cache(maxsize=32)
def make_train_step(
    model_config: MMDiTConfig,
    optimizer_config: OptimizerConfig,
    steps: int,
    drop: float,
    mesh: Mesh,
    onednn: bool = False,
    layout: str = "channels",
) -> TrainStep:
    """``step_function`` jitted over ``mesh``; runs that differ in formulation or seed get the same function back.

    The given state is donated. A batch of another shape, as that of another bucket, is compiled when it first comes.

    Args:
      steps, drop, layout: as of ``step_function``.
      onednn: let oneDNN do the matrix products where the backend is an x86 CPU (see ``HardwareConfig.onednn``).
    """
    options = onednn_options() if onednn else {}
    step = step_function(model_config, optimizer_config, steps, drop, onednn=bool(options), layout=layout)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model_config, optimizer_config, steps, mesh))
    whole = replicated(mesh)
    compiled = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh), whole, whole),
        out_shardings=(shardings, whole),
        donate_argnums=0,
        compiler_options=options,
    )
    several_on_cpu = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return one_at_a_time(compiled) if several_on_cpu else compiled


def one_at_a_time(step: TrainStep) -> TrainStep:
    """``step`` that returns when all devices are done.

    CPU devices of one process share its threads: a device that begins the next step, and waits there for the others,
    can hold the thread that they need to finish this one.
    """

    def finished(state: TrainState, batch: Batch, f: Formulation, seed: Any) -> tuple[TrainState, Metrics]:
        return jax.block_until_ready(step(jax.block_until_ready(state), batch, f, seed))

    return finished


def keep_masks(key: jax.Array, encoders: list[str], batch: int, drop: float) -> dict[str, Bool[Array, " batch"]]:
    """Which examples keep each encoder's text, drawn independently with probability 1 - ``drop``."""
    keys = jax.random.split(key, len(encoders))
    return {name: jax.random.bernoulli(k, 1.0 - drop, (batch,)) for name, k in zip(encoders, keys, strict=True)}


def loss_by_bin(
    losses: Float[Array, " batch"], t: Float[Array, " batch"]
) -> tuple[Float[Array, " bins"], Float[Array, " bins"]]:
    """Mean loss and number of examples in each of 8 equal bins of t; an empty bin has loss 0.

    A non-finite loss stays in its own bin, so that a divergence says where it began.
    """
    members = bin_members(t, BINS)
    count = jnp.sum(members, axis=1, dtype=jnp.float32)
    total = jnp.sum(jnp.where(members, losses[None, :].astype(jnp.float32), 0.0), axis=1)
    return total / jnp.maximum(count, 1.0), count
