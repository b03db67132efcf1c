"""CLIP's text transformer (Radford et al. 2021, arXiv 2103.00020), as transformers' CLIPTextModelWithProjection is.

SD3 has two: CLIP-L (OpenAI, quick_gelu) and CLIP-G (OpenCLIP's bigG, gelu). Weights are a dictionary by transformers'
names without ``text_model.``; those of all layers are stacked, ``*`` standing for the layer's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from mmdit_jax.errors import UserError, unknown
from mmdit_jax.models.text.layers import ACTIVATIONS, attention, layer_norm, linear

if TYPE_CHECKING:
    from jaxtyping import Array, Int

LAYER = "encoder.layers.*."
PROJECTION = "text_projection.weight"

# What transformers takes where a config.json is silent.
_DEFAULTS = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
OLD_EOS = 2
"""An ``eos_token_id`` that says nothing: configurations before mid-2023 have it, SD3's among them."""


@dataclass(frozen=True)
class CLIPConfig:
    """Shapes of a CLIP text model and what its weights don't tell."""

    vocabulary: int
    positions: int
    """The longest caption, in tokens: 77."""
    width: int
    mlp: int
    layers: int
    heads: int
    activation: str
    """"quick_gelu" or "gelu"."""
    eps: float
    eos: int
    """Token whose state is pooled; 2 means the token with the highest number, which CLIP's end token is."""
    projection: int | None
    """Channels of the projected pooled state; None pools without a projection."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight; those of layers have the layers in front."""
        d, mlp, n = self.width, self.mlp, self.layers
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.token_embedding.weight": (self.vocabulary, d),
            "embeddings.position_embedding.weight": (self.positions, d),
            "final_layer_norm.weight": (d,),
            "final_layer_norm.bias": (d,),
        }
        matrices = {f"self_attn.{part}_proj": (d, d) for part in ("q", "k", "v", "out")}
        for part, shape in {**matrices, "mlp.fc1": (mlp, d), "mlp.fc2": (d, mlp)}.items():
            shapes[f"{LAYER}{part}.weight"] = (n, *shape)
            shapes[f"{LAYER}{part}.bias"] = (n, shape[0])
        for part in ("layer_norm1", "layer_norm2"):
            shapes[f"{LAYER}{part}.weight"] = shapes[f"{LAYER}{part}.bias"] = (n, d)
        if self.projection is not None:
            shapes[PROJECTION] = (self.projection, d)
        return shapes


class CLIPStates(NamedTuple):
    """float32."""

    penultimate: jax.Array
    """[B, L, width]: what enters the last layer, without the final norm. SD3's token states."""
    last: jax.Array
    """[B, L, width]: after the last layer and the final norm."""
    pooled: jax.Array
    """[B, projection or width]: ``last`` at the end token, projected where the configuration says so."""
    hidden: jax.Array | None
    """[layers + 1, B, L, width]: what enters each layer and leaves the last, if asked for."""


