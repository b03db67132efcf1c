"""Training on encoded sets: one compilation a bucket, samples of the posterior, validation over buckets, refusals."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import on_fake_devices
from tiny_encoded import SCALE, SHIFT, SIZES, TEXT, example, write_set

from mmdit_jax.config import DataConfig, EvaluationConfig, OptimizerConfig, Run, text_widths
from mmdit_jax.data.schedule import bucket_at, spread
from mmdit_jax.diffusion import formulation, training_loss
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, apply, init_params
from mmdit_jax.models.positions import sincos_positions
from mmdit_jax.models.text import assemble
from mmdit_jax.sharding import make_mesh
from mmdit_jax.training import validation
from mmdit_jax.training.data import LatentData, flops_beside_square, global_batches, training_data
from mmdit_jax.training.program import Solo
from mmdit_jax.training.replicas import Replicas
from mmdit_jax.training.state import init_state
from mmdit_jax.training.step import keep_masks
from mmdit_jax.training.validation import posterior_noise, validation_loss, validation_noise

SHAPES = tuple((name, *shape) for name, shape in TEXT.items())
CONTEXT, POOLED = text_widths(tuple(TEXT), "sd3", SHAPES)
DATA = DataConfig(
    name="set",
    resolution=4,
    validation_examples=100,
    text_encoders=tuple(TEXT),
    text_layout="sd3",
    text_shapes=SHAPES,
)
MODEL = MMDiTConfig.from_depth(
    1, head_size=8, heads=2, patch_size=2, in_channels=4, context_dim=CONTEXT, pooled_dim=POOLED, position_table=5
)
RUN = Run(
    name="latents",
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=3, ema_decay=0.5),
    batch=8,
    steps=12,
    validate_every=6,
    evaluation=EvaluationConfig(prompts_per_task=1),
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("data")
    write_set(folder / "set")
    return folder


def latent_data(data_dir: Path, run: Run = RUN) -> LatentData:
    found = training_data(run, data_dir)
    assert isinstance(found, LatentData)
    return found


def given(split: str, bucket: int, row: int) -> Any:
    h, w = sorted(SIZES[split])[bucket]
    return example(f"{split}/{h}x{w}/{row}", (h, w))


def bf16(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_a_step_by_hand_and_one_compilation_a_bucket(data_dir: Path) -> None:
    data, mesh = latent_data(data_dir), make_mesh()
    solo = Solo(replace(RUN, seed=7), mesh)
    state = init_state(MODEL, RUN.optimizer, RUN.steps, 7, mesh)
    before = solo._step._cache_size()  # type: ignore[attr-defined]
    stream = solo.batches(data, 0)

    @jax.jit
    def by_hand(params: Any, x0: Any, context: Any, pooled: Any, key: Any) -> Any:
        network = functools.partial(apply, MODEL, params)
        return training_loss(formulation("rf"), lambda z, t: network(z, t, context, pooled), x0, key)[0].mean()

    for step in range(RUN.steps):
        batch, params = next(stream), jax.tree.map(jnp.copy, state.params)
        state, metrics = solo.step(state, batch)
        if step > 3:
            continue
        bucket, _ = bucket_at(data.train.sizes, step)
        assert batch["latents"]["mean"].shape == (8, *data.train.buckets[bucket], 4)
        key = jax.random.fold_in(jax.random.key(7), step)
        drop_key, loss_key, posterior_key = jax.random.split(key, 3)
        noise = np.asarray(jax.random.normal(posterior_key, batch["latents"]["mean"].shape))
        mean, logvar = (np.asarray(batch["latents"][name], np.float32) for name in ("mean", "logvar"))
        x0 = ((mean + np.exp(logvar / 2) * noise) - SHIFT) * SCALE
        keep = keep_masks(drop_key, ["clip_l", "t5"], 8, DATA.text_drop)
        context, pooled = assemble(batch["text"], keep, layout="sd3")
        assert context.shape == (8, 8, 8)
        expected = by_hand(params, x0, context, pooled, loss_key)
        assert float(metrics["loss"]) == pytest.approx(float(expected), rel=2e-5)
    assert solo._step._cache_size() - before == 3  # type: ignore[attr-defined]


def test_samples_of_a_latent_differ_from_step_to_step_and_not_from_attempt_to_attempt(data_dir: Path) -> None:
    """The loss at the same weights and batch depends on the step and the seed alone."""
    data, mesh = latent_data(data_dir), make_mesh()
    batch = next(global_batches(RUN, data, 0, mesh))
    certain = {**batch, "latents": {**batch["latents"], "logvar": np.full_like(batch["latents"]["logvar"], -1000)}}
    losses = {}
    for seed in (0, 1):
        for kind, given_batch in (("drawn", batch), ("again", batch), ("certain", certain)):
            state = init_state(MODEL, RUN.optimizer, RUN.steps, 0, mesh)
            losses[seed, kind] = float(Solo(replace(RUN, seed=seed), mesh).step(state, given_batch)[1]["loss"])
    assert losses[0, "drawn"] == losses[0, "again"] != losses[0, "certain"]
    assert losses[0, "drawn"] != losses[1, "drawn"]


def test_validation_is_the_mean_over_all_examples(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = latent_data(data_dir)
    shapes, tree = jax.tree.flatten(jax.eval_shape(lambda: init_params(MODEL, jax.random.key(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [0.2 * rng.standard_normal(leaf.shape, np.float32) for leaf in shapes])
    network = jax.jit(lambda *arguments: apply(MODEL, params, *arguments))
    places = spread(data.validation.sizes, 100)
    assert len(places) == 10 and sum(len(part.index) for part in data.held_out) == 10
    expected = np.zeros((10, 8))
    for index, (bucket, row) in enumerate(places):
        item = given("validation", bucket, row)
        shape = item.mean.shape
        noise = np.asarray(posterior_noise(np.array([index]), shape))[0]
        x0 = (bf16(item.mean) + np.exp(bf16(item.logvar) / 2) * noise - SHIFT) * SCALE
        text = {name: (bf16(states.tokens)[None], bf16(states.pooled)[None]) for name, states in item.text.items()}
        context, pooled = assemble(text, layout="sd3")
        eps = np.asarray(validation_noise(np.array([index]), 8, shape))[0]
        t = ((np.arange(8) + 0.5) / 8).astype(np.float32)
        at = t[:, None, None, None]
        z = ((1 - at) * x0 + at * eps).astype(np.float32)
        velocity = np.asarray(network(z, t, np.repeat(context, 8, axis=0), np.repeat(pooled, 8, axis=0)))
        expected[index] = np.mean((velocity - (eps - x0)) ** 2, axis=(1, 2, 3))
    found = validation_loss(MODEL, params, formulation("rf"), data.held_out, layout="sd3")
    np.testing.assert_allclose(found, expected.mean(axis=0), rtol=1e-5)
    by_bucket = [expected[[b == bucket for b, _ in places]].mean(axis=0) for bucket in range(3)]
    assert np.abs(found - np.mean(by_bucket, axis=0)).max() > 1e-3 * found.max()  # buckets have 2, 5 and 3 examples
    monkeypatch.setattr(validation, "CHUNK", 2)
    again = validation_loss(MODEL, params, formulation("rf"), data.held_out, layout="sd3")
    np.testing.assert_allclose(again, found, rtol=1e-6)


def test_fewer_held_out_examples_are_of_several_buckets(data_dir: Path) -> None:
    run = replace(RUN, data=replace(DATA, validation_examples=4))
    parts = latent_data(data_dir, run).held_out
    assert sorted(np.concatenate([part.index for part in parts]).tolist()) == [0, 1, 2, 3]
    assert len(parts) == 3
    captions, states = latent_data(data_dir).prompts(4)
    expected = [given("validation", bucket, row) for bucket, row in spread((2, 5, 3), 4)]
    assert captions == [item.caption for item in expected]
    for name in TEXT:
        np.testing.assert_array_equal(
            np.asarray(states[name].tokens, np.float32), np.stack([bf16(item.text[name].tokens) for item in expected])
        )


def test_replicas_of_other_seeds_have_equal_shapes(data_dir: Path) -> None:
    data = latent_data(data_dir)
    runs = [replace(RUN, name=str(seed), seed=seed) for seed in (0, 5)]
    replicas, alone = Replicas(runs), [Solo(run, make_mesh()) for run in runs]
    streams = [solo.batches(data, 3) for solo in alone]
    state = replicas.join(
        [
            init_state(MODEL, RUN.optimizer, RUN.steps, run.seed, home)
            for run, home in zip(runs, replicas.homes, strict=True)
        ]
    )
    states = [init_state(MODEL, RUN.optimizer, RUN.steps, run.seed, make_mesh()) for run in runs]
    for _, together in zip(range(4), replicas.batches(data, 3), strict=False):
        state, metrics = replicas.step(state, together)
        for i, (solo, stream) in enumerate(zip(alone, streams, strict=True)):
            states[i], mine = solo.step(states[i], next(stream))
            assert float(metrics["loss"][i]) == pytest.approx(float(mine["loss"]), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"resolution": 32}}, r"^data\.resolution=32: set has latents of 4 \(32 px.*set data\.resolution=4$"),
        ({"model": {"in_channels": 16}}, r"^model\.in_channels=16: expected 4, as latents of set"),
        ({"model": {"patch_size": 4}}, r"^data\.name='set': bucket 2x8 does not suit the model: .*2"),
        ({"model": {"position_table": 3}}, r"^data\.name='set': bucket 2x8 does not suit.*position_table=3"),
        (
            {"data": {"text_shapes": (("clip_l", 5, 6, 4), ("t5", 9, 8, 0))}},
            r"^text_encoders='t5': set has .* \(3, 8, 0\), .* expects \(9, 8, 0\); "
            r"set data\.text_shapes=\(\('clip_l', 5, 6, 4\), \('t5', 3, 8, 0\)\)$",
        ),
        (
            {"data": {"text_encoders": ("clip_l", "clip_g"), "text_shapes": (*SHAPES[:1], ("clip_g", 5, 8, 0))}},
            r"^text_encoders='clip_g': set has the states of clip_l, t5$",
        ),
        ({"data": {"name": "cc12m-latents"}}, r"mmdit data encode … --name cc12m-latents"),
    ],
)
def test_a_set_that_does_not_suit_is_refused_in_one_line(data_dir: Path, changes: Any, told: str) -> None:
    run = replace(RUN, data=replace(DATA, **changes.get("data", {})), model=replace(MODEL, **changes.get("model", {})))
    with pytest.raises(UserError, match=told) as error:
        training_data(run, data_dir)
    assert "\n" not in str(error.value)


def test_shapes_of_text_are_told_to_the_run_and_old_ids_stay() -> None:
    with pytest.raises(UserError, match=r"^model\.context_dim=8: expected 768"):
        replace(RUN, data=replace(DATA, text_encoders=("clip_l",), text_shapes=()))
    with pytest.raises(UserError, match=r"^text_shapes=\('t6', 1, 2, 3\): expected one of"):
        replace(DATA, text_shapes=(("t6", 1, 2, 3),))
    with pytest.raises(UserError, match=r"^text_shapes=\('t5', 1, 2\): expected \(name, length, width, pooled width\)"):
        replace(DATA, text_shapes=(("t5", 1, 2),))  # type: ignore[arg-type]
    other = replace(DATA, text_shapes=(SHAPES[0], ("t5", 9, 8, 0)))
    assert replace(RUN, data=other).run_id != RUN.run_id
    assert text_widths(("clip_l", "clip_g")) == (2048, 2048)


def test_flops_beside_those_of_squares(data_dir: Path) -> None:
    data = latent_data(data_dir)
    length = sum(shape.length for shape in TEXT.values())
    total = 9 * MODEL.flops_per_image(2, 8, length) + 20 * MODEL.flops_per_image(4, 4, length)
    total += 12 * MODEL.flops_per_image(6, 4, length)
    assert flops_beside_square(RUN, data) == pytest.approx(total / (41 * MODEL.flops_per_image(4, 4, length)))
    assert flops_beside_square(RUN, data) > 1.05  # a bucket here is half as large again, unlike real ones


def test_real_buckets_cost_what_squares_do() -> None:
    """Those of 256 px with sides in multiples of 16 up to 1.75:1, at SD3's size and number of text tokens."""
    model = MMDiTConfig.from_depth(24)
    for height, width in ((30, 34), (28, 36), (26, 40), (24, 42)):
        ratio = model.flops_per_image(height, width, 154) / model.flops_per_image(32, 32, 154)
        assert ratio == pytest.approx(1, abs=0.013)


