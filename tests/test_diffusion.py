"""Formulations against closed forms that share no code with them: scipy, numpy in float64, exact Gaussian flows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from mmdit_jax.diffusion import LATER, STUDY_61, formulation, training_loss
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


def test_ldm_linear_is_the_discrete_schedule() -> None:
    roots = 0.00085**0.5 + np.arange(1000) / 999 * (0.012**0.5 - 0.00085**0.5)
    a = np.sqrt(np.cumprod(1 - roots**2))
    f, t = formulation("eps/linear"), np.arange(1, 1001) / 1000
    np.testing.assert_allclose(f.a(t), a, rtol=2e-5)
    np.testing.assert_allclose(f.b(t), np.sqrt(1 - a**2), rtol=2e-4)
    assert float(f.a(0.0)) == 1 and float(f.b(0.0)) == 0


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
    losses = {name: float(step(formulation(name), x0, jax.random.key(0))) for name in (*STUDY_61, *LATER)}
    assert sorted(traces) == ["cos", "cos", "edm", "linear", "linear", "rf"]
    untaught = {name for name in LATER if "adaptive" in name}  # as uniform as rf before the first step
    assert {losses[name] for name in untaught} == {losses["rf"]}
    assert len(set(losses.values())) == 61 + len(LATER) - len(untaught)  # and yet the numbers of each are its own
    assert losses["rf"] == pytest.approx(
        float(training_loss(formulation("rf"), lambda z, t: z, x0, jax.random.key(0))[0].mean()) + 1 / 0.7**2, rel=1e-5
    )
