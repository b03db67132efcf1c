"""Small programs whose FLOPs and bytes are known, compiled on eight fake devices and counted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.planning.hlo import Counts, count

M, K, N = 48, 32, 80


def shape(*dims: int, dtype: Any = jnp.float32, sharding: NamedSharding | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)


def counted(function: Any, *arguments: jax.ShapeDtypeStruct, **options: Any) -> Counts:
    return count(jax.jit(function, **options).lower(*arguments).compile().as_text())


def summary(counts: Counts) -> dict[str, Any]:
    """What the tests compare, as JSON."""
    return {
        "flops": counts.flops,
        "types": counts.flops_by_type,
        "hbm": counts.hbm_bytes,
        "collectives": sorted(
            [c.kind, c.operand_bytes, c.result_bytes, list(map(list, c.groups)), c.executions, c.wire_bytes]
            for c in counts.collectives
        ),
        "wire": counts.wire_bytes,
        "loops": counts.uncounted_loops,
        "devices": counts.devices,
    }


def every_case() -> dict[str, Any]:
    return {name: summary(case()) for name, case in _LOCAL.items()} | {
        name: summary(case(Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b")))) for name, case in _SHARDED.items()
    }


def _scan() -> Counts:
    def f(x: jax.Array, ws: jax.Array) -> jax.Array:
        return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, ws)[0]

    return counted(f, shape(M, K), shape(7, K, K))


def _nested() -> Counts:
    def inner(x: jax.Array, ws: jax.Array) -> jax.Array:
        return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, ws)[0]

    def outer(x: jax.Array, ws: jax.Array) -> jax.Array:
        return lax.fori_loop(2, 5, lambda i, c: inner(c, ws) @ ws[0], x)

    return counted(outer, shape(M, K), shape(5, K, K))


def _unknown() -> Counts:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.while_loop(lambda c: jnp.sum(c) < 10, lambda c: jnp.tanh(c @ w), x)

    return counted(f, shape(M, K), shape(K, K))


def _branches() -> Counts:
    def f(i: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
        cases = [lambda x: x * 2, lambda x: jnp.tanh(x @ w) @ w, lambda x: x @ w]
        return lax.switch(i, cases, x)

    return counted(f, shape(dtype=jnp.int32), shape(M, K), shape(K, K))


def _add() -> Counts:
    return counted(lambda x, y: jnp.tanh(x + y), shape(1000, 8), shape(1000, 8))


def _store() -> Counts:
    """A loop that writes one row of a donated array in each run."""

    def f(table: jax.Array, rows: jax.Array) -> jax.Array:
        return lax.fori_loop(0, 50, lambda i, t: lax.dynamic_update_slice(t, rows[i][None] + 1, (i, 0)), table)

    return counted(f, shape(1000, 512), shape(50, 512), donate_argnums=0)


def _psum(mesh: Mesh) -> Counts:
    x = shape(M, 8 * K, sharding=NamedSharding(mesh, P(None, ("a", "b"))))
    w = shape(8 * K, N, sharding=NamedSharding(mesh, P(("a", "b"), None)))
    return counted(lambda x, w: x @ w, x, w, out_shardings=NamedSharding(mesh, P()))


def _gather(mesh: Mesh) -> Counts:
    """Data parallel over both axes with weights split over ``b``, as FSDP: what is gathered are the weights."""
    x = shape(8 * M * 64, K, sharding=NamedSharding(mesh, P(("a", "b"), None)))
    w = shape(K, 4 * N, sharding=NamedSharding(mesh, P(None, "b")))
    return counted(lambda x, w: x @ w, x, w, out_shardings=NamedSharding(mesh, P(("a", "b"), None)))


def _explicit(mesh: Mesh) -> Counts:
    """Each collective once outside of a loop of three, and an all-reduce in it."""

    def f(x: jax.Array) -> tuple[jax.Array, ...]:
        permuted = lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)])
        total, _ = lax.scan(lambda c, _: (jnp.tanh(lax.psum(c, "a")), None), x, None, length=3)
        return (
            lax.all_gather(x, "b", tiled=True),
            lax.psum_scatter(x, "b", tiled=True),
            lax.all_to_all(x, "b", 0, 0, tiled=True),
            permuted,
            total,
        )

    sharded = jax.shard_map(f, mesh=mesh, in_specs=P(("a", "b")), out_specs=(P(("a", "b")),) * 5, check_vma=False)
    return counted(sharded, shape(8 * 64, 16, dtype=jnp.float32, sharding=NamedSharding(mesh, P(("a", "b")))))


_LOCAL = {"scan": _scan, "nested": _nested, "unknown": _unknown, "branches": _branches, "add": _add, "store": _store}
_SHARDED = {"psum": _psum, "gather": _gather, "explicit": _explicit}
