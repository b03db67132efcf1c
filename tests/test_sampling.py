"""Sampling: noise by (seed, index) only, guidance and dropped encoders against a loop written out; grids of images."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageFont

from mmdit_jax.diffusion import SamplerConfig, formulation
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation import sampling
from mmdit_jax.evaluation.grids import CELL, grid_image, grid_png, wrap
from mmdit_jax.evaluation.sampling import initial_noise, sample_images
from mmdit_jax.models import MMDiTConfig, apply, init_params
from mmdit_jax.models.text import assemble
from mmdit_jax.sharding import make_mesh

CONFIG = MMDiTConfig(
    depth=1, head_size=8, heads=2, patch_size=4, in_channels=3, context_dim=12, pooled_dim=5, position_table=4
)
N = 7
RF = formulation("rf")


@pytest.fixture(scope="module")
def params():
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0))))
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [0.25 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(2)
    return {
        "words": (rng.standard_normal((N, 6, 8)).astype(np.float32), np.zeros((N, 0), np.float32)),
        "tower": (rng.standard_normal((N, 6, 4)).astype(np.float32), rng.standard_normal((N, 5)).astype(np.float32)),
    }


def draw(params, text, **changes):
    settings = {"seed": 5, "indices": np.arange(N), "resolution": 8, "chunk": 4, "f": RF}
    sampler = {name: changes.pop(name) for name in list(changes) if name in SamplerConfig.__dataclass_fields__}
    settings |= {"sampler": SamplerConfig(**{"steps": 6, "guidance": 3.0, **sampler}), **changes}
    return sample_images(CONFIG, params, settings.pop("f"), text, settings.pop("sampler"), **settings)[0]


def written_out(params, text, *, steps: int, guidance: float) -> np.ndarray:
    """Euler on z with guidance, one forward pass a side, in numpy."""
    context, pooled = assemble(text)
    network = jax.jit(lambda z, t, context, pooled: apply(CONFIG, params, z, t, context, pooled))
    z = np.asarray(initial_noise(5, np.arange(N), (8, 8, 3)), np.float64)
    for i in range(steps):
        t = np.full(N, min(1 - i / steps, 1 - 1e-5), np.float32)
        conditional = np.asarray(network(z.astype(np.float32), t, context, pooled), np.float64)
        unconditional = np.asarray(network(z.astype(np.float32), t, 0 * context, 0 * pooled), np.float64)
        z = z - (unconditional + guidance * (conditional - unconditional)) / steps
    return np.clip(np.round((z + 1) * 127.5), 0, 255)


def close(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal up to the rounding of float32, which moves a few values by one grey level."""
    difference = np.abs(left.astype(int) - right.astype(int))
    return difference.max() <= 1 and (difference > 0).mean() < 0.01


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_is_euler_with_guidance(params, text, guidance: float) -> None:
    images = draw(params, text, guidance=guidance)
    assert images.shape == (N, 8, 8, 3) and images.dtype == np.uint8
    assert images.std() > 20 and len(np.unique(images)) > 100  # neither flat nor all clipped
    assert close(images, written_out(params, text, steps=6, guidance=guidance))


def test_an_image_depends_on_its_seed_index_and_caption_only(params, text) -> None:
    images = draw(params, text)
    order = np.array([3, 0, 6])
    some = {name: (tokens[order], pooled[order]) for name, (tokens, pooled) in text.items()}
    assert close(draw(params, some, indices=order), images[order])
    assert close(draw(params, text, chunk=7), images)
    assert not close(draw(params, text, seed=6), images)
    np.testing.assert_array_equal(draw(params, text), images)
    assert not close(draw(params, text, indices=np.arange(N) + 1), images)
    noise = np.asarray(initial_noise(5, np.arange(20), (16, 16, 3)))
    assert abs(noise.std() - 1) < 0.02 and abs(noise.mean()) < 0.02


