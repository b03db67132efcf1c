"""Attention over the tokens of all streams at once: one function, by the platform's best kernel."""

from mmdit_jax.models.attention.joint import attention_kind, attention_of_each, capability, joint_attention
from mmdit_jax.models.attention.saved import save_attention

__all__ = ["attention_kind", "attention_of_each", "capability", "joint_attention", "save_attention"]
