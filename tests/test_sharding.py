"""Where arrays live: the rules, no parameter repeated in silence, the same numbers on any mesh and with any lever."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_fake_devices
from test_step import OPTIMIZER, STEPS, batch

from launch.planning import hlo
from mmdit_jax.config import OptimizerConfig
from mmdit_jax.diffusion import formulation
from mmdit_jax.diffusion.loss import draw, loss_at
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, apply, init_params
from mmdit_jax.models.text import assemble
from mmdit_jax.parameter_sharding import SMALL, parameter_spec, parameter_specs, state_shardings
from mmdit_jax.sharding import make_mesh, placed_on
from mmdit_jax.training.state import TrainState, abstract_state, init_state
from mmdit_jax.training.step import make_train_step, step_function

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


def gradient_errors(meshes: list[dict[str, int]], model: MMDiTConfig = MODEL) -> list[float]:
    """Largest error of any parameter's gradient against one device, relative to that gradient's largest number."""
    f, data = formulation(NAME), batch(16)
    whole = init_params(model, jax.random.key(3))
    # Layers that start at zero would hide most of the network from the gradient.
    whole = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(jax.random.key(p.size), p.shape), whole)
    x0 = data["image"] / np.float32(127.5) - 1
    t, eps = draw(f, x0.shape, jax.random.key(5))

    def gradient(mesh: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            with placed_on(mesh):
                context, pooled = assemble(data["text"])
                return jnp.mean(loss_at(f, lambda z, t: apply(model, params, z, t, context, pooled), x0, t, eps))

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


NETWORKS = {
    **{name: replace(MODEL, architecture=name) for name in ("dit", "crossdit", "uvit")},
    "mmdit3": replace(MODEL, architecture="mmdit3", text_split=2),
    "mmdit, unrolled": replace(MODEL, scan=False),
    "mmdit, a second attention": replace(MODEL, dual_attention=2),
}
CUBE = {"fsdp": 2, "sequence": 2, "tensor": 2}


@pytest.mark.slow
def test_every_network_has_the_same_gradients_on_a_mesh() -> None:
    found = on_fake_devices(8, "test_sharding", "[t.gradient_errors([t.CUBE], m)[0] for m in t.NETWORKS.values()]")
    assert dict(zip(NETWORKS, found, strict=True)) == pytest.approx(dict.fromkeys(NETWORKS, 0), abs=1e-5)


ROWS = 20
"""Examples of a batch: a number that no array but of examples has along an axis."""


def moved_modulations(model: MMDiTConfig, axes: dict[str, int]) -> list[str]:
    """Arrays of one row an example that devices hand to one another in a training step: parts of modulations."""
    mesh = make_mesh(**axes)
    step = jax.jit(step_function(model, OPTIMIZER, STEPS, 0.464, mesh=mesh))
    lowered = step.lower(abstract_state(model, OPTIMIZER, STEPS, mesh), batch(ROWS), formulation(NAME), 0)
    rows = "|".join(str(ROWS // n) for n in {1, axes.get("fsdp", 1)})
    return re.findall(rf"= (\w+\[(?:{rows}),\d+\]).* collective-permute", lowered.compile().as_text())


@pytest.mark.slow
def test_modulations_are_split_where_they_are_used() -> None:
    """Within residual blocks of a UViT, and before the output, on meshes where they were not once."""
    asked = "[*t.moved_modulations(t.NETWORKS['uvit'], t.CUBE), *t.moved_modulations(t.MODEL, t.MESHES[5])]"
    assert on_fake_devices(8, "test_sharding", asked) == []


def gathered_shapes() -> list[str]:
    """Shapes of what a step on fsdp x tensor = 4 x 2 gathers."""
    mesh = make_mesh(fsdp=4, tensor=2)
    state = abstract_state(MODEL, OPTIMIZER, STEPS, mesh)
    step = jax.jit(step_function(MODEL, OPTIMIZER, STEPS, 0.464, mesh=mesh))
    text = step.lower(state, batch(16), formulation(NAME), np.uint32(0)).compile().as_text()
    return re.findall(r"= [a-z0-9]+\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)


def test_no_device_gathers_what_others_multiply_with() -> None:
    """Over ``tensor`` = 2 a device has half the heads, and half the hidden channels, of every block's kernels."""
    found = on_fake_devices(8, "test_sharding", "t.gathered_shapes()")
    d = MODEL.width
    for half in (f"{d},3,{d // 2}", f"{d},{2 * d}", f"{2 * d},{d}", f"{d // 2},{d}"):
        assert half in found, half
    for whole in (f"{d},{3 * d}", f"{d},3,{d}", f"{d},{4 * d}", f"{4 * d},{d}"):
        assert whole not in found, whole


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