def test_samplers_seeds_and_formulations_share_a_program(params, text) -> None:
    sampling._compiled.cache_clear()
    draw(params, text)
    others = ({"steps": 25}, {"guidance": 5.0}, {"shift": 3.0}, {"method": "heun"}, {"seed": 9}, {"drop": ("tower",)})
    for changes in others:
        assert not close(draw(params, text, **changes), draw(params, text))
    for name in ("rf/lognorm(0.00,1.00)", "rf/cosmap"):
        # the density is a matter of training
        np.testing.assert_array_equal(draw(params, text, f=formulation(name)), draw(params, text))
    assert not close(draw(params, text, f=formulation("v/cos")), draw(params, text))
    assert sampling._compiled.cache_info().currsize == 1
    assert sampling._compiled(CONFIG, (8, 8, 3), True, None, "channels", True)._cache_size() == 1  # type: ignore[attr-defined]


def test_either_encoder_can_be_removed(params, text) -> None:
    zeroed = {**text, "tower": tuple(np.zeros_like(array) for array in text["tower"])}
    without = draw(params, text, drop=("tower",))
    np.testing.assert_array_equal(without, draw(params, zeroed))
    assert not close(without, draw(params, text))
    # with both gone, conditional is unconditional, and guidance has nothing to push
    assert close(draw(params, text, drop=("tower", "words")), draw(params, text, drop=("tower", "words"), guidance=1.0))


def test_a_mesh_changes_nothing(params, text) -> None:
    mesh = make_mesh(devices=jax.devices()[:1])
    assert close(draw(params, text, mesh=mesh), draw(params, text))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, r"^steps=0: expected a whole number, 1 or more"),
        ({"chunk": 0}, r"^chunk=0: expected 1 or more"),
        ({"guidance": float("inf")}, r"^guidance=inf: expected a finite number"),
        ({"drop": ("towr",)}, r"^drop='towr': unknown; did you mean 'tower'"),
        ({"indices": np.arange(3)}, r"^text\['words'\]=7 examples: expected 3"),
    ],
)
def test_bad_input_is_told_in_one_line(params, text, changes, says: str) -> None:
    with pytest.raises(UserError, match=says):
        draw(params, text, **changes)


def test_grid_shows_every_pixel_and_label(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
    columns = ["a red circle", "a photo of two green squares left of a yellow star on black", "x"]
    grid_png(images, ["d1 rf", "d3 rf/lognorm(0.00,1.00)"], columns, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as opened:
        grid = np.asarray(opened.convert("RGB"))
    factor = -(-CELL // 32)
    for image in images.reshape(-1, 32, 32, 3):
        large = np.kron(image, np.ones((factor, factor, 1), np.uint8))
        first_row = np.lib.stride_tricks.sliding_window_view(grid, (1, 32 * factor, 3))[:, :, 0, 0]
        tops = np.argwhere((first_row == large[0]).all(axis=(-1, -2)))
        assert any((grid[y : y + 32 * factor, x : x + 32 * factor] == large).all() for y, x in tops)
    assert (np.asarray(grid_image(images, ["", ""], columns)) < 128).sum() < (grid < 128).sum()  # labels leave ink


def test_captions_wrap_within_their_column() -> None:
    font = ImageFont.load_default(13)
    lines = wrap("a photo of two green squares and an extraordinarilylongwordthatdoesnotfit", font, 100)
    assert all(font.getlength(line) <= 100 for line in lines) and len(lines) > 2
    assert "".join(lines).replace(" ", "") == "aphotooftwogreensquaresandanextraordinarilylongwordthatdoesnotfit"


def test_grid_refuses_labels_that_do_not_fit() -> None:
    images = np.zeros((2, 3, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match=r"^row_labels=1 labels: expected 2"):
        grid_image(images, ["a"], ["x", "y", "z"])
    with pytest.raises(UserError, match=r"^images=float32"):
        grid_image(images.astype(np.float32), ["a", "b"], ["x", "y", "z"])
