"""Programs compiled for TPUs that are not here."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.planning.hlo import count
from launch.planning.lower import compiler_options, devices_of
from launch.planning.target import parse
from mmdit_jax.models.products import product
from mmdit_jax.sharding import batch_sharding, make_mesh, own_rows


def _mesh(topology: str, **options: Any) -> Mesh:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    return Mesh(np.array(devices), ("fsdp",))


def _shape(mesh: Mesh, dims: tuple[int, ...], spec: P, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec))


def one_product(topology: str) -> tuple[float, float, float]:
    """FLOPs of a device by our count, by XLA's and by hand."""
    mesh = _mesh(topology)
    m, k, n = 4096, 2048, 1024
    arguments = _shape(mesh, (m, k), P("fsdp")), _shape(mesh, (k, n), P())
    compiled = jax.jit(lambda x, w: x @ w).lower(*arguments).compile()
    return count(compiled.as_text()).flops, compiled.cost_analysis()["flops"], 2 * m * k * n / mesh.size


def eight_bits(topology: str, products: str) -> dict[str, float]:
    """FLOPs by type of the forward and backward products of one kernel, over those by hand."""
    target = parse(topology)
    mesh = Mesh(np.array(devices_of(target)[:1]), ("fsdp",))
    x, kernel, out = (_shape(mesh, dims, P()) for dims in ((4, 512, 768), (768, 1024), (4, 512, 1024)))

    def step(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Any:
        value, pull = jax.vjp(lambda x, kernel: product(x, kernel, products), x, kernel)
        return value, pull(gradient)

    compiled = jax.jit(step).lower(x, kernel, out).compile(compiler_options=compiler_options(target))
    found = count(compiled.as_text()).flops_by_type
    return {kind: flops / (2 * 4 * 512 * 768 * 1024) for kind, flops in found.items()}


def joint_blocks(topology: str) -> dict[str, Any]:
    """Training step of joint blocks (two streams, one attention), sharded weights, everything rematerialised."""
    mesh = _mesh(topology)
    depth, width, heads, images, text, batch = 6, 512, 8, 256, 128, 2 * mesh.size
    tokens = images + text

    def norm(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return (x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)).astype(jnp.bfloat16)

    def block(carry: Any, w: Any) -> Any:
        streams = []
        for z, name in zip(carry, "xc", strict=True):
            streams.append((norm(z) @ w[name + "qkv"]).reshape(*z.shape[:2], 3, heads, width // heads))
        q, k, v = jnp.moveaxis(jnp.concatenate(streams, 1), 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v, implementation="xla").reshape(-1, tokens, width)
        out = []
        for z, name, part in zip(carry, "xc", (mixed[:, :images], mixed[:, images:]), strict=True):
            z = z + part @ w[name + "o"]
            out.append(z + jax.nn.gelu(norm(z) @ w[name + "up"]) @ w[name + "down"])
        return tuple(out), None

    def loss(weights: Any, x: jax.Array, c: jax.Array) -> jax.Array:
        policy = jax.checkpoint_policies.nothing_saveable
        (x, c), _ = lax.scan(jax.checkpoint(block, policy=policy), (x, c), weights)
        return jnp.mean(x.astype(jnp.float32) ** 2) + jnp.mean(c.astype(jnp.float32) ** 2)

    parts = {"qkv": (width, 3 * width), "o": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    weights = {
        stream + name: _shape(mesh, (depth, *dims), P(None, None, "fsdp"))
        for stream in "xc"
        for name, dims in parts.items()
    }
    x, c = (_shape(mesh, (batch, n, width), P("fsdp")) for n in (images, text))
    compiled = jax.jit(jax.grad(loss)).lower(weights, x, c).compile()
    counts = count(compiled.as_text())
    local = batch // mesh.size
    # 12 width^2 values of weights a token, and two products of attention; forward once more, backward twice. No
    # gradient needs the block's last product again.
    forward = local * depth * 2 * (tokens * 12 * width * width + 2 * tokens * tokens * width)
    last = local * depth * 2 * tokens * 4 * width * width
    return {
        "ours": counts.flops,
        "closed": 4 * forward - last,
        "xla": compiled.cost_analysis()["flops"],
        "loops": counts.uncounted_loops,
    }


def refused(topologies_: dict[str, tuple[str, dict[str, str]]]) -> dict[str, tuple[str, int, float]]:
    """Of each: kind and number of its devices, and the GiB that libtpu has for a program that needs 600."""
    found = {}
    for name, (topology, options) in topologies_.items():
        mesh = _mesh(topology, **options)
        large = _shape(mesh, (mesh.size, 300 * 2**30 // 4), P("fsdp"), jnp.float32)
        try:
            jax.jit(lambda x: x + 1).lower(large).compile()
        except jax.errors.JaxRuntimeError as error:
            gib = re.search(r"available HBM \(([\d.]+)G\)", str(error))
            found[name] = (mesh.devices.flat[0].device_kind, mesh.size, float(gib.group(1)) if gib else 0.0)
    return found


def gradient_of_slices(topology: str) -> list[tuple[str, float, int]]:
    """Data parallel over two slices: kind, bytes of a device and slices of each collective."""
    mesh = _mesh(topology, num_slices=2)

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(x @ w).astype(jnp.float32))

    arguments = _shape(mesh, (512, 512), P()), _shape(mesh, (4096, 512), P("fsdp"))
    gradient = jax.jit(jax.grad(loss), out_shardings=NamedSharding(mesh, P()))
    collectives = count(gradient.lower(*arguments).compile().as_text()).collectives
    return [(one.kind, one.operand_bytes, one.slices) for one in collectives]


def rows_of_processes(topology: str, axes: dict[str, int]) -> dict[str, Any]:
    """Of a batch over a whole pod: the rows that each process reads, and those that its devices hold by JAX's rule."""
    mesh = make_mesh(**axes, devices=devices_of(parse(topology)))
    batch = 2 * mesh.shape["data"] * mesh.shape["fsdp"]
    held: dict[int, set[int]] = {}
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((batch,)).items():
        held.setdefault(device.process_index, set()).update(range(batch)[rows])
    return {
        "batch": batch,
        "held": [sorted(held[process]) for process in sorted(held)],
        "read": [own_rows(mesh, batch, process).tolist() for process in sorted(held)],
    }
