"""The training step: one compilation for many formulations, the same numbers on any mesh, its pieces by hand."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.studies import load_study
from mmdit_jax.config import OptimizerConfig
from mmdit_jax.diffusion import formulation, training_loss
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, apply
from mmdit_jax.models.text import assemble
from mmdit_jax.sharding import make_mesh
from mmdit_jax.training.optimizer import ema_decay, learning_rate, make_optimizer, muon_dimensions
from mmdit_jax.training.program import Solo
from mmdit_jax.training.state import init_state
from mmdit_jax.training.step import keep_masks, loss_by_bin, make_train_step

MODEL = MMDiTConfig.from_depth(
    2, head_size=16, patch_size=4, in_channels=3, context_dim=12, pooled_dim=4, position_table=8
)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=3, ema_decay=0.5, weight_decay=0.1, clip_norm=0.5)
STEPS = 6


def batch(size: int = 8) -> dict:
    rng = np.random.default_rng(0)
    text = {
        "tower": (rng.normal(size=(size, 5, 8)).astype(np.float16), rng.normal(size=(size, 4)).astype(np.float16)),
        "words": (rng.normal(size=(size, 5, 4)).astype(np.float16), np.zeros((size, 0), np.float16)),
    }
    return {"image": rng.integers(0, 256, (size, 16, 16, 3), np.uint8), "text": text}


def test_one_compilation_serves_formulations_and_seeds() -> None:
    mesh = make_mesh()
    step = make_train_step(MODEL, OPTIMIZER, STEPS, 0.464, mesh)
    assert make_train_step(MODEL, OPTIMIZER, STEPS, 0.464, mesh) is step
    state = init_state(MODEL, OPTIMIZER, STEPS, 0, mesh)
    before = step._cache_size()
    for number, name in enumerate(("rf", "rf/lognorm(0.00,1.00)", "rf/mode(1.29)", "rf/cosmap")):
        state, _ = step(state, batch(), formulation(name), number)
    assert step._cache_size() - before <= 1


def test_a_run_takes_any_seed_of_32_bits(tiny_study) -> None:
    """Below 2³¹ with the bits of a plain int."""
    first = load_study(str(tiny_study)).runs[0]
    for seed in (0, 1, 2**31 - 1):
        keys = [jax.random.key_data(jax.jit(jax.random.key)(value)) for value in (seed, np.uint32(seed))]
        np.testing.assert_array_equal(*keys)
    mesh, losses = make_mesh(), {}
    compiled = make_train_step(MODEL, OPTIMIZER, STEPS, 0.464, mesh)
    for seed in (5, 3_000_000_000, 2**32 - 1):
        solo = Solo(replace(first, seed=seed), mesh)
        solo._step = compiled
        states = [init_state(MODEL, OPTIMIZER, STEPS, seed, mesh) for _ in range(2)]
        after, metrics = solo.step(states[0], batch())
        losses[seed] = float(metrics["loss"])
        if seed == 5:
            expected, _ = compiled(states[1], batch(), formulation("rf"), seed)
            for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert np.isfinite(list(losses.values())).all() and len(set(losses.values())) == 3


def test_a_step_by_hand() -> None:
    """Loss, AdamW with clipping and decay, and EMA, written out once more from the parts' definitions."""
    mesh = make_mesh()
    f = formulation("rf/lognorm(0.00,1.00)")
    state = init_state(MODEL, OPTIMIZER, STEPS, 7, mesh)
    params = jax.tree.map(jnp.copy, state.params)
    data = batch()

    drop_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.key(7), 0))
    keep = keep_masks(drop_key, ["tower", "words"], 8, 0.464)
    context, pooled = assemble(data["text"], keep)
    x0 = data["image"] / np.float32(127.5) - 1

    def loss(p: dict) -> jax.Array:
        return training_loss(f, lambda z, t: apply(MODEL, p, z, t, context, pooled), x0, loss_key)[0].mean()

    value, grads = jax.value_and_grad(loss)(params)
    norm = float(np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads))))
    rate = 3e-3 / 4  # the first of three warm-up steps
    scale = min(1.0, 0.5 / norm)

    def updated(path: tuple, p: jax.Array, g: jax.Array) -> np.ndarray:
        decay = 0.1 if path[-1].key == "kernel" else 0.0
        g = np.asarray(g) * scale
        # Adam's first step: both moments are bias-corrected to g and g².
        return np.asarray(p) - rate * (g / (np.abs(g) + 1e-8) + decay * np.asarray(p))

    expected = jax.tree_util.tree_map_with_path(updated, params, grads)
    after, metrics = make_train_step(MODEL, OPTIMIZER, STEPS, 0.464, mesh)(state, data, f, 7)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    for ours, theirs, g in zip(*(jax.tree.leaves(x) for x in (after.params, expected, grads)), strict=True):
        settled = np.abs(np.asarray(g)) * scale > 1e-6  # where Adam's sign does not hang on rounding
        np.testing.assert_allclose(np.asarray(ours)[settled], theirs[settled], atol=2e-6)
    share = 1 / 10  # min(0.5, (1 + 0) / (10 + 0))
    for average, new, old in zip(*(jax.tree.leaves(x) for x in (after.ema, after.params, params)), strict=True):
        np.testing.assert_allclose(average, share * old + (1 - share) * new, atol=1e-6)
    assert int(after.step) == 1


