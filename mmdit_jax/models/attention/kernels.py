"""Attention by kernels that never write the scores to memory: cuDNN's on GPUs, Splash on TPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from mmdit_jax.models.attention.saved import SAVED

if TYPE_CHECKING:
    from jaxtyping import Array, Float

BLOCKS = (512, 384, 256)
"""Tokens that Splash takes at a time; its default of 128 leaves a TPU's matrix unit waiting."""


def cudnn_attention(
    q: Float[Array, "batch heads queries size"],
    k: Float[Array, "batch heads tokens size"],
    v: Float[Array, "batch heads tokens size"],
) -> Float[Array, "batch heads queries size"]:
    """As ``plain_attention``, by cuDNN: float16 or bfloat16, any number of tokens, size a multiple of 8 up to 128."""
    queries, tokens = q.shape[2], k.shape[2]
    # JAX differentiates it for even numbers only; odd ones are padded, with padded keys masked.
    rows = (jnp.moveaxis(_padded(x, 2) if x.shape[2] % 2 else x, 1, 2) for x in (q, k, v))
    lengths = jnp.full(len(k), tokens, jnp.int32) if tokens % 2 else None
    out = jax.nn.dot_product_attention(*rows, key_value_seq_lengths=lengths, implementation="cudnn")
    return jnp.moveaxis(out[:, :queries], 1, 2)


def splash_attention(
    q: Float[Array, "batch heads queries size"],
    k: Float[Array, "batch heads tokens size"],
    v: Float[Array, "batch heads tokens size"],
    *,
    interpret: bool = False,
) -> Float[Array, "batch heads queries size"]:
    """As ``plain_attention``, by the Splash kernel (Pallas): padded to its blocks, with padded keys masked.

    Args:
      interpret: run the kernel's program on whatever there is, slowly, to test it without a TPU.
    """
    # Imported here: Pallas takes a second, and other platforms never need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    heads, queries, size = q.shape[1:]
    tokens = k.shape[2]
    rows, columns = splash_block(queries), splash_block(tokens)
    q = _padded((q.astype(jnp.float32) * float(size) ** -0.5).astype(q.dtype), rows)
    k, v = _padded(k, columns), _padded(v, columns)
    mask = masks.MultiHeadMask([masks.FullMask((q.shape[2], k.shape[2])) for _ in range(heads)])
    sizes = splash.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    kernel = splash.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )
    # Padded keys are a segment that no query is in; padded queries see what the others do, and are cut off.
    segments = None
    if k.shape[2] > tokens:
        real = (jnp.arange(k.shape[2]) < tokens).astype(jnp.int32)
        segments = splash.SegmentIds(q=jnp.ones(q.shape[2], jnp.int32), kv=real)
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segments))(q, k, v)
    return out[:, :, :queries].astype(v.dtype)


def splash_block(tokens: int) -> int:
    """The block that pads a sequence least; of equals the largest."""
    return min(BLOCKS, key=lambda block: (-(-tokens // block) * block, -block))


def _padded(x: jax.Array, block: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, 0)))
