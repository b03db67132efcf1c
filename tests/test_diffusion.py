"""Formulations against closed forms that share no code with them: scipy, numpy in float64, exact Gaussian flows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from mmdit_jax.diffusion import STUDY_61, formulation, training_loss
from mmdit_jax.errors import UserError

ONE_OF_EACH = (
    "rf",
    "rf/lognorm(0.50,0.60)",
    "rf/mode(1.29)",
    "rf/cosmap",
    "edm(-1.20,1.20)",
    "edm/rf",
    "edm/cos",
    "eps/linear",
    "v/linear",
    "eps/cos",
    "v/cos",
)
T = np.linspace(0.01, 0.99, 99)


def _mode(u: np.ndarray, s: float) -> np.ndarray:
    return 1 - u - s * (np.cos(np.pi * u / 2) ** 2 - 1 + u)


def _mode_cdf(s: float):
    u = np.linspace(0, 1, 400_001)
    return lambda x: 1 - np.interp(x, _mode(u, s)[::-1], u[::-1])  # t falls as u rises


CDFS = {
    "rf": lambda t: t,
    "rf/lognorm(0.00,1.00)": lambda t: scipy.stats.norm.cdf(np.log(t / (1 - t))),
    "rf/lognorm(-0.50,2.20)": lambda t: scipy.stats.norm.cdf((np.log(t / (1 - t)) + 0.5) / 2.2),
    "rf/mode(1.75)": _mode_cdf(1.75),
    "rf/mode(1.29)": _mode_cdf(1.29),
    "rf/mode(-1.00)": _mode_cdf(-1.0),
    "rf/cosmap": lambda t: 2 / np.pi * np.arctan2(t, 1 - t),
}


@pytest.mark.parametrize("name", CDFS)
def test_samples_follow_the_closed_form_and_the_density_is_its_derivative(name: str) -> None:
    f = formulation(name)
    t = np.asarray(f.sample_t(jax.random.key(3), (40_000,)), np.float64)
    assert t.min() > 0 and t.max() < 1
    assert scipy.stats.kstest(t, CDFS[name]).pvalue > 0.01

    grid = scipy.stats.logistic.cdf(np.linspace(-11.4, 11.4, 8001))
    grid = np.union1d(grid, _mode(np.linspace(0.01, 0.99, 4001), 1.75))  # dense where mode(1.75) has its spike of 900
    density = np.asarray(f.density(grid), np.float64)
    mass = scipy.integrate.cumulative_trapezoid(density, grid, initial=0) + CDFS[name](grid[0])
    np.testing.assert_allclose(mass, CDFS[name](grid), atol=1e-3)


def test_the_same_family_in_log_snr() -> None:
    """lognorm(m, s) is λ ~ N(−2m, (2s)²), and edm(Pm, Ps) λ ~ N(−2Pm, (2Ps)²); cosmap has the cosine path's λ."""
    for name, mean in (("rf/lognorm(0.50,0.60)", 0.5), ("edm(0.50,0.60)", 0.5)):
        f = formulation(name)
        lam = np.asarray(f.log_snr(f.sample_t(jax.random.key(0), (20_000,))))
        assert scipy.stats.kstest(lam, scipy.stats.norm(-2 * mean, 1.2).cdf).pvalue > 0.01
    cosmap, cosine = formulation("rf/cosmap"), formulation("v/cos")
    samples = [f.log_snr(f.sample_t(jax.random.key(i), (20_000,))) for i, f in enumerate((cosmap, cosine))]
    assert scipy.stats.ks_2samp(*map(np.asarray, samples)).pvalue > 0.01
    t = jnp.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(formulation("rf/mode(0)").density(t), 1, rtol=1e-6)
    rf, mode = formulation("rf"), formulation("rf/mode(0)")
    key = jax.random.key(5)  # the mode map runs backwards in u
    np.testing.assert_allclose(mode.sample_t(key, (100,)), 1 - rf.sample_t(key, (100,)), atol=1e-6)