def encode(
    weights: Mapping[str, Array], ids: Int[Array, "batch tokens"], config: CLIPConfig, *, hidden: bool = False
) -> CLIPStates:
    """States of token numbers; causal, no padding mask. Products are in the weights' dtype, the rest in float32.

    Args:
        weights: as ``config.shapes()``.
        ids: token numbers below ``config.vocabulary``, at most ``config.positions`` a row.
        hidden: return all hidden states too.
    """
    tokens = ids.shape[1]
    dtype = weights["embeddings.token_embedding.weight"].dtype
    causal = jnp.where(jnp.tril(jnp.ones((tokens, tokens), bool)), 0.0, jnp.finfo(jnp.float32).min)
    activation = ACTIVATIONS[config.activation]

    def norm(x: Array, layer: Mapping[str, Array], name: str) -> Array:
        return layer_norm(x, layer[f"{name}.weight"], layer[f"{name}.bias"], config.eps)

    def dense(x: Array, layer: Mapping[str, Array], name: str) -> Array:
        return linear(x, layer[f"{name}.weight"], layer[f"{name}.bias"])

    def block(carry: tuple[Array, Array], layer: Mapping[str, Array]) -> tuple[tuple[Array, Array], Array | None]:
        x, _ = carry
        normed = norm(x, layer, "layer_norm1")
        q, k, v = (dense(normed, layer, f"self_attn.{part}_proj") for part in ("q", "k", "v"))
        scale = (config.width // config.heads) ** -0.5
        mixed = attention(q, k, v, heads=config.heads, scale=scale, bias=causal, dtype=dtype)
        out = x + dense(mixed, layer, "self_attn.out_proj")
        out = out + dense(activation(dense(norm(out, layer, "layer_norm2"), layer, "mlp.fc1")), layer, "mlp.fc2")
        return (out, x), x if hidden else None

    positions = weights["embeddings.position_embedding.weight"][:tokens]
    x = (weights["embeddings.token_embedding.weight"][ids].astype(jnp.float32)) + positions.astype(jnp.float32)
    layers = {name.removeprefix(LAYER): weight for name, weight in weights.items() if name.startswith(LAYER)}
    (x, penultimate), entered = jax.lax.scan(block, (x, x), layers)

    last = norm(x, weights, "final_layer_norm")
    pooled = jnp.take_along_axis(last, end_positions(ids, config.eos)[:, None, None], axis=1)
    if config.projection is not None:
        pooled = linear(pooled, weights[PROJECTION])
    states = None if entered is None else jnp.concatenate([entered, x[None]])
    return CLIPStates(penultimate, last, pooled[:, 0], states)


def end_positions(ids: Int[Array, "batch tokens"], eos: int) -> Int[Array, " batch"]:
    """Where the first end token is; with the old ``eos`` 2, where the highest token number is (the first of them)."""
    return jnp.argmax(ids if eos == OLD_EOS else ids == eos, axis=1)


def from_json(told: Mapping[str, Any], source: str, projection: int | None) -> CLIPConfig:
    """The configuration in a config.json of a text model, or of a whole CLIP (its ``text_config``).

    Args:
        told: the JSON.
        source: where it comes from, for errors.
        projection: channels of the projected pooled state, None for none. A whole CLIP's ``text_config`` may be wrong
            about it, so its weights tell.

    Raises:
        UserError: a field is missing or has a value that this model doesn't have.
    """
    text = {**_DEFAULTS, **(told.get("text_config", told))}
    names = ("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers")
    for name in (*names, "num_attention_heads", "eos_token_id"):
        if not isinstance(text.get(name), int):
            raise UserError(f"{source}: {name}={text.get(name)!r}; expected a whole number")
    if text["hidden_act"] not in ("quick_gelu", "gelu"):
        unknown(f"{source}: hidden_act", str(text["hidden_act"]), ["quick_gelu", "gelu"])
    if text["num_attention_heads"] < 1 or text["hidden_size"] % text["num_attention_heads"]:
        heads = text["num_attention_heads"]
        raise UserError(
            f"{source}: num_attention_heads={heads}: expected a divisor of hidden_size={text['hidden_size']}"
        )
    return CLIPConfig(
        vocabulary=text["vocab_size"],
        positions=text["max_position_embeddings"],
        width=text["hidden_size"],
        mlp=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        activation=text["hidden_act"],
        eps=float(text["layer_norm_eps"]),
        eos=text["eos_token_id"],
        projection=projection,
    )


def from_shapes(
    shapes: Mapping[str, tuple[int, ...]], activation: str, source: str, projection: int | None
) -> CLIPConfig:
    """The configuration of a file without config.json, from the shapes of its tensors (names as transformers').

    Heads are taken to be 64 wide, which they are in every released CLIP, and the end token to have the highest number.

    Raises:
        UserError: the tensors that tell the sizes are missing, or the width has no heads of 64.
    """
    asked = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", f"{LAYER}mlp.fc1.weight")
    for name in (first.replace("*", "0") for first in asked):
        if len(shapes.get(name, ())) != 2:
            raise UserError(f"{source}: {name} is missing; expected a CLIP text model under transformers' names")
    (vocabulary, width), (positions, _), (mlp, _) = (shapes[name.replace("*", "0")] for name in asked)
    if width % 64:
        raise UserError(f"{source}: width {width} has no heads of 64; expected a folder with config.json beside it")
    layers = {name.split(".")[2] for name in shapes if name.startswith(LAYER.split("*")[0])}
    return CLIPConfig(
        vocabulary,
        positions,
        width,
        mlp,
        layers=len(layers),
        heads=width // 64,
        activation=activation,
        eps=1e-5,
        eos=OLD_EOS,
        projection=projection,
    )
