"""The MMDiT against its closed forms, XLA's own count, and itself written another way."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiT, MMDiTConfig, apply, init_params
from mmdit_jax.models.frame import unrolls
from mmdit_jax.models.mmdit import JointBlock
from mmdit_jax.models.positions import sincos_positions, timestep_features

TINY = MMDiTConfig.from_depth(
    3, head_size=8, patch_size=2, in_channels=3, context_dim=10, pooled_dim=6, position_table=8, qk_norm=True
)


def inputs(config: MMDiTConfig, batch: int = 2, size: int = 8, text: int = 5) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(1), 4)
    return (
        jax.random.normal(keys[0], (batch, size, size, config.in_channels)),
        jax.random.uniform(keys[1], (batch,), minval=0.01, maxval=0.99),
        jax.random.normal(keys[2], (batch, text, config.context_dim)),
        jax.random.normal(keys[3], (batch, config.pooled_dim)),
    )


def noisy_params(config: MMDiTConfig, seed: int = 0) -> dict:
    """Parameters none of which are zero, so that every path through the network carries signal."""
    leaves, tree = jax.tree.flatten(init_params(config, jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


PUBLISHED = {
    15: 496_066_624,
    18: 856_159_552,
    21: 1_358_950_720,
    24: 2_028_328_000,
    30: 3_962_392_384,
    38: 8_056_617_792,
}


@pytest.mark.parametrize(("depth", "expected"), PUBLISHED.items())
def test_published_parameter_counts_without_allocating(depth, expected) -> None:
    config = MMDiTConfig.from_depth(depth)
    assert config.num_params() == expected
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_sd35_large_count() -> None:
    assert MMDiTConfig.from_depth(38, qk_norm=True).num_params() == 8_056_627_520


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, depth=1),
        replace(TINY, heads=5, mlp_ratio=3),
        replace(TINY, qk_norm=False),
        replace(TINY, dual_attention=1),
        replace(TINY, dual_attention=2, qk_norm=False),
        replace(TINY, dual_attention=3),
        replace(TINY, depth=1, dual_attention=1),
    ],
)
def test_count_is_the_real_models(config) -> None:
    real = sum(leaf.size for leaf in jax.tree.leaves(init_params(config, jax.random.key(0))))
    assert config.num_params() == real


def test_sd35_medium_count() -> None:
    config = MMDiTConfig.from_depth(24, qk_norm=True, dual_attention=13, position_table=384)
    assert config.num_params() == 2_243_171_520


def test_flops_of_a_block_are_xlas() -> None:
    """XLA counts elementwise work too, which is small beside the matrix products at this width."""
    config = MMDiTConfig.from_depth(4, head_size=64, patch_size=2, in_channels=16, context_dim=64, pooled_dim=64)
    image, text, batch = 64, 16, 2
    block = nnx.eval_shape(lambda: JointBlock(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(block)
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)  # noqa: E731
    lowered = jax.jit(lambda s, x, c, y: nnx.merge(graph, s)(x, c, y)).lower(
        state, shape(batch, image, config.width), shape(batch, text, config.width), shape(batch, config.width)
    )
    counted = lowered.compile().cost_analysis()["flops"] / batch
    deeper = replace(config, depth=5, heads=config.num_heads)
    ours = deeper.flops_per_image(16, 16, text) - replace(config, heads=config.num_heads).flops_per_image(16, 16, text)
    assert ours <= counted <= 1.03 * ours


@pytest.mark.parametrize("dual", [0, 2])
def test_flops_of_the_whole_model_are_xlas(dual) -> None:
    config = replace(MMDiTConfig.from_depth(3, head_size=64), in_channels=4, context_dim=96, pooled_dim=32, scan=False)
    config = replace(config, dual_attention=dual)
    size, text = 16, 12
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, size, size, 4), (1,), (1, text, 96), (1, 32))]
    run = jax.jit(lambda p, *a: apply(config, p, *a))
    counted = run.lower(shapes, *arguments).compile().cost_analysis()["flops"]
    ours = config.flops_per_image(size, size, text)
    assert ours <= counted <= 1.04 * ours
    assert config.flops_6nd(size, size, text) == 6 * config.num_params() * (64 + 12)


@pytest.mark.parametrize(("platform", "scanned"), [("cpu", True), ("tpu", True), ("gpu", False)])
def test_blocks_are_unrolled_where_it_pays_unless_told(platform, scanned, monkeypatch) -> None:
    monkeypatch.setattr("mmdit_jax.models.frame.platform", lambda: platform)
    assert unrolls(TINY) is not scanned
    assert unrolls(replace(TINY, scan=False)) and not unrolls(replace(TINY, scan=True))
    assert unrolls(replace(TINY, remat="dots")) is not scanned
    assert not any(unrolls(replace(TINY, remat=remat)) for remat in ("attention", "full"))


@pytest.mark.parametrize("dual", [0, 1])
def test_scan_remat_and_unrolled_agree(dual) -> None:
    tiny = replace(TINY, dual_attention=dual)
    params, arguments = noisy_params(tiny), inputs(tiny)

    def loss(config: MMDiTConfig, p: dict) -> jax.Array:
        return jnp.mean(apply(config, p, *arguments) ** 2)

    variants = [tiny, replace(tiny, scan=False), replace(tiny, remat="dots"), replace(tiny, remat="full")]
    values = [jax.jit(jax.value_and_grad(lambda p, c=config: loss(c, p)))(params) for config in variants]
    for value, gradient in values[1:]:
        assert float(value) == pytest.approx(float(values[0][0]), rel=1e-5)
        for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(values[0][1]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-5)


def test_every_input_matters_and_new_models_predict_zero() -> None:
    arguments = inputs(TINY)
    fresh = apply(TINY, init_params(TINY, jax.random.key(0)), *arguments)
    assert fresh.shape == arguments[0].shape and fresh.dtype == jnp.float32
    assert not np.any(fresh)  # zero-initialised output layer, as DiT
    params = noisy_params(TINY)
    out = apply(TINY, params, *arguments)
    for position in range(4):
        moved = [x + 0.1 if i == position else x for i, x in enumerate(arguments)]
        assert np.abs(apply(TINY, params, *moved) - out).max() > 1e-3
    # Without positions, text tokens are a set: their order does not matter, that of patches does.
    latents, t, context, pooled = arguments
    np.testing.assert_allclose(apply(TINY, params, latents, t, context[:, ::-1], pooled), out, atol=2e-5)
    assert np.abs(apply(TINY, params, latents[:, ::-1], t, context, pooled)[:, ::-1] - out).max() > 1e-3


def test_second_attention_is_among_image_tokens_and_gated() -> None:
    """With the gates of the second attention at zero it is absent; else it moves the prediction."""
    config = replace(TINY, dual_attention=1)
    params, arguments = noisy_params(config), inputs(config)
    latent = params["dual"]["latent"]
    plain = jax.tree.map(lambda x: x, params)
    stream = {name: leaf for name, leaf in latent.items() if name != "second"}
    stream["modulation"] = jax.tree.map(lambda x: x[..., : 6 * config.width], latent["modulation"])
    dual = {**params["dual"], "latent": stream}
    plain["blocks"] = jax.tree.map(lambda *x: jnp.concatenate(x), dual, params["blocks"])
    del plain["dual"]
    without = apply(TINY, plain, *arguments)
    assert np.abs(apply(config, params, *arguments) - without).max() > 1e-2
    latent["modulation"] = jax.tree.map(lambda x: x.at[..., 8 * config.width :].set(0), latent["modulation"])
    np.testing.assert_allclose(apply(config, params, *arguments), without, atol=1e-5)


def test_module_and_function_are_one_model() -> None:
    model = MMDiT(TINY, rngs=nnx.Rngs(params=jax.random.key(3)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    nonzero = jax.tree.map(lambda x: x + 0.05, params)
    state = nnx.state(model)
    nnx.replace_by_pure_dict(state, nonzero)
    nnx.update(model, state)
    np.testing.assert_allclose(model(*inputs(TINY)), apply(TINY, nonzero, *inputs(TINY)), atol=1e-6)


def test_bfloat16_compute_keeps_float32_time_and_output() -> None:
    low = replace(TINY, dtype="bfloat16")
    params, arguments = noisy_params(TINY), inputs(TINY)
    exact, rough = apply(TINY, params, *arguments), apply(low, params, *arguments)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.15 * np.abs(exact).max()
    # In bfloat16, 0.7500 and 0.7505 would be one timestep.
    features = timestep_features(jnp.array([0.75, 0.7505]))
    assert features.dtype == jnp.float32
    assert np.abs(features[0] - features[1]).max() > 0.3


def test_timestep_features_closed_form() -> None:
    t = 0.3
    frequencies = np.exp(-np.log(10_000) * np.arange(128) / 128)
    expected = np.concatenate([np.cos(1000 * t * frequencies), np.sin(1000 * t * frequencies)])
    np.testing.assert_allclose(timestep_features(jnp.array([t]))[0], expected, atol=1e-4)


def test_positions_are_a_centre_crop() -> None:
    whole = np.asarray(sincos_positions(16, 16, 32, 16)).reshape(16, 16, 32)
    part = np.asarray(sincos_positions(6, 4, 32, 16)).reshape(6, 4, 32)
    np.testing.assert_allclose(part, whole[5:11, 6:10], atol=1e-6)
    flat = whole.reshape(-1, 32)
    assert len(np.unique(flat.round(4), axis=0)) == 256


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"depth": 0}, "depth=0: expected 1 or more"),
        ({"depth": 4, "heads": 3, "width": 256}, "width=256: expected heads x head_size = 3 x 64"),
        ({"depth": 4, "width": 100}, "width=100: expected a multiple of head_size=64"),
        ({"depth": 4, "remat": "som"}, "remat"),
        ({"depth": 4, "scan": "yes"}, "scan"),
        ({"depth": 4, "dtype": "float16"}, "bfloat16"),
        ({"depth": 4, "dpth": 2}, "depth"),
        ({"depth": 4, "dual_attention": 5}, "dual_attention=5: expected at most depth=4"),
        ({"depth": 4, "position_base": 0}, "position_base=0: expected 1 or more"),
    ],
)
def test_bad_configs_are_named(fields, expected) -> None:
    with pytest.raises(UserError) as caught:
        MMDiTConfig.from_depth(**fields)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 7, 8, 3), "height=7"), ((1, 8, 32, 3), "width=32"), ((1, 8, 8, 4), "latents=")]
)
def test_bad_latents_are_named(shape, expected) -> None:
    _, t, context, pooled = inputs(TINY, batch=1)
    with pytest.raises(UserError, match=expected):
        apply(TINY, init_params(TINY, jax.random.key(0)), jnp.zeros(shape), t, context, pooled)