def test_effective_weights_are_the_papers() -> None:
    """−½ w λ' with w and λ as printed, in float64."""
    lam_cos, slope_cos = -2 * np.log(np.tan(np.pi * T / 2)), -2 * np.pi / np.sin(np.pi * T)
    sigma = np.exp(-1.2 + 1.2 * scipy.stats.norm.ppf(T))
    expected = {
        "rf": -0.5 * T / (1 - T) * -2 / (T * (1 - T)),
        "eps/cos": -0.5 / np.cosh(lam_cos / 2) * slope_cos,
        "v/cos": -0.5 * np.exp(-lam_cos / 2) * slope_cos,
        "edm(-1.20,1.20)": 0.5 * (sigma**2 + 0.25),
        "edm/rf": 0.5 * ((T / (1 - T)) ** 2 + 0.25),
        "edm/cos": 0.5 * (np.tan(np.pi * T / 2) ** 2 + 0.25),
        "rf/cosmap": 2 / (np.pi - 2 * np.pi * T + 2 * np.pi * T**2) / (1 - T) ** 2,
        "rf/lognorm(0.50,0.60)": scipy.stats.norm.pdf(np.log(T / (1 - T)), 0.5, 0.6) / (T * (1 - T)) / (1 - T) ** 2,
    }
    for name, weight in expected.items():
        np.testing.assert_allclose(formulation(name).effective_weight(T), weight, rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(expected["rf"], 1 / (1 - T) ** 2)  # the identities, on the reference itself
    np.testing.assert_allclose(expected["eps/cos"], np.pi)
    np.testing.assert_allclose(expected["v/cos"], np.pi / (2 * np.cos(np.pi * T / 2) ** 2))


def test_ldm_linear_is_the_discrete_schedule() -> None:
    roots = 0.00085**0.5 + np.arange(1000) / 999 * (0.012**0.5 - 0.00085**0.5)
    a = np.sqrt(np.cumprod(1 - roots**2))
    f, t = formulation("eps/linear"), np.arange(1, 1001) / 1000
    np.testing.assert_allclose(f.a(t), a, rtol=2e-5)
    np.testing.assert_allclose(f.b(t), np.sqrt(1 - a**2), rtol=2e-4)
    assert float(f.a(0.0)) == 1 and float(f.b(0.0)) == 0


@jax.jit
def _quantities(f, t, x0, eps):
    z, output = f.mix(x0, eps, t), f.target(x0, eps, t)
    slopes = [jax.vmap(jax.grad(function))(t) for function in (f.a, f.b, f.log_snr)]
    levels = f.level(t), f.time_at(f.level(t)), f.log_snr(t), f.log_snr_slope(t)
    velocities = f.velocity(output, z, t), f.straight_velocity(output, z, t)
    return f.a(t), f.b(t), slopes, levels, velocities, f.recover(output, z, t)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_slopes_levels_and_predictions_agree_with_the_path(name: str) -> None:
    f = formulation(name)
    t = jnp.asarray(T[4:-4], jnp.float32) + 3e-4  # off the knots of the linear schedule
    x0, eps = (jax.random.normal(jax.random.key(i), (len(t), 3)) for i in range(2))
    a, b, (a_slope, b_slope, log_snr_grad), levels, velocities, recovered = _quantities(f, t, x0, eps)
    level, time, log_snr, log_snr_slope = levels
    np.testing.assert_allclose(log_snr, 2 * np.log(a / b), atol=2e-4)
    np.testing.assert_allclose(log_snr_slope, log_snr_grad, rtol=2e-3)
    np.testing.assert_allclose(level, b / (a + b), rtol=1e-4)
    np.testing.assert_allclose(time, t, atol=1e-4)
    path_velocity = a_slope[:, None] * x0 + b_slope[:, None] * eps
    np.testing.assert_allclose(velocities[0], path_velocity, rtol=5e-3, atol=5e-3)
    np.testing.assert_allclose(velocities[1], eps - x0, atol=1e-3)
    np.testing.assert_allclose(recovered[0], x0, atol=1e-3)
    np.testing.assert_allclose(recovered[1], eps, atol=1e-3)


def test_targets_are_the_published_ones() -> None:
    """ε − x0 on the rf path, Salimans and Ho's v on the cosine, EDM's denoiser c_skip z + c_out F."""
    t = jnp.asarray([0.2, 0.7])
    x0, eps = (jax.random.normal(jax.random.key(i), (2, 4)) for i in range(2))
    np.testing.assert_allclose(formulation("rf/cosmap").target(x0, eps, t), eps - x0)
    angle = np.pi / 2 * np.asarray(t)[:, None]
    np.testing.assert_allclose(formulation("v/cos").target(x0, eps, t), np.cos(angle) * eps - np.sin(angle) * x0, 1e-5)
    np.testing.assert_allclose(formulation("eps/linear").target(x0, eps, t), eps)
    f, sigma = formulation("edm(0.00,0.60)"), np.exp(0.6 * scipy.stats.norm.ppf(np.asarray(t)))[:, None]
    z, total = x0 + sigma * eps, sigma**2 + 0.25
    denoised = 0.25 / total * z + 0.5 * sigma / np.sqrt(total) * f.target(x0, eps, t)
    np.testing.assert_allclose(denoised, x0, atol=1e-5)
    np.testing.assert_allclose(f.network_input(z, t), z / np.sqrt(total), rtol=1e-4)


@jax.jit
def _loss_of_wrong_eps(f, x0, wrong):
    def network(z_in: jax.Array, t: jax.Array) -> jax.Array:
        z = z_in / f.network_input(jnp.ones_like(z_in), t)
        a, b = f.a(t)[:, None], f.b(t)[:, None]
        eps = (z - a * x0) / b + wrong
        return f.target((z - b * eps) / a, eps, t)

    loss, t = training_loss(f, network, x0, jax.random.key(1))
    return loss, t, f.effective_weight(t) * wrong**2 / f.density(t)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_loss_weighs_an_error_in_eps_by_the_effective_weight(name: str) -> None:
    """A network that is off by ``wrong`` in ε, at a given z: its loss per unit of t is effective_weight · wrong²."""
    loss, t, expected = map(np.asarray, _loss_of_wrong_eps(formulation(name), jnp.full((256, 2), 0.7), 0.3))
    assert loss.shape == t.shape == (256,)
    inside = (t > 0.05) & (t < 0.95)
    np.testing.assert_allclose(loss[inside], expected[inside], rtol=5e-3)


def test_names_round_trip_and_the_study_has_61() -> None:
    assert len(STUDY_61) == len(set(STUDY_61)) == 61
    assert [formulation(name).name for name in STUDY_61] == list(STUDY_61)
    published = {"rf/lognorm(0.50,0.60)", "rf/mode(1.29)", "rf/mode(1.75)", "edm(0.60,1.20)", "rf/lognorm(1.00,0.60)"}
    assert published | (set(ONE_OF_EACH)) <= set(STUDY_61)
    assert formulation(" rf/lognorm(0, 1) ").name == "rf/lognorm(0.00,1.00)"
    assert formulation("rf/lognorm(0.125,1)").name == "rf/lognorm(0.125,1.00)"
    assert formulation("rf/mode(-0)").name == "rf/mode(0.00)"
    moved = jax.device_put(formulation("edm(-1.20,1.20)"))  # leaves are jax arrays now
    assert moved.name == "edm(-1.20,1.20)"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rf/lognormal(0.5,1)", "did you mean 'rf/lognorm(0.50,1.00)'"),
        ("RF/cosmap", "did you mean 'rf/cosmap'"),
        ("rf/lognorm", "did you mean 'rf/lognorm(0.00,1.00)'"),
        ("rf/mod(1)", "did you mean 'rf/mode(1.00)', "),
        ("rf/lognorm(0,1", "did you mean 'rf/lognorm(0.00,1.00)'"),
        ("rf/lognorm(0,1,2)", "did you mean 'rf/lognorm(0.00,1.00)'"),
        ("v/cosine", "did you mean 'v/cos'"),
        ("", "did you mean"),
        ("rf/mode(1.76)", "s=1.76 is out of range: use -1 <= s <= 1.7519"),
        ("rf/mode(-1.01)", "s=-1.01 is out of range: use -1 <= s <= 1.7519"),
        ("rf/lognorm(0,0)", "s=0 is out of range: use s > 0"),
        ("rf/lognorm(inf,1)", "m=inf is out of range: use m finite"),
        ("edm(0,-1)", "Ps=-1 is out of range: use Ps > 0"),
        ("edm(0,nan)", "Ps=nan is out of range: use Ps > 0"),
    ],
)
def test_other_names_are_refused_in_one_line(name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        formulation(name)
    message = str(caught.value)
    assert message.startswith(f"formulation={name!r}: ") and says in message and "\n" not in message


def test_one_compiled_step_serves_a_family() -> None:
    traces = []

    @jax.jit
    def step(f, x0, key):
        traces.append(f.path)
        return training_loss(f, lambda z, t: z, x0, key)[0].mean() + f.effective_weight(0.3)

    x0 = jnp.ones((4, 2, 2, 1))
    losses = {name: float(step(formulation(name), x0, jax.random.key(0))) for name in STUDY_61}
    assert sorted(traces) == ["cos", "cos", "edm", "linear", "linear", "rf"]
    assert len(set(losses.values())) == 61  # and yet the numbers of each are its own
    assert losses["rf"] == pytest.approx(
        float(training_loss(formulation("rf"), lambda z, t: z, x0, jax.random.key(0))[0].mean()) + 1 / 0.7**2, rel=1e-5
    )
