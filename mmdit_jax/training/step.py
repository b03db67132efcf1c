"""The training step: one compiled function for every formulation of a path and every seed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mmdit_jax.config import OptimizerConfig
from mmdit_jax.diffusion import Formulation, learned
from mmdit_jax.diffusion.adaptive import bin_members
from mmdit_jax.diffusion.loss import draw, loss_at
from mmdit_jax.host import by_onednn, step_options
from mmdit_jax.models import MMDiTConfig, apply
from mmdit_jax.models.frame import unrolls
from mmdit_jax.models.layers import rows_in_parts
from mmdit_jax.models.products import check_products
from mmdit_jax.models.text import assemble
from mmdit_jax.parameter_sharding import state_shardings
from mmdit_jax.sharding import batch_sharding, place, placed_on, platform, replicated
from mmdit_jax.training.clean import clean
from mmdit_jax.training.optimizer import ema_decay, make_optimizer
from mmdit_jax.training.rounding import stored, widened
from mmdit_jax.training.state import TrainState, abstract_state

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

BINS = 8
POSTERIOR = 2
"""Of the key, third of a step's, that latents are sampled with: the first two are as they were without latents."""

EMA_SEED = 403_03209
"""Key of the random rounding of the moving average."""

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
    accumulation: int = 1,
    mesh: Mesh | None = None,
    offload: tuple[str, ...] = (),
) -> TrainStep:
    """The step of a run as a pure function, to be jitted (``make_train_step``) or mapped over replicas first.

    ``step(state, batch, formulation, seed)`` returns the next state and the metrics of the batch, which are of the
    weights before the update. A batch holds

    - "image": uint8 [batch, height, width, channels], scaled to [-1, 1] inside, or "latents", of which a sample is
      drawn inside (``clean.Inputs``);
    - "text": for each encoder, (tokens [batch, length, width], pooled [batch, pooled_width]).

    All its randomness (timesteps, noise, samples of latents, which texts are dropped) is a function of the seed and
    ``state.step``, and does not depend on the devices, nor on the accumulation. Metrics are float32: "loss" (weighted,
    mean over the batch), "grad_norm" (before clipping), and over 8 equal bins of t "bin_loss" [8] (mean in the bin, 0
    where empty) and "bin_count" [8].

    Args:
      steps: length of the run, which the learning rate's schedule needs.
      drop: probability that an encoder's text is replaced by zeros, drawn per example and encoder.
      onednn: whether oneDNN will do the matrix products, which other forms of some sums suit.
      layout: how the encoders' states lie in the context (``models.text.assemble``).
      accumulation: parts of the batch that are taken one after the other; a divisor of it.
      mesh: where activations are placed; None leaves it to the compiler.

    Raises:
      UserError: the model's products need a package that is not installed.
    """
    check_products(model_config)
    with placed_on(mesh):
        model_config = dataclasses.replace(model_config, scan=not unrolls(model_config))
    optimizer = make_optimizer(optimizer_config, steps, model_config)

    def loss_of(params: Any, f: Formulation, part: _Part) -> tuple[jax.Array, jax.Array]:
        """Mean, and loss of each example."""
        context, pooled = assemble(part.text, part.keep, layout=layout)

        def network(z: jax.Array, t: jax.Array) -> jax.Array:
            return apply(model_config, params, z, t, context, pooled)

        losses = loss_at(f, network, part.x0, part.t, part.eps)
        return jnp.mean(losses), losses

    def gradient(params: Any, f: Formulation, whole: _Part) -> tuple[jax.Array, jax.Array, Any]:
        """Mean loss, losses of each example, and the gradient of the mean."""
        value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
        if accumulation == 1:
            (loss, losses), grads = value_and_grad(params, f, whole)
            return loss, losses, grads

        def add(total: Any, part: _Part) -> tuple[Any, jax.Array]:
            (_, losses), grads = value_and_grad(params, f, part)
            return _like_parameters(jax.tree.map(jnp.add, total, grads), mesh), losses

        zeros = _like_parameters(jax.tree.map(jnp.zeros_like, params), mesh)
        total, by_part = jax.lax.scan(add, zeros, jax.tree.map(lambda leaf: _in_parts(leaf, accumulation), whole))
        losses = by_part.T.reshape(-1)
        return jnp.mean(losses), losses, jax.tree.map(lambda leaf: leaf / accumulation, total)

    def step(state: TrainState, batch: Batch, f: Formulation, seed: jax.Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        drop_key, loss_key = jax.random.split(step_key)
        posterior_key = jax.random.fold_in(step_key, POSTERIOR)
        with placed_on(mesh):
            x0 = place(clean(batch, lambda shape: jax.random.normal(posterior_key, shape)), "batch", None, None, None)
            text = {
                name: (jnp.asarray(tokens), jnp.asarray(pooled)) for name, (tokens, pooled) in batch["text"].items()
            }
            keep = keep_masks(drop_key, sorted(text), len(x0), drop)
            drawn_from = learned(f, state.loss_by_time)
            t, eps = draw(drawn_from, x0.shape, loss_key)
            whole = _Part(x0, t, place(eps, "batch", None, None, None), text, keep)
            with rows_in_parts(onednn):
                loss, losses, grads = gradient(state.params, drawn_from, whole)
            grads = _like_parameters(grads, mesh)
        opt_state, ema = state.opt_state, state.ema
        if "optimizer" in offload:
            grads, opt_state = fetched(opt_state, grads)
        updates, opt_state = optimizer.update(grads, opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if "ema" in offload:
            params, ema = fetched(ema, params)
        bin_loss, bin_count = loss_by_bin(losses, t)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "bin_loss": bin_loss,
            "bin_count": bin_count,
        }
        ema = averaged(optimizer_config, ema, params, state.step)
        return TrainState(state.step + 1, params, ema, opt_state, state.loss_by_time.add(losses, t)), metrics

    return step


def fetched(away: Any, after: Any) -> tuple[Any, Any]:
    """``after``, and what lies in the host's memory on the device, where it comes no sooner than ``after`` is there.

    Left to itself, XLA's compiler for GPUs copies all of it at the start of a step, beside the activations.
    """
    after, away = jax.lax.optimization_barrier((after, away))
    return after, jax.device_put(away, jax.memory.Space.Device)


def averaged(config: OptimizerConfig, ema: Any, params: Any, step: jax.Array) -> Any:
    """The moving average after update ``step`` (from 0), stored as the config says."""
    decay = ema_decay(config, step)
    after = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, widened(ema), params)
    return stored(after, config.ema_dtype, jax.random.fold_in(jax.random.key(EMA_SEED), step))


