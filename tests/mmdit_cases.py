"""Tiny SD3 models, their inputs, and our side of the comparison with diffusers. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from deterministic import relative_error, values

from mmdit_jax.models import MMDiTConfig, apply
from mmdit_jax.models.sd3 import params_from_tensors, tensors_from_params

TABLE = "pos_embed.pos_embed"
# Zero but for rounding without QK-norm, since it moves all scores of a query alike: its error is told against the norm
# of the queries' bias. (Image and text have key biases of their own in the joint attention, which are not zero.)
ZERO, INSTEAD = "attn2.to_k.bias", "attn2.to_q.bias"


@dataclass(frozen=True)
class Case:
    """A model and the shapes of its inputs."""

    depth: int
    heads: int
    qk_norm: bool
    dual: int
    size: tuple[int, int]
    text: int
    table: int = 24
    sample_size: int = 32
    head_size: int = 16
    channels: int = 16
    context_dim: int = 48
    pooled_dim: int = 40

    def diffusers(self) -> dict[str, Any]:
        """Arguments of ``SD3Transformer2DModel``."""
        return {
            "sample_size": self.sample_size,
            "patch_size": 2,
            "in_channels": self.channels,
            "num_layers": self.depth,
            "attention_head_dim": self.head_size,
            "num_attention_heads": self.heads,
            "joint_attention_dim": self.context_dim,
            "caption_projection_dim": self.heads * self.head_size,
            "pooled_projection_dim": self.pooled_dim,
            "out_channels": self.channels,
            "pos_embed_max_size": self.table,
            "dual_attention_layers": tuple(range(self.dual)),
            "qk_norm": "rms_norm" if self.qk_norm else None,
        }

    def config(self) -> MMDiTConfig:
        """The same model of ours."""
        return MMDiTConfig(
            depth=self.depth,
            heads=self.heads,
            head_size=self.head_size,
            in_channels=self.channels,
            context_dim=self.context_dim,
            pooled_dim=self.pooled_dim,
            position_table=self.table,
            position_base=self.sample_size // 2,
            qk_norm=self.qk_norm,
            dual_attention=self.dual,
        )

    def inputs(self, name: str) -> dict[str, np.ndarray]:
        """latents [2, H, W, C], t [2] (whose thousandfold is exact in float32), context, pooled; and a direction.

        The loss is the prediction's product with the direction, so that its gradient at the output is the direction.
        """
        shape = (2, *self.size, self.channels)
        return {
            "latents": values(f"{name}/latents", shape),
            "t": np.array([0.75, 0.109375], np.float32),
            "context": values(f"{name}/context", (2, self.text, self.context_dim)),
            "pooled": values(f"{name}/pooled", (2, self.pooled_dim)),
            "direction": values(f"{name}/direction", shape),
        }


CASES = {
    "SD3-medium": Case(depth=3, heads=3, qk_norm=False, dual=0, size=(8, 12), text=154),
    "SD3.5-large": Case(depth=3, heads=5, qk_norm=True, dual=0, size=(12, 6), text=333),
    "SD3.5-medium": Case(depth=4, heads=3, qk_norm=True, dual=2, size=(6, 10), text=154, table=48, sample_size=16),
    "dual, no norm": Case(depth=3, heads=5, qk_norm=False, dual=1, size=(10, 4), text=333, table=12, sample_size=128),
    "dual to the end": Case(depth=2, heads=3, qk_norm=True, dual=2, size=(4, 4), text=154),
    "one block": Case(depth=1, heads=2, qk_norm=True, dual=0, size=(4, 8), text=77),
}

COMMITTED = ("SD3-medium", "SD3.5-large", "SD3.5-medium", "dual, no norm")
"""Those in the golden; the others are compared live only."""


def ours(case: Case, name: str, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Our prediction [2, H, W, C] and the gradients by public name; those of latents, context and pooled beside them.

    Args:
      tensors: by diffusers' names, the position table included.
    """
    config, given = case.config(), case.inputs(name)
    params = params_from_tensors(config, "diffusers", tensors)

    @jax.jit
    def both(params: dict[str, Any], inputs: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        def loss(params: dict[str, Any], inputs: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            out = apply(config, params, inputs["latents"], given["t"], inputs["context"], inputs["pooled"])
            return jnp.sum(out * given["direction"]), out

        (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, inputs)
        return out, gradients

    out, (of_params, of_inputs) = both(params, {name: given[name] for name in ("latents", "context", "pooled")})
    gradients = tensors_from_params(config, "diffusers", of_params)
    del gradients[TABLE]
    return np.asarray(out), gradients | {key: np.asarray(value) for key, value in of_inputs.items()}


def gradient_errors(case: Case, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative error of each gradient, or of sketches of them; see ``ZERO`` for the one that is zero."""
    assert ours.keys() == theirs.keys()
    errors = {}
    for name, value in theirs.items():
        errors[name] = relative_error(ours[name], value)
        if name.endswith(ZERO) and not case.qk_norm:
            scale = np.linalg.norm(theirs[name.replace(ZERO, INSTEAD)].astype(np.float64))
            errors[name] = float(np.linalg.norm(ours[name].astype(np.float64) - value) / scale)
    return errors
