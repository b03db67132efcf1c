"""Training a small autoencoder: L1 and a little KL, Muon, no adversary. A training takes minutes and is not resumed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

from mmdit_jax.data.order import batch_indices
from mmdit_jax.errors import Diverged, Preempted, UserError
from mmdit_jax.models.autoencoder.config import AutoencoderConfig
from mmdit_jax.models.autoencoder.interface import sample_posterior
from mmdit_jax.models.autoencoder.kl import KLAutoencoder
from mmdit_jax.models.autoencoder.network import Network
from mmdit_jax.training.optimizer import ADAM_SHARE

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_CHUNK = 256
_FIRST_LOGVAR = -4.0
"""Log variance that training begins with: noise of an eighth, so that the decoder sees something from the start."""
_REPORT_EVERY = 50
_WARMUP_SHARE = 14


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Everything that decides the result of a training, besides the images."""

    config: AutoencoderConfig
    steps: int = 400
    batch: int = 16
    learning_rate: float = 0.02
    """Muon's, on kernels; Adam's on biases and norms is a tenth. It falls to zero as a cosine."""
    kl_weight: float = 1e-3
    """Of Σ KL / numbers of an image, beside the mean absolute error of pixels in [-1, 1]."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: expected 1 or more")
        if not self.learning_rate > 0 or not self.kl_weight >= 0:
            raise UserError(
                f"learning_rate={self.learning_rate}, kl_weight={self.kl_weight}: expected one above 0, one not below"
            )

    def to_json(self) -> dict[str, Any]:
        """As plain values; equal recipes give equal ones."""
        return {**dataclasses.asdict(self), "config": self.config.to_diffusers()}


def loss_of(
    model: Network, key: jax.Array, images: Float[Array, "B H W 3"], kl_weight: jax.typing.ArrayLike
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean |x − x̂| + kl_weight · Σ KL(posterior ‖ N(0, 1)) / numbers of an image; images in [-1, 1].

    Returns the loss, and its parts "l1" and "kl" (nats a number of a latent).
    """
    mean, logvar = model.encode(images)
    decoded = model.decode(sample_posterior(key, mean, logvar))
    l1 = jnp.mean(jnp.abs(decoded - images))
    kl = jnp.mean(0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar))
    return l1 + kl_weight * kl * (mean.size / images.size), {"l1": l1, "kl": kl}


