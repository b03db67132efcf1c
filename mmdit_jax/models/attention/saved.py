"""What a policy of rematerialisation may keep of an attention: its result, and what the backward pass needs with it."""

from __future__ import annotations

from typing import Any

SAVED = "attention"
"""Name of the arrays to keep, for ``jax.checkpoint_policies.save_only_these_names``."""

# Kernels that name nothing: all that they return is kept. cuDNN's is a primitive of JAX of this name.
_KERNELS = ("dot_product_attention_fwd",)


def save_attention(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """A policy for ``jax.checkpoint``: keep what an attention returns and its softmax's denominators."""
    if primitive.name == "name":
        return bool(parameters["name"] == SAVED)
    return str(primitive.name).startswith(_KERNELS)
