"""Every architecture by its name, and the two functions that training, validation and sampling call for any of them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import jax
from flax import nnx

from mmdit_jax.models.architectures.crossdit import CrossDiT
from mmdit_jax.models.architectures.dit import DiT
from mmdit_jax.models.architectures.mmdit3 import MMDiT3
from mmdit_jax.models.architectures.uvit import UViT
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.mmdit import MMDiT
from mmdit_jax.parameter_sharding import STACKS, gathered

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Params = dict[str, Any]


class NetworkClass(Protocol):
    """What an architecture is: a module made from a config, which maps latents, t, context, pooled to a prediction."""

    def __call__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> Any:
        """The module, initialised."""


NETWORKS: dict[str, NetworkClass] = {"dit": DiT, "crossdit": CrossDiT, "uvit": UViT, "mmdit": MMDiT, "mmdit3": MMDiT3}
"""By the names of ``mmdit_jax.models.config.ARCHITECTURES``."""


def network(config: MMDiTConfig, *, rngs: nnx.Rngs) -> Any:
    """The module of ``config.architecture``, initialised."""
    return NETWORKS[config.architecture](config, rngs=rngs)


def init_params(config: MMDiTConfig, key: jax.Array) -> Params:
    """Parameters as nested dicts of float32 arrays, from a typed or raw PRNG key. Works under jit and eval_shape."""
    return nnx.to_pure_dict(nnx.state(network(config, rngs=nnx.Rngs(params=key)), nnx.Param))


def apply(
    config: MMDiTConfig,
    params: Params,
    latents: Float[Array, "batch height width channels"],
    t: Float[Array, " batch"],
    context: Float[Array, "batch text context_dim"],
    pooled: Float[Array, "batch pooled_dim"],
    positions: Float[Array, "tokens width"] | None = None,
) -> Float[Array, "batch height width channels"]:
    """The module's ``__call__`` as a pure function of the parameters of ``init_params``."""
    graph, state = _abstract(config)
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: replacing fills it in place
    stacks = (*STACKS, "last")  # whose weights are gathered block by block
    rest = gathered({name: value for name, value in params.items() if name not in stacks}, config.dtype)
    nnx.replace_by_pure_dict(state, {**params, **rest})
    return nnx.merge(graph, state)(latents, t, context, pooled, positions)


@functools.lru_cache(maxsize=64)
def _abstract(config: MMDiTConfig) -> tuple[nnx.GraphDef[Any], nnx.State]:
    """The structure of the model, with shapes in place of arrays."""
    return nnx.split(nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0))))
