"""All 61 formulations of the study, each against the paper's formulas in float64, and float32's worth near the ends."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from formulation_oracle import Oracle

from mmdit_jax.diffusion import LATER, QUANTITIES, STUDY_61, formulation
from mmdit_jax.errors import UserError

ONE_OF_EACH_FAMILY = ("rf", "edm(-0.60,1.20)", "edm/rf", "edm/cos", "eps/linear", "v/linear", "eps/cos", "v/cos")
# off the knots of the linear schedule; what float32 makes of it is what both sides see
T = (np.linspace(0.02, 0.98, 97) + 3e-4).astype(np.float32)
ENDS = np.resize(np.array([1e-5, 1e-4, 1e-3, 1 - 1e-3, 1 - 1e-4, 1 - 1e-5], np.float32), T.shape)  # compiled once


@jax.jit
def _scalars(f, t):
    each = lambda function: jax.vmap(jax.grad(function))(t)  # noqa: E731
    return {
        "a": f.a(t),
        "b": f.b(t),
        "slopes": f.slopes(t),
        "grads": (each(f.a), each(f.b)),
        "lam": f.log_snr(t),
        "lam_slope": f.log_snr_slope(t),
        "lam_grad": each(f.log_snr),
        "density": f.density(t),
        "weight": f.weight(t),
        "effective_weight": f.effective_weight(t),
        "level": f.level(t),
        "time": f.time_at(f.level(t)),
    }


@pytest.mark.parametrize("name", STUDY_61)
def test_path_density_and_weight_are_the_papers(name: str) -> None:
    found, oracle, t = _scalars(formulation(name), T), Oracle(name), T.astype(np.float64)
    near = np.testing.assert_allclose
    near(found["a"], oracle.a(t), rtol=3e-6)
    near(found["b"], oracle.b(t), rtol=1e-5)
    near(found["lam"], oracle.lam(t), rtol=1e-5, atol=1e-5)
    near(found["lam_slope"], oracle.lam_slope(t), rtol=2e-4 if oracle.path == "linear" else 2e-5)
    for slope, expected in zip(found["slopes"], oracle.slopes(t), strict=True):
        near(slope, expected, rtol=2e-4 if oracle.path == "linear" else 2e-5)
    # mode(1.75) has a spike of 900 where t's rounding moves u by 1e-5 of the width
    rtol = 2e-3 if oracle.stem == "rf/mode" else 1e-4
    near(found["density"], oracle.density(t), rtol=rtol, atol=1e-25)  # float32 has no 1e-128
    near(found["effective_weight"], oracle.effective_weight(t), rtol=rtol, atol=1e-25)
    w = -2 * np.asarray(found["effective_weight"]) / np.asarray(found["lam_slope"])
    near(w, oracle.w(t), rtol=max(rtol, 3e-4), atol=1e-25)
    near(found["level"], oracle.b(t) / (oracle.a(t) + oracle.b(t)), rtol=1e-5)
    near(found["time"], t, rtol=3e-5)


@pytest.mark.parametrize("name", STUDY_61)
def test_slopes_are_what_autodiff_says(name: str) -> None:
    found = _scalars(formulation(name), T)
    np.testing.assert_allclose(found["lam_slope"], found["lam_grad"], rtol=1e-4)
    for slope, grad in zip(found["slopes"], found["grads"], strict=True):
        np.testing.assert_allclose(slope, grad, rtol=1e-4, atol=1e-6)


def test_the_papers_identities_hold_of_the_reference() -> None:
    """So that an error in the reference does not make one here: 1/(1−t)², π, π/(2cos²), (σ²+¼)/2, λ = −2 logit t."""
    t = T.astype(np.float64)
    near = np.testing.assert_allclose
    near(Oracle("rf").effective_weight(t), 1 / (1 - t) ** 2)
    near(Oracle("eps/cos").effective_weight(t), np.pi)
    near(Oracle("v/cos").effective_weight(t), np.pi / (2 * np.cos(np.pi * t / 2) ** 2))
    near(Oracle("edm(0.60,1.80)").effective_weight(t), (Oracle("edm(0.60,1.80)").b(t) ** 2 + 0.25) / 2)
    near(Oracle("edm/rf").effective_weight(t), ((t / (1 - t)) ** 2 + 0.25) / 2)
    near(Oracle("edm/cos").effective_weight(t), (np.tan(np.pi * t / 2) ** 2 + 0.25) / 2)
    near(Oracle("rf").lam(t), -2 * np.log(t / (1 - t)), atol=1e-12)
    near(Oracle("edm/rf").lam(t), Oracle("rf").lam(t), atol=1e-12)
    near(Oracle("edm/cos").lam(t), Oracle("v/cos").lam(t), atol=1e-12)
    near(Oracle("eps/linear").effective_weight(t), 1)
    near(Oracle("rf/mode(0)").density(t), 1)
    for name in ("rf", "v/cos"):
        near(Oracle(name).w(t), np.exp(-Oracle(name).lam(t) / 2))
    for name in STUDY_61:  # the slopes, by differences
        oracle, h = Oracle(name), 1e-6
        for function, slope in ((oracle.a, oracle.slopes(t)[0]), (oracle.b, oracle.slopes(t)[1])):
            near((function(t + h) - function(t - h)) / (2 * h), slope, rtol=1e-5, atol=1e-7, err_msg=name)
        near((oracle.lam(t + h) - oracle.lam(t - h)) / (2 * h), oracle.lam_slope(t), rtol=1e-5, err_msg=name)


@jax.jit
def _vectors(f, x0, eps, t):
    z = f.mix(x0, eps, t)
    return z, f.network_input(z, t), f.target(x0, eps, t)


@pytest.mark.parametrize("name", STUDY_61)
def test_mixture_input_and_target_are_the_papers(name: str) -> None:
    x0, eps = np.random.default_rng(0).normal(size=(2, len(T), 3)).astype(np.float32)
    z, network_input, target = _vectors(formulation(name), x0, eps, T)
    oracle, t = Oracle(name), T.astype(np.float64)
    expected_z = oracle.a(t)[:, None] * x0 + oracle.b(t)[:, None] * eps
    scale = 1 + np.abs(expected_z)
    np.testing.assert_allclose(z / scale, expected_z / scale, atol=1e-5)
    np.testing.assert_allclose(network_input, oracle.network_input(expected_z, t), atol=2e-5)
    np.testing.assert_allclose(target, oracle.quantities(x0, eps, t)[oracle.prediction], rtol=1e-5, atol=1e-5)


@jax.jit
def _every_pair(f, given, z, t):
    pairs = itertools.product(QUANTITIES, QUANTITIES)
    there = {(source, target): f.convert(given[source], z, t, source, target) for source, target in pairs}
    back = {pair: f.convert(value, z, t, pair[1], pair[0]) for pair, value in there.items()}
    output = given[f.prediction]
    return there, back, f.velocity(output, z, t), f.straight_velocity(output, z, t), f.recover(output, z, t)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_conversion_of_every_pair(name: str) -> None:
    f, oracle, t = formulation(name), Oracle(name), T[4:-4].astype(np.float64)
    x0, eps = np.random.default_rng(1).normal(size=(2, len(t), 3))
    quantities = oracle.quantities(x0, eps, t)
    given = {key: jnp.asarray(value, jnp.float32) for key, value in quantities.items()}
    z = jnp.asarray(oracle.a(t)[:, None] * x0 + oracle.b(t)[:, None] * eps, jnp.float32)
    there, back, velocity, straight, recovered = _every_pair(f, given, z, jnp.asarray(t, jnp.float32))
    assert len(there) == 25 and set(quantities) == set(QUANTITIES)
    # inputs are rounded to float32: what a conversion magnifies (division by a or b at an end), it magnifies of 1e-7
    size = {key: 1 + np.abs(value) for key, value in quantities.items()}
    for (source, target), value in there.items():
        np.testing.assert_allclose(
            value / size[target], quantities[target] / size[target], atol=1e-3, err_msg=f"{source} -> {target}"
        )
        returned = back[source, target]
        np.testing.assert_allclose(returned / size[source], quantities[source] / size[source], atol=1e-3)
    np.testing.assert_array_equal(velocity, there[f.prediction, "velocity"])
    np.testing.assert_allclose(straight, eps - x0, atol=1e-3)
    np.testing.assert_allclose(recovered[0], quantities["x0"], atol=1e-3)
    np.testing.assert_allclose(recovered[1], quantities["eps"], atol=1e-3)


def test_conversion_refuses_other_names() -> None:
    value, t = jnp.zeros((2, 3)), jnp.array([0.2, 0.7])
    says = r"unknown; did you mean '.*'\? \(one of: F, eps, v, velocity, x0\)$"
    for source, target, field in (("epsilon", "x0", "source"), ("eps", "vv", "target")):
        with pytest.raises(UserError, match=rf"^{field}='.*': {says}"):
            formulation("rf").convert(value, value, t, source, target)


def test_log_snr_densities_of_edm_match_the_paths_they_are_named_after() -> None:
    """edm/rf draws the log-SNRs of rf, edm/cos those of v/cos; both weigh them as EDM does."""
    keys = jax.random.split(jax.random.key(11), 2)
    for edm, law in (("edm/rf", scipy.stats.logistic(scale=2)), ("edm/cos", scipy.stats.hypsecant(scale=2))):
        f = formulation(edm)
        lam = np.asarray(f.log_snr(f.sample_t(keys[0], (20_000,))), np.float64)
        assert scipy.stats.kstest(lam, law.cdf).pvalue > 0.01
        other = formulation({"edm/rf": "rf", "edm/cos": "v/cos"}[edm])
        again = np.asarray(other.log_snr(other.sample_t(keys[1], (20_000,))), np.float64)
        assert scipy.stats.ks_2samp(lam, again).pvalue > 0.01


@pytest.mark.parametrize("name", STUDY_61)
def test_float32_is_accurate_near_both_ends(name: str) -> None:
    """At 1e-5, 1e-4, 1e-3 from each end, against float64 at the same t."""
    found, oracle, t = _scalars(formulation(name), ENDS), Oracle(name), ENDS.astype(np.float64)
    for key, value in found.items():
        assert np.isfinite(np.asarray(value)).all(), key
    np.testing.assert_allclose(found["lam"], oracle.lam(t), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["lam_slope"], oracle.lam_slope(t), rtol=1e-4)
    # mode's density is the square root of something at the ends of s = −1: half a percent there
    np.testing.assert_allclose(
        found["effective_weight"],
        oracle.effective_weight(t),
        rtol=1e-2 if oracle.stem == "rf/mode" else 2e-4,
        atol=1e-25,
    )


@pytest.mark.parametrize("name", [name for name in STUDY_61 if name.startswith("edm(")])
def test_edms_schedules_find_low_levels_that_training_does_not_draw(name: str) -> None:
    f, level = formulation(name), np.array([1 / 200, 1 / 50, 1 / 16, 3 / 16], np.float32)
    t = f.time_at(level)
    np.testing.assert_allclose(f.level(t), level, rtol=1e-4)
    sigma = level / (1 - level)
    np.testing.assert_allclose(f.b(t), sigma, rtol=1e-4)
    x0, eps = np.random.default_rng(2).normal(size=(2, 4, 3)).astype(np.float32)
    z = f.mix(x0, eps, t)
    np.testing.assert_allclose(f.straight_velocity(f.target(x0, eps, t), z, t), eps - x0, atol=2e-3)
    draw = jax.jit(lambda f: f.sample_t(jax.random.key(0), (20_000,)))
    for shifted in (name, f"{name}/shift(0.6)"):
        assert draw(formulation(shifted)).min() >= np.float32(1e-5)


def test_levels_that_validation_asks_for_and_those_that_documentation_excepts() -> None:
    """The eight levels are measured where they are, but for those in docs/formulations.md, "Where a path ends"."""
    level = ((np.arange(8) + 0.5) / 8).astype(np.float32)
    elsewhere = {
        name: {int(i) for i in np.flatnonzero(np.abs(np.asarray(f.level(f.time_at(level))) - level) > 1e-4)}
        for name, f in ((name, formulation(name)) for name in STUDY_61)
    }
    assert {name: found for name, found in elsewhere.items() if found} == {
        "eps/linear": {7},
        "v/linear": {7},
        "edm(-1.20,0.60)": {6, 7},
        "edm(-0.60,0.60)": {7},
        "edm(0.00,0.60)": {7},
    }
    ends = {"edm(-1.20,0.60)": 0.796, "edm(-0.60,0.60)": 0.876, "edm(0.00,0.60)": 0.928, "v/linear": 0.936}
    for name, end in ends.items():
        assert float(formulation(name).level(formulation(name).time_at(0.9375))) == pytest.approx(end, abs=5e-4)
        assert float(formulation(name).last_level()) == pytest.approx(end, abs=5e-4)


@pytest.mark.parametrize("name", [*ONE_OF_EACH_FAMILY, *LATER])
def test_the_ends_themselves_are_finite(name: str) -> None:
    f = formulation(name)
    t = np.resize(np.array([0.0, 1e-7, 1.0 - 6e-8, 1.0], np.float32), T.shape)
    for key, value in _scalars(f, t).items():
        if not key.endswith(("grad", "grads")):  # σ has no slope where its quantile function is cut
            assert np.isfinite(np.asarray(value)).all(), key
    x0 = np.ones((len(t), 3), np.float32)
    z, network_input, target = _vectors(f, x0, -x0, t)
    assert np.isfinite(np.asarray([z, network_input, target])).all()
    assert np.isfinite(np.asarray(f.recover(target, z, t))).all()
