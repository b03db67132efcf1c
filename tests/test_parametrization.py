"""muP: its numbers against a table by hand, the standard model at the base, and activations that don't grow."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from experiments.mup_small import study
from experiments.quickstart import study as quickstart
from launch.coordinates import Probe, watched
from mmdit_jax.config import HardwareConfig, OptimizerConfig, Run
from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, apply, init_params
from mmdit_jax.models.parametrization import Rule, depth_ratio, rule, rules, width_ratio
from mmdit_jax.models.watch import BRANCHES, PLACES, activations
from mmdit_jax.sharding import make_mesh
from mmdit_jax.training.optimizer import is_kernel, learning_rate, make_optimizer
from mmdit_jax.training.state import init_state
from mmdit_jax.training.step import make_train_step
from scaling.coordinates import slopes

STANDARD = MMDiTConfig.from_depth(
    2, head_size=8, heads=2, patch_size=4, in_channels=3, context_dim=12, pooled_dim=4, position_table=8, qk_norm=True
)
MUP = replace(STANDARD, parametrization="mup", base_width=16, base_depth=2)
WIDE = replace(MUP, heads=8, depth=6)  # 4 times as wide, 3 times as deep
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.1, clip_norm=0.5, eps=1e-6)
STEPS = 6


def batch(seed: int = 0, size: int = 8) -> dict:
    rng = np.random.default_rng(seed)
    text = (rng.normal(size=(size, 5, 12)).astype(np.float16), rng.normal(size=(size, 4)).astype(np.float16))
    return {"image": rng.integers(0, 256, (size, 16, 16, 3), np.uint8), "text": {"tower": text}}


def run_of(optimizer: OptimizerConfig, hardware: HardwareConfig = HardwareConfig()) -> Run:  # noqa: B008
    """The first run of mup_small with ``MUP``, whose text is as ``batch`` has it."""
    run = study().runs[0]
    data = replace(run.data, name="encoded", text_encoders=("tower",), text_shapes=(("tower", 5, 12, 4),))
    return replace(run, model=MUP, data=data, optimizer=optimizer, hardware=hardware)


def trained(model: MMDiTConfig, steps: int = STEPS, optimizer: OptimizerConfig = OPTIMIZER):
    mesh = make_mesh()
    state = init_state(model, optimizer, STEPS, 0, mesh)
    step = make_train_step(model, optimizer, STEPS, 0.1, mesh)
    for i in range(steps):
        state, _ = step(state, batch(i), formulation("rf"), 0)
    return state


def leaves(tree) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_at_the_base_shape_it_is_the_standard_model() -> None:
    """The same initial weights to the bit, and the same after steps with clipping and decay, up to rounding."""
    first, second = (leaves(trained(model, 0).params) for model in (STANDARD, MUP))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    first, second = (leaves(trained(model).params) for model in (STANDARD, MUP))
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert np.abs(first["['blocks']['latent']['qkv']['kernel']"]).max() > 0


# Multiplier of the layer's output, share of the learning rate, size of the gradient, for 4 times the width and 3 times
# the depth: Tensor Programs V, table 8 (Adam), and CompleteP, table 1 (alpha 1), row by row of what a layer is.
BY_HAND = {
    "patch.kernel": (1, 1, 1 / 4),
    "patch.bias": (1, 1, 1 / 4),
    "context.kernel": (1, 1, 1 / 4),
    "time.up.kernel": (1, 1, 1 / 4),
    "pooled.up.kernel": (1, 1, 1 / 4),
    "time.up.bias": (1, 1, 1 / 4),
    "time.down.kernel": (1, 1 / 4, 1 / 4),
    "pooled.down.kernel": (1, 1 / 4, 1 / 4),
    "pooled.down.bias": (1, 1, 1 / 4),
    "final_modulation.kernel": (1, 1 / 4, 1 / 4),
    "final_modulation.bias": (1, 1, 1 / 4),
    "final.kernel": (1 / 4, 1, 1 / 4),
    "final.bias": (1, 1, 1),
    "blocks.latent.qkv.kernel": (1, 1 / 4, 1 / 12),
    "blocks.context.qkv.bias": (1, 1, 1 / 12),
    "blocks.latent.norm_q.scale": (1, 1, 1 / 3),
    "blocks.latent.out.kernel": (1, 1 / 4, 1 / 12),
    "blocks.context.up.kernel": (1, 1 / 4, 1 / 12),
    "last.latent.down.kernel": (1, 1 / 4, 1 / 12),
    "last.latent.down.bias": (1, 1, 1 / 12),
    "last.context.modulation.kernel": (1, 1 / 4, 1 / 12),  # of a stream that ends: no gates
}


@pytest.mark.parametrize("name", BY_HAND)
def test_rules_are_those_of_the_table(name: str) -> None:
    names = tuple(name.split("."))
    shapes = jax.eval_shape(lambda: init_params(WIDE, jax.random.key(0)))
    leaf = shapes
    for key in names:
        leaf = leaf[key]
    found = rule(WIDE, names, leaf.shape[-1])
    np.testing.assert_allclose(found.multiplier, BY_HAND[name][0])
    assert (found.rate, found.gradient) == pytest.approx(BY_HAND[name][1:])
    standard = rule(STANDARD, names, leaf.shape[-1])
    assert (standard.rate, standard.gradient) == (1, 1) and np.all(standard.multiplier == 1)


@pytest.mark.parametrize("dual", [0, 2])
def test_gates_have_the_multiplier_of_their_branches(dual: int) -> None:
    """Of six chunks the third and last, of nine (a second attention) the ninth too; the others none."""
    config = replace(WIDE, dual_attention=dual)
    group, chunks = ("dual", 9) if dual else ("blocks", 6)
    found = rule(config, (group, "latent", "modulation", "kernel"), chunks * config.width)
    expected = np.ones((chunks, config.width))
    expected[[2, 5, 8][: chunks // 3]] = 1 / 3
    np.testing.assert_allclose(found.multiplier, expected.ravel())
    assert found.rate == 1 / 4


def test_every_parameter_of_every_architecture_has_a_rule() -> None:
    for architecture in ("mmdit", "dit", "crossdit", "mmdit3"):
        config = replace(WIDE, architecture=architecture, text_split=2)
        shapes = jax.eval_shape(lambda config=config: init_params(config, jax.random.key(0)))
        found = jax.tree.leaves(rules(config, shapes), is_leaf=lambda item: isinstance(item, Rule))
        assert len(found) == len(jax.tree.leaves(shapes))
        thin = rules(replace(config, heads=2, depth=2), shapes)
        for item in jax.tree.leaves(thin, is_leaf=lambda item: isinstance(item, Rule)):
            assert (item.rate, item.gradient) == (1, 1) and np.all(item.multiplier == 1)
    assert rule(replace(WIDE, architecture="crossdit"), ("blocks", "text", "cross_out", "bias"), 64).multiplier == 1 / 3


def test_initial_variances() -> None:
    """From inputs: the base's. From width to width: 1 / width. The rest is the standard model's, to the bit."""
    wide = replace(MUP, heads=16)  # 128
    standard = replace(STANDARD, heads=16)
    mup, plain = (leaves(init_params(config, jax.random.key(0))) for config in (wide, standard))
    assert width_ratio(wide) == 8 and depth_ratio(WIDE) == 3 and width_ratio(standard) == 1
    variances = {"['patch']['kernel']": 2 / (48 + 16), "['context']['kernel']": 2 / (12 + 16)}
    variances |= {f"['{name}']['down']['kernel']": 0.02**2 / 8 for name in ("time", "pooled")}
    for name, value in mup.items():
        if name in variances:
            assert value.var() == pytest.approx(variances[name], rel=0.1), name
            ratio = (value / plain[name]).ravel()
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
        else:
            np.testing.assert_array_equal(value, plain[name], err_msg=name)


def test_updates_are_those_of_a_network_with_multipliers() -> None:
    """Against optax's AdamW, parameter by parameter, on w of effective weights m w: learning rate and epsilon as the
    tables have them, decay that does not go with the shape, clipping by the norm over all."""
    config = replace(OPTIMIZER, warmup_steps=2)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(WIDE, jax.random.key(0)))
    draw = lambda scale: jax.tree.map(lambda leaf: scale * rng.normal(size=leaf.shape).astype(np.float32), shapes)  # noqa: E731
    params, gradients = draw(0.1), [draw(scale) for scale in (1.0, 1e-5, 1e-6)]
    optimizer = make_optimizer(config, STEPS, WIDE)
    state, ours = optimizer.init(params), params
    of_each = rules(WIDE, params)
    is_rule = lambda item: isinstance(item, Rule)  # noqa: E731
    multiplied = [
        jax.tree.map(lambda own, leaf: own.multiplier * leaf, of_each, gradient, is_leaf=is_rule)
        for gradient in gradients
    ]
    clips = [min(1.0, config.clip_norm / float(optax.tree.norm(gradient))) for gradient in multiplied]
    assert clips[0] < 0.1 and clips[2] == 1
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
    flat = leaves(ours)
    kernels = leaves(is_kernel(params))
    schedule = learning_rate(config, STEPS)
    for path, start in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        own = rule(WIDE, tuple(entry.key for entry in path), start.shape[-1])
        effective = start.astype(np.float64)
        m = v = np.zeros_like(effective)
        for n, (gradient, clip) in enumerate(zip(multiplied, clips, strict=True)):
            g = clip * leaves(gradient)[name].astype(np.float64)
            m, v = config.b1 * m + (1 - config.b1) * g, config.b2 * v + (1 - config.b2) * g**2
            first, second = m / (1 - config.b1 ** (n + 1)), v / (1 - config.b2 ** (n + 1))
            step = own.multiplier * own.rate * first / (np.sqrt(second) + own.gradient * config.eps)
            effective = effective - float(schedule(n)) * (step + config.weight_decay * kernels[name] * effective)
        np.testing.assert_allclose(flat[name], effective, rtol=1e-4, atol=2e-6, err_msg=name)


def test_the_standard_optimizer_is_as_it_was() -> None:
    """Checkpoints restore by the structure of its state."""
    params = jax.eval_shape(lambda: init_params(STANDARD, jax.random.key(0)))
    rate = learning_rate(OPTIMIZER, STEPS)
    before = optax.chain(
        optax.clip_by_global_norm(OPTIMIZER.clip_norm),
        optax.adamw(rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.1, mask=is_kernel),
    )
    now = jax.eval_shape(make_optimizer(OPTIMIZER, STEPS, STANDARD).init, params)
    assert jax.tree.structure(now) == jax.tree.structure(jax.eval_shape(before.init, params))


def test_runs_that_exist_keep_their_ids() -> None:
    """As they were before there were parametrizations; that of a run under muP depends on its base."""
    ids = [run.run_id for run in quickstart().runs]
    assert ids[0] == "d1-rf-74a98ee81c" and ids[-1] == "emoji-d2-3f97a5fb4d"
    run = next(run for run in study().runs if run.model.parametrization == "mup")
    assert replace(run, model=replace(run.model, base_depth=3)).run_id != run.run_id
    assert len({run.run_id for run in study().runs}) == len(study().runs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parametrization": "muP"}, "parametrization='muP': unknown; did you mean 'mup'"),
        ({"parametrization": "mup"}, "base_width=None: parametrization='mup' needs the shape"),
        ({"parametrization": "mup", "base_width": 16}, "base_depth=None: parametrization='mup' needs the shape"),
        ({"base_width": 16}, "base_width=16: expected none with parametrization='standard'"),
        ({"parametrization": "mup", "base_width": 12, "base_depth": 2}, "base_width=12: expected a multiple of head"),
        ({"parametrization": "mup", "base_width": 16, "base_depth": 0}, "base_depth=0: expected 1 or more"),
        (
            {"parametrization": "mup", "base_width": 16, "base_depth": 2, "architecture": "uvit"},
            "parametrization='mup': no rules for architecture='uvit'",
        ),
    ],
)
def test_what_has_no_rules_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(STANDARD, **fields)


def test_muon_is_refused() -> None:
    run = next(run for run in study().runs if run.model.parametrization == "mup")
    with pytest.raises(UserError, match=r"optimizer.name='muon': parametrization='mup' has rules for 'adamw'"):
        replace(run, optimizer=replace(run.optimizer, name="muon"))


def test_what_is_watched_is_what_the_network_computes() -> None:
    """The prediction is the scanned network's, and branches, gated, add up to the streams' change."""
    config = replace(STANDARD, depth=3)
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        init_params(config, jax.random.key(0)),
    )
    probe = probe_of(0)
    inputs = (probe.latents, probe.t, probe.context, probe.pooled)
    seen = jax.jit(lambda params: activations(config, params, *inputs))(params)
    assert set(seen) == set(PLACES)
    np.testing.assert_allclose(seen["prediction"], apply(config, params, *inputs), atol=1e-5)
    assert [len(seen[name]) for name in BRANCHES] == [3, 3, 2, 2]
    text = np.asarray(probe.context @ params["context"]["kernel"] + params["context"]["bias"])
    for i in range(2):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]["context"]["modulation"])
        chunks = np.split(np.asarray(seen["condition"] @ own["kernel"] + own["bias"]), 6, axis=-1)
        text = text + chunks[2][:, None] * seen["text attention"][i] + chunks[5][:, None] * seen["text MLP"][i]
    np.testing.assert_allclose(seen["text stream"], text, atol=1e-4)
    with pytest.raises(UserError, match="architecture='dit': only activations of 'mmdit'"):
        activations(replace(config, architecture="dit"), params, *inputs)


def probe_of(seed: int) -> Probe:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return Probe(draw(4, 16, 16, 3), jnp.linspace(0.1, 0.9, 4), draw(4, 5, 12), draw(4, 4))


# What grows without muP, at a rate and by at least a slope: inside the blocks with the width; with the depth what they
# add up to, at a rate at which they add more than the embeddings move.
GROWING = {
    "width": (2e-3, 0.5, ("condition", "image attention", "image MLP")),
    "depth": (1e-2, 0.3, ("image stream", "text stream")),
}


@pytest.mark.slow
@pytest.mark.parametrize("x", GROWING)
def test_activations_move_as_far_in_any_shape(x: str) -> None:
    """Coordinate check over a factor of 4: what is learned grows with the shape without muP, and hardly with it."""
    rate, growth, growing = GROWING[x]
    run = run_of(replace(OPTIMIZER, learning_rate=rate, weight_decay=0.0, clip_norm=1.0))
    batches = {seed: [batch(10 * seed + i, 16) for i in range(STEPS)] for seed in range(2)}
    rows = []
    for model in (STANDARD, MUP):
        for factor in (1, 4):
            own = {"heads": 2 * factor} if x == "width" else {"depth": 2 * factor}
            rows += list(watched(run, replace(model, **own), batches, probe_of(1)))
    found = {(item.kind, item.place): item.slope for item in slopes(pd.DataFrame(rows), x) if item.quantity == "change"}
    for place in growing:
        assert found["standard", place] > growth, (place, found)
    for place in (*growing, "image stream", "text stream", "prediction"):
        assert abs(found["mup", place]) < 0.25, (place, found)