def train(
    recipe: AutoencoderRecipe,
    images: np.ndarray,
    report: Callable[[int, dict[str, float]], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> KLAutoencoder:
    """An autoencoder trained on images, with the shift and scale that give its latents mean 0 and deviation 1.

    The same recipe and images give the same bits on the same machine. Order of images: ``batch_indices``.

    Args:
        recipe: shift and scale of its config are replaced.
        images: uint8 [N, R, R, 3].
        report: called every 50 steps and at the end with the number of steps and the last one's "l1" and "kl".
        stop: asked before every step whether to stop there.

    Raises:
        UserError: images of another kind, or too few for a batch.
        Diverged: the loss is not finite.
        Preempted: ``stop`` said so; nothing of the training is kept.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < recipe.batch:
        raise UserError(
            f"images={images.dtype}{list(images.shape)}: expected uint8 [N, R, R, 3], N at least {recipe.batch}"
        )
    if any(side % recipe.config.factor for side in images.shape[1:3]):
        factor = recipe.config.factor
        raise UserError(
            f"images=uint8{list(images.shape)}: expected sides that the autoencoder's factor {factor} divides"
        )
    graph, params = nnx.split(initial(recipe.config, recipe.seed))
    optimizer, step = _make_step(graph)
    state = jax.jit(optimizer.init)(params)
    for number in range(recipe.steps):
        if stop():
            raise Preempted(f"autoencoder: stopped before step {number + 1}; run again to begin anew")
        rows = batch_indices(len(images), recipe.batch, recipe.seed, number)
        key = jax.random.fold_in(jax.random.key(recipe.seed), number)
        rate = _rate(recipe, number)
        params, state, parts = step(params, state, key, images[rows], rate, recipe.kl_weight)
        done = number + 1
        if done % _REPORT_EVERY == 0 or done == recipe.steps:
            told = {name: float(value) for name, value in parts.items()}
            if not all(np.isfinite(value) for value in told.values()):
                raise Diverged(f"autoencoder: loss not finite at step {done}; try a smaller learning_rate")
            if report is not None:
                report(done, told)
    trained = nnx.merge(graph, params)
    shift, scale = latent_statistics(KLAutoencoder(recipe.config, trained), images)
    return KLAutoencoder(dataclasses.replace(recipe.config, shift=shift, scale=scale), trained)


def initial(config: AutoencoderConfig, seed: int) -> Network:
    """A network with random weights whose posterior begins narrow."""
    # As a program: layer by layer, each small array would be compiled by itself.
    state = jax.jit(lambda: nnx.state(Network(config, rngs=nnx.Rngs(seed))))()
    model = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: Network(config, rngs=nnx.Rngs(0)))), state)
    bias = model.encoder.conv_out.bias
    bias.set_value(bias[...].at[config.channels :].set(_FIRST_LOGVAR))
    return model


def latent_statistics(autoencoder: KLAutoencoder, images: np.ndarray) -> tuple[float, float]:
    """Shift and scale that give sampled latents of these images mean 0 and deviation 1, over all channels together."""
    count, total, squares = 0, 0.0, 0.0
    for part in _parts(images):
        mean, logvar = (array.astype(np.float64) for array in autoencoder.encode(part))
        count, total = count + mean.size, total + float(mean.sum())
        squares += float((mean**2 + np.exp(logvar)).sum())
    shift = total / count
    return shift, 1 / float(np.sqrt(max(squares / count - shift**2, 1e-12)))


def reconstruct(autoencoder: KLAutoencoder, images: np.ndarray) -> np.ndarray:
    """Images uint8 [N, R, R, 3] decoded from the means of their posteriors: uint8 [N, R, R, 3]."""
    space = autoencoder.shift, autoencoder.scale
    return np.concatenate(
        [autoencoder.decode((autoencoder.encode(part)[0] - space[0]) * space[1]) for part in _parts(images)]
    )


def _parts(images: np.ndarray) -> Iterator[np.ndarray]:
    return (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))


def _rate(recipe: AutoencoderRecipe, number: int) -> float:
    """Muon's rate at update ``number`` (from 0): a short warm-up, then a cosine."""
    warmup = recipe.steps // _WARMUP_SHARE
    progress = max(number - warmup, 0) / max(recipe.steps - warmup, 1)
    return recipe.learning_rate * min(1.0, (number + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * progress))


def _matrices(params: nnx.State) -> Any:
    """Kernels as Muon sees them, a matrix from all inputs of a position to all outputs; none for Adam's vectors."""

    def dimensions(leaf: jax.Array) -> MuonDimensionNumbers | None:
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1) if leaf.ndim > 1 else None

    return jax.tree.map(dimensions, params)


@functools.lru_cache(maxsize=4)
def _make_step(
    graph: nnx.GraphDef[Network],
) -> tuple[optax.GradientTransformation, Callable[..., tuple[nnx.State, optax.OptState, dict[str, jax.Array]]]]:
    """The optimizer, at rate 1, and the compiled step (params, optimizer state, key, uint8 images, rate, kl_weight) to
    both anew and the parts of the loss. Rate and weight are arguments, so that recipes share a program.
    """
    update = muon(1.0, adam_learning_rate=ADAM_SHARE, muon_weight_dimension_numbers=_matrices)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), update)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: nnx.State,
        state: optax.OptState,
        key: jax.Array,
        images: jax.Array,
        rate: jax.Array,
        kl_weight: jax.Array,
    ) -> tuple[nnx.State, optax.OptState, dict[str, jax.Array]]:
        scaled = images.astype(jnp.float32) / 127.5 - 1
        gradient, parts = jax.grad(lambda p: loss_of(nnx.merge(graph, p), key, scaled, kl_weight), has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return jax.tree.map(lambda value, change: value + rate * change, params, updates), state, parts

    return optimizer, step
