"""The encoder of T5 v1.1 (Raffel et al. 2020, arXiv 1910.10683; Shazeer 2020, arXiv 2002.05202), as T5EncoderModel is.

Weights are a dictionary by transformers' names; those of all layers are stacked, ``*`` standing for the layer's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.models.text.layers import ACTIVATIONS, attention, linear, rms_norm

if TYPE_CHECKING:
    from jaxtyping import Array, Int

LAYER = "encoder.block.*.layer."
RELATIVE = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

# What transformers takes where a config.json is silent, as T5 v1.1's own is on the distance.
_DEFAULTS = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}


@dataclass(frozen=True)
class T5Config:
    """Shapes of a T5 v1.1 encoder. ``heads * head_size`` need not be ``width``."""

    vocabulary: int
    width: int
    mlp: int
    layers: int
    heads: int
    head_size: int
    buckets: int
    max_distance: int
    eps: float

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight; those of layers have the layers in front."""
        d, inner, n = self.width, self.heads * self.head_size, self.layers
        return {
            "shared.weight": (self.vocabulary, d),
            RELATIVE: (self.buckets, self.heads),
            **{f"{LAYER}0.SelfAttention.{part}.weight": (n, inner, d) for part in ("q", "k", "v")},
            f"{LAYER}0.SelfAttention.o.weight": (n, d, inner),
            f"{LAYER}0.layer_norm.weight": (n, d),
            f"{LAYER}1.DenseReluDense.wi_0.weight": (n, self.mlp, d),
            f"{LAYER}1.DenseReluDense.wi_1.weight": (n, self.mlp, d),
            f"{LAYER}1.DenseReluDense.wo.weight": (n, d, self.mlp),
            f"{LAYER}1.layer_norm.weight": (n, d),
            "encoder.final_layer_norm.weight": (d,),
        }


class T5States(NamedTuple):
    """float32."""

    last: jax.Array
    """[B, L, width]: after the last layer and the final norm. SD3's token states."""
    hidden: jax.Array | None
    """[layers, B, L, width]: what enters each layer, if asked for."""


def encode(
    weights: Mapping[str, Array], ids: Int[Array, "batch tokens"], config: T5Config, *, hidden: bool = False
) -> T5States:
    """States of token numbers. No mask: padding is attended, as in SD3. Products in the weights' dtype, else float32.

    Args:
        weights: as ``config.shapes()``.
        ids: token numbers below ``config.vocabulary``; rows may have any length.
        hidden: return all hidden states too.
    """
    dtype = weights["shared.weight"].dtype
    buckets = relative_buckets(ids.shape[1], config.buckets, config.max_distance)
    bias = jnp.moveaxis(weights[RELATIVE].astype(jnp.float32)[buckets], -1, 0)
    gelu = ACTIVATIONS["gelu_new"]

    def block(x: Array, layer: Mapping[str, Array]) -> tuple[Array, Array | None]:
        entered = x
        normed = rms_norm(x, layer["0.layer_norm.weight"], config.eps)
        q, k, v = (linear(normed, layer[f"0.SelfAttention.{part}.weight"]) for part in ("q", "k", "v"))
        # Scores are not scaled: T5 was initialised so that they need not be.
        mixed = attention(q, k, v, heads=config.heads, scale=1.0, bias=bias, dtype=dtype)
        x = x + linear(mixed, layer["0.SelfAttention.o.weight"])
        normed = rms_norm(x, layer["1.layer_norm.weight"], config.eps)
        gate, value = (linear(normed, layer[f"1.DenseReluDense.wi_{half}.weight"]) for half in (0, 1))
        return x + linear(gelu(gate) * value, layer["1.DenseReluDense.wo.weight"]), entered if hidden else None

    x = weights["shared.weight"][ids].astype(jnp.float32)
    layers = {name.removeprefix(LAYER): weight for name, weight in weights.items() if name.startswith(LAYER)}
    x, entered = jax.lax.scan(block, x, layers)
    return T5States(rms_norm(x, weights["encoder.final_layer_norm.weight"], config.eps), entered)


def relative_buckets(tokens: int, buckets: int, max_distance: int) -> Int[np.ndarray, "tokens tokens"]:
    """Which bias a key (second axis) has for a query (first axis).

    Half of the buckets are for keys after the query. Of either half, the first half holds one distance each, the others
    grow geometrically up to ``max_distance``, beyond which all distances share the last.
    """
    distance = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    half = buckets // 2
    exact = half // 2
    far = np.log(np.maximum(np.abs(distance), 1) / exact) / np.log(max_distance / exact) * (half - exact)
    far = np.minimum(exact + far.astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(np.abs(distance) < exact, np.abs(distance), far)


def from_json(told: Mapping[str, Any], source: str) -> T5Config:
    """The configuration in a config.json; ``source`` says where it comes from, in errors.

    Raises:
        UserError: a field is missing, or this is not a T5 v1.1 (whose MLP is gated).
    """
    values = {**_DEFAULTS, **told}
    names = ("vocab_size", "d_model", "d_ff", "num_layers", "num_heads", "d_kv")
    whole = (*names, "relative_attention_num_buckets", "relative_attention_max_distance")
    for name in whole:
        if not isinstance(values.get(name), int):
            raise UserError(f"{source}: {name}={values.get(name)!r}; expected a whole number")
    if values["feed_forward_proj"] != "gated-gelu":
        found = values["feed_forward_proj"]
        raise UserError(f"{source}: feed_forward_proj={found!r}; expected 'gated-gelu', as T5 v1.1 has")
    return T5Config(
        vocabulary=values["vocab_size"],
        width=values["d_model"],
        mlp=values["d_ff"],
        layers=values["num_layers"],
        heads=values["num_heads"],
        head_size=values["d_kv"],
        buckets=values["relative_attention_num_buckets"],
        max_distance=values["relative_attention_max_distance"],
        eps=float(values["layer_norm_epsilon"]),
    )


def from_shapes(shapes: Mapping[str, tuple[int, ...]], source: str) -> T5Config:
    """The configuration of a file without config.json, from the shapes of its tensors (names as transformers').

    The distance at which biases end, 128, and the norms' eps, 1e-6, are those of every released T5.

    Raises:
        UserError: the tensors that tell the sizes are missing.
    """
    query, wide = f"{LAYER}0.SelfAttention.q.weight", f"{LAYER}1.DenseReluDense.wi_0.weight"
    asked = [name.replace("*", "0") for name in ("shared.weight", RELATIVE, query, wide)]
    for name in asked:
        if len(shapes.get(name, ())) != 2:
            raise UserError(f"{source}: {name} is missing; expected a T5 v1.1 encoder under transformers' names")
    (vocabulary, width), (buckets, heads), (inner, _), (mlp, _) = (shapes[name] for name in asked)
    layers = {name.split(".")[2] for name in shapes if name.startswith(LAYER.split("*")[0])}
    return T5Config(vocabulary, width, mlp, len(layers), heads, inner // heads, buckets, 128, eps=1e-6)
