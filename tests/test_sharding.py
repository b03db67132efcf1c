"""Where arrays live: the rules, no parameter repeated in silence, the same numbers on any mesh and with any lever."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_fake_devices
from test_step import OPTIMIZER, STEPS, batch

from mmdit_jax.config import OptimizerConfig
from mmdit_jax.diffusion import formulation
from mmdit_jax.diffusion.loss import draw, loss_at
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, apply, init_params
from mmdit_jax.models.text import assemble
from mmdit_jax.sharding import SMALL, make_mesh, parameter_spec, placed_on, state_shardings
from mmdit_jax.training.state import TrainState, abstract_state, init_state
from mmdit_jax.training.step import make_train_step

MODEL = MMDiTConfig.from_depth(
    3, heads=4, head_size=16, patch_size=4, in_channels=3, context_dim=12, pooled_dim=4, position_table=8, qk_norm=True
)
NAME = "rf/lognorm(0.00,1.00)"


def losses(
    axes: dict[str, int],
    model: MMDiTConfig = MODEL,
    optimizer: OptimizerConfig = OPTIMIZER,
    accumulation: int = 1,
    offload: tuple[str, ...] = (),
) -> list[float]:
    """Losses and gradient norms of five steps."""
    mesh, found = make_mesh(**axes), []
    state = init_state(model, optimizer, STEPS, 0, mesh, offload)
    step = make_train_step(model, optimizer, STEPS, 0.464, mesh, accumulation=accumulation, offload=tuple(offload))
    for _ in range(5):
        state, metrics = step(state, batch(16), formulation(NAME), 0)
        found += [float(metrics["loss"]), float(metrics["grad_norm"])]
    return found


def gradient_errors(meshes: list[dict[str, int]]) -> list[float]:
    """Largest error of any parameter's gradient against one device, relative to that gradient's largest number."""
    f, data = formulation(NAME), batch(16)
    whole = init_params(MODEL, jax.random.key(3))
    # Layers that start at zero would hide most of the network from the gradient.
    whole = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(jax.random.key(p.size), p.shape), whole)
    x0 = data["image"] / np.float32(127.5) - 1
    t, eps = draw(f, x0.shape, jax.random.key(5))

    def gradient(mesh: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            with placed_on(mesh):
                context, pooled = assemble(data["text"])
                return jnp.mean(loss_at(f, lambda z, t: apply(MODEL, params, z, t, context, pooled), x0, t, eps))

        params = whole if mesh is None else jax.device_put(whole, state_shardings(whole, mesh))
        return jax.device_get(jax.jit(jax.grad(loss))(params))

    expected = gradient(None)
    errors = []
    for axes in meshes:
        pairs = zip(jax.tree.leaves(gradient(make_mesh(**axes))), jax.tree.leaves(expected), strict=True)
        errors.append(max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs))
    return errors


MESHES = [
    {"fsdp": 8},
    {"fsdp": 1},
    {"fsdp": 4},
    {"fsdp": 2, "tensor": 2},
    {"fsdp": 2, "sequence": 2},
    {"sequence": 2, "tensor": 4},
    {"sequence": 4, "fsdp": 2},
]


@pytest.mark.slow
def test_any_mesh_gives_the_same_losses_and_gradients() -> None:
    """8 fake devices as 8 x 1, 1 x 8, 2 x 4, 2 x 2 x 2 and more, in a process of their own, against one device here."""
    alone = losses({})
    assert alone[8] < alone[0]
    for axes, found in zip(MESHES, on_fake_devices(8, "test_sharding", "[t.losses(m) for m in t.MESHES]"), strict=True):
        assert found == pytest.approx(alone, rel=1e-5), axes
    for axes, error in zip(MESHES, on_fake_devices(8, "test_sharding", "t.gradient_errors(t.MESHES)"), strict=True):
        assert error < 1e-5, axes


@pytest.mark.slow
def test_levers_move_nothing_but_rounding() -> None:
    """Policies of rematerialisation, accumulation and offloading, on one device and on a mesh of eight."""
    alone = losses({})
    for remat in ("dots", "attention", "full"):
        assert losses({}, replace(MODEL, remat=remat)) == pytest.approx(alone, rel=1e-6), remat
    assert losses({}, accumulation=4) == pytest.approx(alone, rel=1e-5)
    assert losses({}, offload=("optimizer", "ema")) == pytest.approx(alone, rel=1e-6)
    spread = on_fake_devices(
        8,
        "test_sharding",
        "[*[t.losses(dict(fsdp=4), t.replace(t.MODEL, remat=r)) for r in ('dots', 'attention', 'full')],"
        " t.losses(dict(fsdp=4), accumulation=2),"
        " t.losses(dict(fsdp=2, tensor=2), accumulation=4, offload=('optimizer', 'ema'))]",
    )
    for found in spread:
        assert found == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_what_policies_keep() -> None:
    """Floats that the forward pass leaves for the backward pass: less with each policy, and no copy of the weights."""
    model = replace(MODEL, dtype="bfloat16", depth=5)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((16, 16, 16, 3), (16,), (16, 5, 12), (16, 4))]

    def kept(remat: str) -> int:
        config = replace(model, remat=remat)
        _, saved = jax.eval_shape(lambda p, *a: jax.vjp(lambda q: apply(config, q, *a), p), params, *arrays)
        return sum(leaf.size for leaf in jax.tree.leaves(saved))

    sizes = {remat: kept(remat) for remat in ("none", "dots", "attention", "full")}
    assert sizes["none"] > sizes["dots"] > sizes["attention"] > sizes["full"]
    blocks, tokens, width = 4, 16 * (16 + 5), 64
    assert sizes["dots"] - sizes["full"] >= blocks * tokens * (3 + 4 + 1) * width
    assert blocks * tokens * width <= sizes["attention"] - sizes["full"] <= 1.5 * blocks * tokens * width


def stands(optimizer: OptimizerConfig) -> TrainState:
    """The state after 200 steps."""
    mesh = make_mesh()
    state, step = init_state(MODEL, optimizer, 200, 0, mesh), make_train_step(MODEL, optimizer, 200, 0.464, mesh)
    for _ in range(200):
        state, _ = step(state, batch(), formulation(NAME), 0)
    return state


@pytest.mark.slow
def test_moments_and_average_in_sixteen_bits_follow_those_in_32() -> None:
    """The moving average with a decay at which rounding to nearest would stand still."""
    wide = replace(OPTIMIZER, ema_decay=0.999, learning_rate=1e-3)
    narrow = replace(wide, moments="bfloat16", ema_dtype="bfloat16")
    expected, found = stands(wide), stands(narrow)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(found.opt_state) if leaf.ndim}
    assert kinds == {"bfloat16"} and {leaf.dtype.name for leaf in jax.tree.leaves(found.ema)} == {"bfloat16"}

    def distance(a: Any, b: Any) -> float:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return math.sqrt(sum(float(jnp.sum((x.astype(jnp.float32) - y) ** 2)) for x, y in pairs))

    moved = distance(expected.params, init_state(MODEL, wide, 200, 0, make_mesh()).params)
    assert distance(found.params, expected.params) < 0.2 * moved
    assert distance(found.ema, found.params) < 1.2 * distance(expected.ema, expected.params)


def born() -> dict[str, list[float]]:
    """Of each part of the state: bytes on the fullest device over those of all, and of a new state's arrays."""
    mesh = make_mesh(fsdp=2, sequence=2, tensor=2)
    state = init_state(MODEL, OPTIMIZER, STEPS, 0, mesh)
    shares = {}
    for name in ("params", "ema", "opt_state"):
        leaves = [leaf for leaf in jax.tree.leaves(vars(state)[name]) if leaf.size > 4096]
        here = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        shares[name] = [here, sum(leaf.nbytes for leaf in leaves)]
    return shares


