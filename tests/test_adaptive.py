"""The density learned from losses by time, against numpy and against a loss whose profile is known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdit_jax.diffusion import LATER, STUDY_61, LossByTime, formulation, learned, learned_name
from mmdit_jax.diffusion.adaptive import BINS, FLOOR, MEMORY, PRIOR

CENTRES = (np.arange(BINS) + 0.5) / BINS
PROFILE = 0.2 + 3 * (CENTRES - 0.4) ** 2  # a loss that varies tenfold over t


def _exact(power: float) -> np.ndarray:
    """The density that the profile asks for, of mean 1."""
    raised = PROFILE**power
    return (1 - FLOOR) * raised / raised.mean() + FLOOR


def _known(number: float = 1e5) -> LossByTime:
    """The profile, seen so often in every bin that the prior weighs nothing."""
    return LossByTime(jnp.asarray(number * PROFILE, jnp.float32), jnp.full(BINS, number, jnp.float32))


def test_add_and_masses_are_what_numpy_says() -> None:
    rng = np.random.default_rng(0)
    total, number, known = np.zeros(BINS), np.zeros(BINS), LossByTime.empty()
    for _ in range(20):
        t = rng.uniform(size=64).astype(np.float32)
        t[:3] = 0.0, 1.0, 0.5  # 1 belongs to the last bin, an edge to the bin on its right
        losses = rng.exponential(size=64).astype(np.float32)
        losses[5:8] = np.nan, np.inf, -np.inf
        known = known.add(jnp.asarray(losses), jnp.asarray(t))
        total, number = total * (1 - 1 / MEMORY), number * (1 - 1 / MEMORY)
        for loss, time in zip(losses, t, strict=True):
            if np.isfinite(loss):
                index = min(int(np.floor(np.float64(time) * BINS)), BINS - 1)
                total[index], number[index] = total[index] + loss, number[index] + 1
    np.testing.assert_allclose(known.total, total, rtol=1e-5)
    np.testing.assert_allclose(known.number, number, rtol=1e-5)
    loss = (total + PRIOR * total.sum() / number.sum()) / (number + PRIOR)
    for power in (-4.0, -1.0, 0.0, 0.5, 1.0, 4.0):
        expected = (1 - FLOOR) * loss**power / np.mean(loss**power) + FLOOR
        np.testing.assert_allclose(known.masses(power), expected, rtol=1e-4)


def test_nothing_known_is_uniform_and_an_unseen_bin_is_an_average_one() -> None:
    for power in (-4.0, -1.0, 1.0, 4.0):
        np.testing.assert_allclose(LossByTime.empty().masses(power), 1, rtol=1e-6)
        only_nan = LossByTime.empty().add(jnp.array([jnp.nan]), jnp.array([0.3]))
        np.testing.assert_allclose(only_nan.masses(power), 1, rtol=1e-6)
    known = _known()
    unseen = LossByTime(known.total.at[7].set(0), known.number.at[7].set(0))
    mean = (PROFILE.sum() - PROFILE[7]) / (BINS - 1)
    above_floor = np.asarray(unseen.masses(1.0)) - FLOOR
    np.testing.assert_allclose(above_floor[7] / above_floor[8], mean / PROFILE[8], rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e12])
@pytest.mark.parametrize("power", [-4.0, -1.0, 1.0, 4.0])
def test_masses_do_not_depend_on_the_unit_of_the_loss(power: float, scale: float) -> None:
    known = LossByTime(_known().total * scale, _known().number)
    np.testing.assert_allclose(known.masses(power), _exact(power), rtol=2e-3)


@pytest.mark.parametrize("power", [-4.0, 4.0])
def test_masses_are_finite_whatever_the_losses(power: float) -> None:
    for total in (jnp.zeros(BINS), jnp.zeros(BINS).at[3].set(1e30), jnp.full(BINS, 1e-30).at[3].set(1.0)):
        masses = np.asarray(LossByTime(total, jnp.full(BINS, 8.0)).masses(power))
        assert np.isfinite(masses).all() and (masses >= FLOOR * 0.999).all()
        assert masses.mean() == pytest.approx(1, rel=1e-3)


@jax.jit
def _train(f, key, profile):
    """400 steps whose loss at t is the profile there, times noise of mean 1; times are drawn as training draws them."""

    def step(known, key):
        key_t, key_noise = jax.random.split(key)
        t = learned(f, known).sample_t(key_t, (512,))
        noise = jax.random.exponential(key_noise, t.shape)
        return known.add(profile[(t * BINS).astype(jnp.int32)] * noise, t), None

    return jax.lax.scan(step, LossByTime.empty(), jax.random.split(key, 400))[0]


@pytest.mark.parametrize("power", [-2.0, -1.0, 0.0, 1.0])
def test_the_learned_density_approaches_the_profiles_power(power: float) -> None:
    f = formulation(f"rf/adaptive({power})")
    known = _train(f, jax.random.key(1), jnp.asarray(PROFILE, jnp.float32))
    # a bin is measured by its draws, thousands: the error of its mean loss is 1/√n, times |p|
    drawn = np.asarray(known.number)
    assert drawn.min() > 300
    error = 5 * max(abs(power), 0.1) / np.sqrt(drawn.min()) + 0.01
    np.testing.assert_allclose(learned(f, known).density(CENTRES), _exact(power), rtol=error)
    assert np.ptp(_exact(power)) > 2 * error or power == 0


def test_every_bin_adds_as_much_to_the_loss_under_the_inverse() -> None:
    """rf/adaptive(−1): share × loss is the same in each bin, up to the floor of uniform times."""
    f = learned(formulation("rf/adaptive(-1)"), _known())
    t = np.asarray(f.sample_t(jax.random.key(2), (200_000,)))
    index = (t * BINS).astype(int)
    added = np.bincount(index, weights=PROFILE[index], minlength=BINS) / t.size
    harmonic = 1 / np.mean(1 / PROFILE)
    np.testing.assert_allclose(added, ((1 - FLOOR) * harmonic + FLOOR * PROFILE) / BINS, rtol=0.1)
    without_floor = added - FLOOR * PROFILE / BINS
    errors = 5 * PROFILE / BINS * np.sqrt(BINS / PROFILE * PROFILE.max() / t.size)
    assert (np.abs(without_floor - without_floor.mean()) < errors).all()
    assert np.ptp(without_floor) < 0.3 * without_floor.mean() < np.ptp(PROFILE) / BINS


def test_what_was_learned_has_a_name_that_can_be_run_again() -> None:
    for name, tail in (("rf/adaptive(-1)", ""), ("rf/adaptive(-1)/minsnr(5)", "/minsnr(5.00)")):
        f = formulation(name)
        fixed = learned_name(f, _known())
        assert fixed.startswith("rf/histogram(") and fixed.removesuffix(tail).endswith(")") and fixed.endswith(tail)
        again = formulation(fixed)
        assert again.name == fixed and int(again.bins) == BINS and again.snr_cap == f.snr_cap
        np.testing.assert_allclose(again.density(CENTRES), learned(f, _known()).density(CENTRES), rtol=2e-3)
    shifted = dataclasses.replace(formulation("rf/adaptive(1)/minsnr(2)"), shift=np.float32(3))
    assert learned_name(shifted, _known()).endswith(")/shift(3.00)/minsnr(2.00)")


def test_other_formulations_stay_as_they_were() -> None:
    apply = jax.jit(learned)
    for name in (*STUDY_61, *LATER, "rf/histogram(1,0,3)"):
        f = formulation(name)
        eager, compiled = learned(f, _known()), apply(f, _known())
        assert eager.name == compiled.name == f.name
        for before, *after in zip(*map(jax.tree.leaves, (f, eager, compiled)), strict=True):
            for value in after:
                assert np.shape(value) == np.shape(before) and value.dtype == before.dtype
                if not bool(f.adaptive):
                    np.testing.assert_array_equal(value, before)
    assert [name for name in (*STUDY_61, *LATER) if bool(formulation(name).adaptive)] == [
        "rf/adaptive(-1.00)",
        "rf/adaptive(1.00)",
    ]


def test_under_jit_and_vmap_it_is_the_same() -> None:
    names = ("rf/adaptive(-1)", "rf/adaptive(1)", "rf/lognorm(0,1)", "rf/histogram(1,2)")
    each = [formulation(name) for name in names]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    t = jnp.linspace(0.01, 0.99, 50)
    density = jax.jit(jax.vmap(lambda f, known: learned(f, known).density(t), in_axes=(0, None)))(stacked, _known())
    for f, row in zip(each, density, strict=True):
        np.testing.assert_allclose(row, learned(f, _known()).density(t), rtol=1e-5)
    np.testing.assert_allclose(density[0], _exact(-1)[(np.asarray(t) * BINS).astype(int)], rtol=1e-3)
    losses, times = jnp.ones((3, 8)), jnp.linspace(0, 1, 24).reshape(3, 8)
    many = jax.vmap(LossByTime.empty().add)(losses, times)
    for i in range(3):
        np.testing.assert_array_equal(many.number[i], LossByTime.empty().add(losses[i], times[i]).number)