@pytest.mark.parametrize(("rows", "columns"), [(3, 8), (8, 3), (12, 1), (7, 12)])
def test_positions_of_any_bucket_are_the_centre_of_one_table(rows: int, columns: int) -> None:
    """Brute force: the whole table of 12 x 12 written out, then cut."""
    channels, table = 16, 12
    whole = np.zeros((table, table, channels))
    for y in range(table):
        for x in range(table):
            for i in range(channels // 4):
                frequency = 10_000 ** (-i / (channels // 4))
                whole[y, x, [i, i + 4]] = np.sin(x * frequency), np.cos(x * frequency)
                whole[y, x, [i + 8, i + 12]] = np.sin(y * frequency), np.cos(y * frequency)
    top, left = (table - rows) // 2, (table - columns) // 2
    expected = whole[top : top + rows, left : left + columns].reshape(rows * columns, channels)
    np.testing.assert_allclose(sincos_positions(rows, columns, channels, table), expected, atol=1e-6)


def run_some(fsdp: int, folder: str) -> list[float]:
    """Losses of six steps over buckets, and of a validation."""
    mesh = make_mesh(fsdp=fsdp)
    data = latent_data(Path(folder))
    solo = Solo(RUN, mesh)
    state = init_state(MODEL, RUN.optimizer, RUN.steps, 0, mesh)
    losses = []
    for _, batch in zip(range(6), solo.batches(data, 0), strict=False):
        state, metrics = solo.step(state, batch)
        losses.append(float(metrics["loss"]))
    levels = validation_loss(MODEL, state.ema, formulation("rf"), data.held_out, mesh=mesh, layout="sd3")
    return [*losses, *levels.tolist()]


@pytest.mark.slow
def test_any_mesh_gives_the_same_losses(data_dir: Path) -> None:
    """4 fake devices as 2 x 2 (data x fsdp), in a process of their own, against one here."""
    sharded = on_fake_devices(4, "test_latents", f"t.run_some(2, {str(data_dir)!r})")
    assert sharded == pytest.approx(run_some(1, str(data_dir)), rel=1e-5)