class _Part(NamedTuple):
    """Examples with all that was drawn for them, along the first axis of every array."""

    x0: jax.Array
    t: jax.Array
    eps: jax.Array
    text: dict[str, tuple[jax.Array, jax.Array]]
    keep: dict[str, jax.Array]


def _in_parts(array: jax.Array, parts: int) -> jax.Array:
    """[batch, ...] -> [parts, batch / parts, ...], example i in part i % parts: each device keeps its own."""
    split = jnp.moveaxis(array.reshape(len(array) // parts, parts, *array.shape[1:]), 1, 0)
    return place(split, None, "batch", *(None,) * (array.ndim - 1))


def _like_parameters(tree: Any, mesh: Mesh | None) -> Any:
    """A tree shaped as the parameters, cut as they are."""
    if mesh is None or mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, state_shardings(tree, mesh))


@functools.lru_cache(maxsize=32)
def make_train_step(
    model_config: MMDiTConfig,
    optimizer_config: OptimizerConfig,
    steps: int,
    drop: float,
    mesh: Mesh,
    onednn: bool = False,
    layout: str = "channels",
    accumulation: int = 1,
    offload: tuple[str, ...] = (),
) -> TrainStep:
    """``step_function`` jitted over ``mesh``; runs that differ in formulation or seed get the same function back.

    The given state is donated. A batch of another shape, as that of another bucket, is compiled when it first comes.

    Args:
      steps, drop, layout, accumulation: as of ``step_function``.
      onednn: let oneDNN do the matrix products where ``mesh`` is of x86 CPUs (see ``HardwareConfig.onednn``).
      offload: what lies in the host's memory between steps (see ``HardwareConfig.offload``).
    """
    with placed_on(mesh):
        options, products = step_options(onednn, model_config.remat, platform()), by_onednn(onednn, platform())
    step = step_function(
        model_config,
        optimizer_config,
        steps,
        drop,
        products,
        layout,
        accumulation=accumulation,
        mesh=mesh,
        offload=offload,
    )
    abstract = abstract_state(model_config, optimizer_config, steps, mesh, offload)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

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