@pytest.mark.slow
def test_policies_recompute_in_unrolled_blocks_as_in_scanned_ones() -> None:
    """Without a loop the compiler could merge what is done again with what was done first."""
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((16, 16, 16, 3), (16,), (16, 5, 12), (16, 4))]

    def products(remat: str, scan: bool) -> float:
        config = replace(MODEL, depth=5, remat=remat, scan=scan)
        params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
        gradient = jax.jit(jax.grad(lambda p, *given: jnp.sum(apply(config, p, *given) ** 2)))
        return hlo.count(gradient.lower(params, *arrays).compile().as_text()).flops

    nothing = products("none", scan=False)
    assert nothing == products("none", scan=True)
    for remat in ("attention", "full"):
        assert products(remat, scan=False) == pytest.approx(products(remat, scan=True), rel=0.03)
        assert products(remat, scan=False) > 1.2 * nothing


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
    """On any mesh a device holds its share, but for arrays of at most 65,536 numbers a block; where it can't, the rule
    names a parameter that no way of cutting suits, and a mesh that works."""
    shapes = parameter_shapes(MMDiTConfig.from_depth(depth, qk_norm=True))
    for fsdp in (1, 2, 3, 8, 12, 16, 64, 128, 256, 512):
        for sequence, tensor in ((1, 1), (2, 1), (1, 2), (4, 1), (1, 8), (2, 2), (1, 3), (4, 4)):
            sizes = {"data": 2, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
            parts = fsdp * sequence * tensor
            try:
                specs = parameter_specs(shapes, sizes)
            except UserError as error:
                named = str(error).split("cut ")[1].split(" [")[0]
                assert math.prod(own(named, shapes[named])) > SMALL
                assert not can_be_cut(own(named, shapes[named]), (fsdp, sequence, tensor)), error
                advice = str(error).split("; ")[1].removesuffix(" would work").split(", ")
                instead = {axis: int(size) for axis, size in (change.split("=") for change in advice)}
                assert all(sizes[axis] % size == 0 and size < sizes[axis] for axis, size in instead.items())
                parameter_specs(shapes, {**sizes, **instead})
                continue
            for name, spec in specs.items():
                shape = shapes[name]
                ways = [
                    sizes[axis] for names in spec for axis in (names if isinstance(names, tuple) else (names,)) if axis
                ]
                assert math.prod(ways) == parts or math.prod(own(name, shape)) <= SMALL
                for size, names in zip(shape, spec, strict=False):
                    axes = names if isinstance(names, tuple) else (names,)
                    assert size % math.prod(sizes[axis] for axis in axes if axis) == 0


def parameter_shapes(config: MMDiTConfig) -> dict[str, tuple[int, ...]]:
    tree = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def own(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one block's."""
    return shape[1:] if name.startswith("blocks") else shape


def can_be_cut(shape: tuple[int, ...], cuts: tuple[int, ...]) -> bool:
    """Whether each cut can be given to some axis so that all divide: every way tried."""
    return any(
        all(
            size % math.prod(cut for cut, at in zip(cuts, axes, strict=True) if at == axis) == 0
            for axis, size in enumerate(shape)
        )
        for axes in itertools.product(range(len(shape)), repeat=len(cuts))
    )


@pytest.mark.parametrize("depth", [15, 18, 21, 24, 30, 38])
def test_powers_of_two_cut_every_depth(depth: int) -> None:
    """Width 64 x depth: up to 64 devices, and 8 times as many with sequence or tensor where the heads divide."""
    config = MMDiTConfig.from_depth(depth, qk_norm=True)
    shapes = parameter_shapes(config)
    for fsdp, sequence, tensor in itertools.product((1, 2, 4, 8, 16, 32, 64), (1, 2, 4), (1, 2)):
        if config.num_heads % tensor == 0:
            parameter_specs(shapes, {"fsdp": fsdp, "sequence": sequence, "tensor": tensor})


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
    with pytest.raises(
        UserError, match=r"^fsdp=8: can't cut blocks\.latent\.up\.kernel \[36, 666, 666\] so; fsdp=2 would"
    ):
        parameter_spec("blocks.latent.up.kernel", (36, 666, 666), {"fsdp": 8})
    # The axis that is at fault is named, not the largest.
    with pytest.raises(UserError, match=r"^fsdp=8, tensor=5: .*; tensor=1 would work$"):
        parameter_spec("blocks.latent.up.kernel", (3, 512, 2048), {"fsdp": 8, "tensor": 5})
    # Biases of a block are small, however many blocks there are.
    assert cut("blocks.latent.down.bias", (37, 2432), fsdp=256) == ()
    with pytest.raises(UserError, match="fsdp=3: expected a divisor"):
        make_mesh(fsdp=3)
    with pytest.raises(UserError, match="data=5: expected 1"):
        make_mesh(data=5)


def test_abstract_states_tell_where_they_will_be() -> None:
    state = abstract_state(MODEL, OPTIMIZER, STEPS, make_mesh(), ("ema",))
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.ema)} == {"pinned_host"}
    assert "pinned_host" not in {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)}