@pytest.mark.slow
def test_the_state_is_born_sharded() -> None:
    for name, (here, everywhere) in on_fake_devices(8, "test_sharding", "t.born()").items():
        assert 8 * here == everywhere, name


@pytest.mark.parametrize("depth", [15, 18, 21, 24, 30, 38])
def test_no_parameter_is_repeated_in_silence(depth: int) -> None:
    """On any mesh a device holds its share, but for arrays of at most 65,536 numbers, or the rule names what fails."""
    config = MMDiTConfig.from_depth(depth, qk_norm=True)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    works = 0
    for fsdp in (1, 2, 3, 8, 12, 16, 64, 128, 256, 512):
        for sequence, tensor in ((1, 1), (2, 1), (1, 2), (4, 1), (1, 8), (2, 2), (1, 3), (4, 4)):
            sizes = {"data": 2, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
            parts = fsdp * sequence * tensor
            try:
                cuts = [(shape, parameter_spec(name, shape, sizes)) for name, shape in leaves]
            except UserError as error:
                named = str(error).split(" of ")[1].split(" [")[0]
                assert named in dict(leaves) and "would" in str(error)
                continue
            works += 1
            for shape, spec in cuts:
                ways = [
                    sizes[axis] for names in spec for axis in (names if isinstance(names, tuple) else (names,)) if axis
                ]
                assert math.prod(ways) == parts or math.prod(shape) <= SMALL
                for size, names in zip(shape, spec, strict=False):
                    axes = names if isinstance(names, tuple) else (names,)
                    assert size % math.prod(sizes[axis] for axis in axes if axis) == 0
    assert works >= 20


def test_rules() -> None:
    # 2432 = 2^7 x 19 does not divide by 256, 9728 = 4 x 2432 does; the axis of stacked blocks is never cut.
    cut = lambda name, shape, **sizes: tuple(parameter_spec(name, shape, sizes))  # noqa: E731
    assert cut("blocks.latent.down.kernel", (256, 9728, 2432), fsdp=256) == (None, "fsdp")
    assert cut("blocks.latent.up.kernel", (37, 2432, 9728), fsdp=8) == (None, None, "fsdp")
    assert cut("dual.latent.second.out.kernel", (16, 8, 8), fsdp=8) == (None, None, "fsdp")
    assert cut("patch.bias", (17,), fsdp=8) == ()
    # Heads and hidden channels belong to ``tensor``: columns of qkv and up, rows of out and down.
    assert cut("blocks.latent.qkv.kernel", (37, 2432, 7296), fsdp=64, tensor=2) == (None, "fsdp", "tensor")
    assert cut("blocks.latent.down.kernel", (37, 9728, 2432), fsdp=64, tensor=2) == (None, "tensor", "fsdp")
    assert cut("blocks.latent.up.bias", (37, 9728), tensor=2) == (None, "tensor")
    assert cut("blocks.latent.modulation.kernel", (37, 2432, 14592), fsdp=4, tensor=2) == (
        None,
        None,
        ("fsdp", "tensor"),
    )
    # Where no axis has room for all of them, each takes its own.
    assert cut("blocks.x.kernel", (2, 512, 640), fsdp=512, sequence=5) == (None, "fsdp", "sequence")
    with pytest.raises(UserError, match=r"fsdp=8: divides no axis of blocks\.latent\.up\.kernel .*; fsdp=3 would"):
        parameter_spec("blocks.latent.up.kernel", (36, 333, 333), {"fsdp": 8})
    with pytest.raises(UserError, match="fsdp=3: expected a divisor"):
        make_mesh(fsdp=3)
    with pytest.raises(UserError, match="data=5: expected 1"):
        make_mesh(data=5)


def test_abstract_states_tell_where_they_will_be() -> None:
    state = abstract_state(MODEL, OPTIMIZER, STEPS, make_mesh(), ("ema",))
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.ema)} == {"pinned_host"}
    assert "pinned_host" not in {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)}