def test_each_encoder_is_dropped_on_its_own() -> None:
    masks = keep_masks(jax.random.key(0), ["a", "b"], 40_000, 0.464)
    a, b = (~np.asarray(masks[name]) for name in ("a", "b"))
    assert a.mean() == pytest.approx(0.464, abs=0.01) and b.mean() == pytest.approx(0.464, abs=0.01)
    assert (a & b).mean() == pytest.approx(0.464**2, abs=0.01)


def test_schedules() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, schedule="linear")
    rate = learning_rate(config, 14)
    assert [float(rate(n)) for n in (0, 3, 4, 9, 14)] == pytest.approx([0.2, 0.8, 1.0, 0.5, 0.0])
    cosine = learning_rate(replace(config, schedule="cosine"), 14)
    assert float(cosine(9)) == pytest.approx(0.5)
    assert float(learning_rate(replace(config, schedule="constant"), 14)(13)) == 1.0
    assert float(ema_decay(config, jnp.int32(0))) == pytest.approx(0.1)
    assert float(ema_decay(config, jnp.int32(10**6))) == pytest.approx(0.9999)
    seldom = OptimizerConfig(ema_decay=0.99, ema_every=100)  # the SD3 study's: at steps 100, 200, … only
    found = [float(ema_decay(seldom, jnp.int32(n))) for n in (0, 98, 99, 100, 199, 10**6 - 1)]
    assert found == pytest.approx([1, 1, 1 / 10, 1, 2 / 11, 0.99])
    with pytest.raises(UserError, match=r"^ema_every=0: expected a whole number, 1 or more"):
        OptimizerConfig(ema_every=0)


def test_muon_orthogonalises_each_block_matrix_of_the_stack() -> None:
    """Newton–Schulz brings every singular value of a block's update near one, layer by layer."""
    config = OptimizerConfig(name="muon", learning_rate=1.0, warmup_steps=0, clip_norm=1e9)
    model = replace(MODEL, depth=3)
    params = init_state(model, config, STEPS, 0, make_mesh()).params
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    optimizer = make_optimizer(config, STEPS, MODEL)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    stack = np.asarray(updates["blocks"]["latent"]["up"]["kernel"])
    assert stack.ndim == 3
    for matrix in stack:
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert singular.min() / singular.max() > 0.5
    raw = np.linalg.svd(np.asarray(grads["blocks"]["latent"]["up"]["kernel"][0]), compute_uv=False)
    assert raw.min() / raw.max() < 0.5
    dimensions = muon_dimensions(params)
    assert dimensions["final"]["kernel"] is None and dimensions["patch"]["kernel"] is None


def test_bins_hold_a_divergence_where_it_began() -> None:
    losses, t = jnp.array([1.0, 3.0, jnp.nan, 5.0]), jnp.array([0.01, 0.1, 0.5, 0.999])
    mean, count = loss_by_bin(losses, t)
    assert list(np.asarray(count)) == [2, 0, 0, 0, 1, 0, 0, 1]
    assert float(mean[0]) == 2.0 and np.isnan(mean[4]) and float(mean[7]) == 5.0
