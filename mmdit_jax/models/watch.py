"""What lies inside a network on its way from input to output: for the coordinate check of a parametrization."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmdit_jax.errors import UserError
from mmdit_jax.models.config import MMDiTConfig
from mmdit_jax.models.frame import Given
from mmdit_jax.models.mmdit import JointBlock, MMDiT, Stream

if TYPE_CHECKING:
    from jaxtyping import Array, Float

BRANCHES = ("image attention", "image MLP", "text attention", "text MLP")
"""Places within each block but the last, whose text has none; before the gates."""
PLACES = ("condition", *BRANCHES, "image stream", "text stream", "prediction")
"""In the order of the way. The streams are as they leave the last block (that writes to them)."""

Keep = Callable[[str, jax.Array], jax.Array]


def activations(
    config: MMDiTConfig,
    params: Any,
    latents: Float[Array, "batch height width channels"],
    t: Float[Array, " batch"],
    context: Float[Array, "batch text context_dim"],
    pooled: Float[Array, "batch pooled_dim"],
) -> dict[str, jax.Array]:
    """The activations at ``PLACES``, by name, float32; arguments as of ``mmdit_jax.models.apply``.

    Those of ``BRANCHES`` are [blocks, batch, tokens, width] (text: of the blocks that have them; of one block none).

    Raises:
      UserError: another architecture than the MMDiT.
    """
    if config.architecture != "mmdit":
        raise UserError(f"architecture={config.architecture!r}: only activations of 'mmdit' can be watched")
    seen: dict[str, list[jax.Array]] = {}

    def keep(place: str, value: jax.Array) -> jax.Array:
        seen.setdefault(place, []).append(value.astype(jnp.float32))
        return value

    graph, state = nnx.split(nnx.eval_shape(lambda: _Watched(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, params)
    network = nnx.merge(graph, state)
    network.watch(keep)
    prediction = network(latents, t, context, pooled)
    found = {name: jnp.stack(values) if name in BRANCHES else values[-1] for name, values in seen.items()}
    return {**found, "prediction": prediction}


class _Watched(MMDiT):
    """An MMDiT that hands out what it sees. Its blocks run one by one: what a scan saw could not leave it."""

    def watch(self, keep: Keep) -> None:
        self._keep = nnx.static(keep)

    def through(self, x: jax.Array, given: Given) -> jax.Array:
        keep: Keep = self._keep
        keep("condition", given.condition)
        x, context = x + self.placed(given), self.context(given.context)
        blocks = [
            jax.tree.map(lambda leaf, i=i: leaf[i], vars(self)[name])
            for name, count in (
                ("dual", self.config.dual_attention),
                ("blocks", self.config.depth - 1 - self.config.dual_attention),
            )
            for i in range(count)
        ]
        for block in (*blocks, self.last):
            x, after = _watched(block, keep)(x, context, given.condition)
            context = after
            keep("image stream", x)
            keep("text stream", context)
        return x


def _watched(block: JointBlock, keep: Keep) -> JointBlock:
    for name, stream in (("image", block.latent), ("text", block.context)):
        if not stream.ends:
            _tap(stream, "out", f"{name} attention", keep)
            _tap(stream, "down", f"{name} MLP", keep)
    return block


def _tap(stream: Stream, layer: str, place: str, keep: Keep) -> None:
    inner = vars(stream)[layer]
    setattr(stream, layer, nnx.static(lambda x: keep(place, inner(x))))
