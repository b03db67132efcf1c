"""The networks beside the MMDiT: closed forms against real parameters and XLA, identities."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_mmdit import inputs

from mmdit_jax.config import OptimizerConfig
from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, apply, init_params
from mmdit_jax.models.architectures.registry import NETWORKS
from mmdit_jax.models.config import ARCHITECTURES
from mmdit_jax.parameter_sharding import parameter_spec
from mmdit_jax.sharding import make_mesh
from mmdit_jax.training.optimizer import muon_dimensions
from mmdit_jax.training.state import init_state
from mmdit_jax.training.step import make_train_step


def noisy_params(config: MMDiTConfig) -> dict:
    """Parameters none of which are zero, so that every path through the network carries signal."""
    rng = np.random.default_rng(0)

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        return (0.15 * rng.normal(size=shape.shape) + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


run = jax.jit(apply, static_argnums=0)
OTHERS = [name for name in ARCHITECTURES if name != "mmdit"]
TINY = MMDiTConfig.from_depth(
    3, head_size=8, patch_size=2, in_channels=3, context_dim=10, pooled_dim=6, position_table=8, qk_norm=True,
    text_split=2,
)  # fmt: skip


def test_the_registry_has_what_the_config_takes() -> None:
    assert tuple(NETWORKS) == ARCHITECTURES
    with pytest.raises(UserError, match=r"architecture='mmdti': unknown; did you mean 'mmdit'"):
        MMDiTConfig(architecture="mmdti")
    with pytest.raises(UserError, match="text_split=0: expected 1 or more"):
        MMDiTConfig(text_split=0)
    with pytest.raises(UserError, match="dual_attention=2: expected 0 with architecture='dit'"):
        MMDiTConfig(architecture="dit", dual_attention=2)


def test_counts_need_no_flax() -> None:
    """The config stays a plain file: flax comes with the networks, not with their shapes."""
    script = (
        "import sys, types, importlib.machinery as m; package = types.ModuleType('mmdit_jax.models'); "
        "import mmdit_jax; package.__path__ = [mmdit_jax.__path__[0] + '/models']; "
        "sys.modules['mmdit_jax.models'] = package; from mmdit_jax.models.config import MMDiTConfig; "
        "print(MMDiTConfig(architecture='dit').num_params(), 'flax' in sys.modules, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(MMDiTConfig(architecture="dit").num_params()), "False", "False"]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("fields", [{}, {"depth": 1, "heads": 3}, {"heads": 5, "mlp_ratio": 3}, {"qk_norm": False}])
def test_count_is_the_real_models(name, fields) -> None:
    config = replace(TINY, architecture=name, **fields)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert config.num_params() == sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", OTHERS)
def test_flops_are_xlas(name) -> None:
    """XLA counts elementwise work too, which is small beside the matrix products at this width."""
    config = MMDiTConfig.from_depth(
        2, head_size=64, heads=2, patch_size=1, in_channels=4, context_dim=64, pooled_dim=32, scan=False,
        architecture=name, mlp_ratio=3, text_split=20,
    )  # fmt: skip
    height, width, text = 8, 16, 50
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, height, width, 4), (1,), (1, text, 64), (1, 32))]
    counted = jax.jit(lambda p, *a: apply(config, p, *a)).lower(shapes, *arguments).compile().cost_analysis()["flops"]
    ours = config.flops_per_image(height, width, text)
    assert ours <= counted <= 1.06 * ours
    tokens = {"dit": 128 + text, "crossdit": 128, "uvit": 32 + text, "mmdit3": 128 + text}[name]
    assert config.flops_6nd(height, width, text) == 6 * config.num_params() * tokens


@pytest.mark.parametrize("name", OTHERS)
def test_every_input_matters_and_new_models_predict_zero(name) -> None:
    config = replace(TINY, architecture=name)
    arguments = inputs(config)
    fresh = run(config, jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)), *arguments)
    assert fresh.shape == arguments[0].shape and fresh.dtype == jnp.float32
    assert not np.any(fresh)
    params = noisy_params(config)
    out = run(config, params, *arguments)
    for position in range(4):
        moved = [x + 0.1 if i == position else x for i, x in enumerate(arguments)]
        assert np.abs(run(config, params, *moved) - out).max() > 1e-3
    latents, t, context, pooled = arguments
    assert np.abs(run(config, params, latents[:, ::-1], t, context, pooled)[:, ::-1] - out).max() > 1e-3
    late = run(config, params, latents, t, context.at[:, -1].add(0.3), pooled)  # the last token of the text, too
    assert np.abs(late - out).max() > 1e-4
    rough = run(replace(config, dtype="bfloat16"), params, *arguments)
    assert rough.dtype == jnp.float32 and 0 < np.abs(rough - out).max() < 0.2 * np.abs(out).max()


@pytest.mark.parametrize("name", OTHERS)
def test_scan_remat_and_unrolled_agree(name) -> None:
    first = replace(TINY, architecture=name)
    params, arguments = noisy_params(first), inputs(first)

    def loss(config: MMDiTConfig, p: dict) -> jax.Array:
        return jnp.mean(apply(config, p, *arguments) ** 2)

    variants = [first, replace(first, scan=False, remat="full")]
    values = [jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)(config, params) for config in variants]
    for path, leaf in jax.tree_util.tree_leaves_with_path(values[0][1]):
        dotted = jax.tree_util.keystr(path, simple=True, separator=".")
        unread = dotted in ("last.clip.norm_q.scale", "last.t5.norm_q.scale")  # queries of streams that end
        assert np.isfinite(leaf).all() and np.any(leaf) != unread, dotted
    for value, gradient in values[1:]:
        assert float(value) == pytest.approx(float(values[0][0]), rel=1e-5)
        for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(values[0][1]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=5e-5)


def ends(params: dict) -> dict:
    """What is not a block, which has the same names in every transformer here."""
    return {key: value for key, value in params.items() if key not in ("blocks", "last")}


@pytest.mark.parametrize("depth", [1, 3])
def test_dit_is_an_mmdit_whose_streams_share_their_weights(depth) -> None:
    dit = replace(TINY, architecture="dit", depth=depth, heads=3)
    params, arguments = noisy_params(dit), inputs(dit)
    d = dit.width
    tied = ends(params)
    if depth > 1:
        tied["blocks"] = {"latent": params["blocks"]["tokens"], "context": params["blocks"]["tokens"]}
    last = params["last"]["tokens"]
    shorter = {key: value for key, value in last.items() if key in ("qkv", "norm_q", "norm_k")}
    shorter["modulation"] = {key: value[..., : 2 * d] for key, value in last["modulation"].items()}
    tied["last"] = {"latent": last, "context": shorter}
    ours, theirs = run(dit, params, *arguments), run(replace(dit, architecture="mmdit"), tied, *arguments)
    assert np.abs(ours).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", [1, 2, 4])
def test_mmdit3_with_equal_text_streams_is_an_mmdit(split) -> None:
    mmdit = replace(TINY, text_split=split)
    params, arguments = noisy_params(mmdit), inputs(mmdit)
    third = {**ends(params), "second_context": params["context"]}
    for part in ("blocks", "last"):
        text = params[part]["context"]
        third[part] = {"latent": params[part]["latent"], "clip": text, "t5": text}
    three = replace(mmdit, architecture="mmdit3")
    assert jax.tree.structure(third) == jax.tree.structure(noisy_params(three))
    ours, theirs = run(three, third, *arguments), run(mmdit, params, *arguments)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    other = {**third, "second_context": jax.tree.map(lambda x: -x, params["context"])}
    assert np.abs(run(three, other, *arguments) - theirs).max() > 1e-3  # the second stream has weights of its own


def test_mmdit3_refuses_text_that_leaves_one_stream_empty() -> None:
    three = replace(TINY, architecture="mmdit3", text_split=5)
    expected = "text_split=5: the text has 5 tokens; mmdit3 needs some after the split"
    with pytest.raises(UserError, match=expected):
        run(three, noisy_params(three), *inputs(three))
    with pytest.raises(UserError, match=expected):
        three.flops_per_image(8, 8, 5)


def test_uvit_names_a_grid_it_can_not_halve() -> None:
    config = replace(TINY, architecture="uvit")
    expected = "height=6: a uvit needs a multiple of 2 x patch_size=4"
    with pytest.raises(UserError, match=expected):
        config.flops_per_image(6, 8, 5)
    with pytest.raises(UserError, match="width=6"):
        _, t, context, pooled = inputs(config)
        run(config, noisy_params(config), jnp.zeros((2, 8, 6, 3)), t, context, pooled)


def batch(size: int = 16) -> dict:
    """Images whose brightness the text tells."""
    rng = np.random.default_rng(0)
    level = rng.uniform(-1, 1, size)
    images = np.clip(127.5 + 100 * level[:, None, None, None] + rng.normal(0, 8, (size, 8, 8, 3)), 0, 255)
    tokens = np.repeat(level[:, None, None], 5, axis=1) * np.ones(10)
    return {"image": images.astype(np.uint8), "text": {"tower": (tokens, np.repeat(level[:, None], 6, axis=1))}}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "optimizer"), [("uvit", "adamw"), *((name, "muon") for name in ARCHITECTURES)])
def test_each_learns(name, optimizer) -> None:
    config = replace(TINY, architecture=name, depth=2)
    rule = OptimizerConfig(
        name=optimizer, learning_rate={"adamw": 5e-3, "muon": 2e-2}[optimizer], adam_learning_rate=5e-3, warmup_steps=2
    )
    steps, mesh = 40, make_mesh()
    state = init_state(config, rule, steps, 0, mesh)
    step = make_train_step(config, rule, steps, 0.1, mesh)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch(), formulation("rf/lognorm(0.00,1.00)"), 0)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_muon_has_the_matrices_of_the_blocks_and_sharding_leaves_the_stack(name) -> None:
    config = replace(TINY, architecture=name, heads=4)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    dimensions = muon_dimensions(params)
    found = jax.tree_util.tree_leaves_with_path(dimensions, is_leaf=lambda x: x is None or hasattr(x, "output_axis"))
    muon = {jax.tree_util.keystr(path, simple=True, separator=".") for path, leaf in found if leaf is not None}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dotted = jax.tree_util.keystr(path, simple=True, separator=".")
        inside = "blocks" in dotted.split(".") or dotted.startswith("last.")
        assert (dotted in muon) == (inside and dotted.endswith("kernel") and "modulation" not in dotted), dotted
        spec = tuple(parameter_spec(dotted, leaf.shape, {"fsdp": 4}))
        if "blocks" in dotted.split(".") and spec:
            assert spec[0] is None, dotted


def test_the_docs_tell_the_counts() -> None:
    """docs/architectures.md: parameters and GFLOPs at SD3's sizes and 256 pixels."""
    text = (Path(__file__).parents[1] / "docs" / "architectures.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `") and " · " in line]
    assert [row[0].strip("`") for row in rows] == list(ARCHITECTURES)
    for name, *cells in rows:
        patch = 1 if name == "`uvit`" else 2
        for depth, cell in zip((15, 18, 21, 24), cells, strict=True):
            config = MMDiTConfig.from_depth(depth, architecture=name.strip("`"), patch_size=patch)
            flops = config.flops_per_image(32, 32, 154)
            assert cell == f"{config.num_params() / 1e6:,.0f} · {flops / 1e9:,.0f}", (name, depth)
