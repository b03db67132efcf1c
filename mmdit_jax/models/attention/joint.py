"""Which attention runs where, and how it is spread over a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmdit_jax import sharding
from mmdit_jax.errors import UserError
from mmdit_jax.models.attention.kernels import cudnn_attention, splash_attention
from mmdit_jax.models.attention.plain import plain_attention

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def attention_kind(asked: str, dtype: str, platform: str, head_size: int, capability: str | None = None) -> str:
    """The attention that runs: ``xla``, ``cudnn``, ``splash``, or ``splash-interpreted`` where it is tested elsewhere.

    ``auto`` is Splash on TPUs, cuDNN on the GPUs, in the dtypes and for the heads that it has, and XLA elsewhere.

    Args:
      capability: of the device, as the function of this name tells it; None is taken for one that can.

    Raises:
      UserError: the one asked for does not run on the platform, in the dtype, or for such heads.
    """
    lacks = _cudnn_lacks(dtype, platform, head_size, capability)
    if asked == "auto":
        return "splash" if platform == "tpu" else "xla" if lacks else "cudnn"
    if asked == "cudnn" and lacks:
        raise UserError(f"attention='cudnn': {lacks}; 'auto' takes what runs here")
    if asked == "splash" and platform != "tpu":
        if platform == "gpu":
            raise UserError("attention='splash': runs on TPUs, this is gpu; 'auto' takes what runs here")
        return "splash-interpreted"
    return asked


def capability() -> str | None:
    """Compute capability of the traced program's device: ``9.0`` of NVIDIA's, ``gfx942`` of AMD's, else None."""
    mesh = sharding.current_mesh()
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return getattr(device, "compute_capability", None)


def _cudnn_lacks(dtype: str, platform: str, head_size: int, capability: str | None) -> str:
    """Why cuDNN's attention does not run, by what JAX asks of it on any GPU; empty where it does."""
    if platform != "gpu" or dtype not in ("bfloat16", "float16"):
        return f"runs on GPUs in bfloat16, this is {platform} in {dtype}"
    if head_size % 8 or head_size > 128:
        return f"takes heads of a multiple of 8 up to 128, this is head_size={head_size}"
    major = "8" if capability is None else capability.split(".")[0]
    if not major.isdigit() or int(major) < 8:
        return f"runs on NVIDIA's GPUs of compute capability 8.0 or more, this is {capability}"
    return ""


def joint_attention(
    q: Float[Array, "batch heads queries size"],
    k: Float[Array, "batch heads tokens size"],
    v: Float[Array, "batch heads tokens size"],
    attention: str = "auto",
) -> Float[Array, "batch heads queries size"]:
    """softmax(q k^T / sqrt(size)) v, without a mask: padding of the text is attended, as in SD3.

    Softmax is float32 whatever the inputs' dtype; the result has the inputs' dtype. Under ``sharding.placed_on`` each
    device attends for its examples, heads and queries, with the keys and values of all tokens.

    Args:
      attention: of ``MMDiTConfig.attention``, see ``attention_kind``.

    Raises:
      UserError: as ``attention_kind``, or the heads don't divide over the mesh.
    """
    kind = attention_kind(attention, q.dtype.name, sharding.platform(), q.shape[-1], capability())

    def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if kind == "cudnn":
            return cudnn_attention(q, k, v)
        if kind == "xla":
            return plain_attention(q, k, v)
        return splash_attention(q, k, v, interpret=kind == "splash-interpreted")

    mesh = sharding.current_mesh()
    return local(q, k, v) if mesh is None else _spread(local, mesh, q, k, v)


def attention_of_each(
    queries: Sequence[jax.Array], k: jax.Array, v: jax.Array, attention: str = "auto"
) -> list[jax.Array]:
    """``joint_attention`` of several streams' queries, over the keys and values of all; a result each.

    In one call, unless tokens are spread: queries laid end to end would then have to move.
    """
    mesh = sharding.current_mesh()
    if mesh is not None and mesh.shape["sequence"] > 1:
        return [joint_attention(q, k, v, attention) for q in queries]
    out = joint_attention(jnp.concatenate(queries, axis=2) if len(queries) > 1 else queries[0], k, v, attention)
    ends = [sum(q.shape[2] for q in queries[: i + 1]) for i in range(len(queries) - 1)]
    return jnp.split(out, ends, axis=2)


def _spread(
    local: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], mesh: Mesh, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    """``local`` on each device's share. Queries are padded where their number does not divide."""
    batch, heads, queries, _ = q.shape
    tensor = mesh.shape["tensor"]
    if heads % tensor:
        raise UserError(f"tensor={tensor}: does not divide the {heads} heads; use a divisor of {heads}")
    parts = sharding.batch_parts(mesh)
    q = jnp.pad(q, ((0, -batch % parts), (0, 0), (0, -queries % mesh.shape["sequence"]), (0, 0)))
    k, v = (jnp.pad(x, ((0, -batch % parts), (0, 0), (0, 0), (0, 0))) for x in (k, v))
    own, whole = sharding.spec("batch", "heads", "tokens", None), sharding.spec("batch", "heads", None, None)
    out = jax.shard_map(local, mesh=mesh, in_specs=(own, whole, whole), out_specs=own, check_vma=False)(q, k, v)
    return out[:batch, :, :queries]
