"""The expectation of ``training_loss``: by Monte Carlo, against quadrature and against draws that numpy makes.

The network is wrong on purpose, and wrong differently at every noise level θ = atan(b/a): it says v = A(θ) ẑ + C(θ) of
ẑ = z/√(a² + b²), in whichever quantity the formulation predicts. So its error in ε is a known function of λ, and what a
formulation makes of it depends on nothing but −½ w λ'. Data is N(MEAN, DEVIATION²).
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from formulation_oracle import Oracle

from mmdit_jax.diffusion import STUDY_61, formulation, training_loss

MEAN, DEVIATION = 0.3, 0.8
DRAWS, SIZE = 1 << 18, 2  # examples, and elements of each
LIMIT = 4.5  # standard errors; seeds are given, so that a test that passes goes on passing
IMPORTANCE = (
    "rf",
    "rf/lognorm(0.50,0.60)",
    "rf/lognorm(-1.00,2.20)",
    "rf/mode(1.29)",
    "rf/mode(-1.00)",
    "rf/cosmap",
    "edm(-1.20,1.20)",
    "edm(0.60,0.60)",
    "edm/rf",
    "edm/cos",
    "eps/linear",
    "v/linear",
    "eps/cos",
    "v/cos",
)


def _wrong(angle, xp):
    """A and C of the network; ``xp`` is numpy or jax.numpy."""
    return 0.5 - 0.3 * xp.cos(2 * angle), 0.4 * xp.sin(3 * angle) + 0.1


@jax.jit
def _losses(f, key):
    def network(z_in, t):
        a, b = f.a(t)[:, None], f.b(t)[:, None]
        z = z_in * jnp.sqrt(b**2 + 0.25) if f.prediction == "F" else z_in
        angle, size = jnp.arctan2(b, a), jnp.hypot(a, b)
        factor, constant = _wrong(angle, jnp)
        v = factor * z / size + constant
        x0, eps = jnp.cos(angle) * z / size - jnp.sin(angle) * v, jnp.sin(angle) * z / size + jnp.cos(angle) * v
        if f.prediction == "F":  # x0 = c_skip z + c_out F, with σ = b
            return (x0 - 0.25 / (b**2 + 0.25) * z) * jnp.sqrt(b**2 + 0.25) / (0.5 * b)
        return {"velocity": eps - x0, "eps": eps, "v": v}[f.prediction]

    key, key_data = jax.random.split(key)
    x0 = MEAN + DEVIATION * jax.random.normal(key_data, (DRAWS, SIZE))
    return training_loss(f, network, x0, key)


def _loss(name: str, seed: int) -> np.ndarray:
    loss, _ = _losses(formulation(name), jax.random.key(seed))
    loss = np.asarray(loss, np.float64)
    assert np.isfinite(loss).all()
    return loss


def _expected_eps_error(angle: np.ndarray) -> np.ndarray:
    """E (ε_Θ − ε)² at a noise level: cos²θ times that of v."""
    factor, constant = _wrong(angle, np)
    by_eps, by_x0 = factor * np.sin(angle) - np.cos(angle), factor * np.cos(angle) + np.sin(angle)
    return np.cos(angle) ** 2 * (by_eps**2 + (by_x0 * DEVIATION) ** 2 + (by_x0 * MEAN + constant) ** 2)


def _drawn_eps_error(lam: np.ndarray, seed: int) -> np.ndarray:
    """(ε_Θ − ε)² at each log-SNR, one draw of x0 and ε for each."""
    rng = np.random.default_rng(seed)
    x0, eps = MEAN + DEVIATION * rng.normal(size=lam.shape), rng.normal(size=lam.shape)
    angle = np.arctan(np.exp(-lam / 2))
    factor, constant = _wrong(angle, np)
    z = np.cos(angle) * x0 + np.sin(angle) * eps
    return (np.sin(angle) * z + np.cos(angle) * (factor * z + constant) - eps) ** 2


def _agree(first: np.ndarray, second: np.ndarray | float) -> None:
    """Means of two independent sets of draws, or of one and a known mean, are within LIMIT standard errors."""
    variance, other = first.var() / first.size, 0.0
    if isinstance(second, np.ndarray):
        other = second.var() / second.size
    error = np.sqrt(variance + other)
    assert error < 0.02 * np.mean(second)  # else agreement would say little
    assert abs(first.mean() - np.mean(second)) < LIMIT * error


@cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Times from 1e-5 to 1 − 1e-5, dense in logit t and at the spike of mode(1.75), and trapezoid widths."""
    t = scipy.stats.logistic.cdf(np.linspace(-np.log(99999), np.log(99999), 3001))
    t = np.union1d(t, 0.5 + 0.08 * np.linspace(-1, 1, 401) ** 3)
    widths = np.diff(t)
    return t, 0.5 * (np.append(widths, 0) + np.insert(widths, 0, 0))


@pytest.mark.parametrize("index", range(61))
def test_expected_loss_is_the_integral_of_the_papers_weight(index: int) -> None:
    """∫ −½ w λ' E‖ε_Θ − ε‖² dt with w as printed, in float64, for each of the 61."""
    name = STUDY_61[index]
    oracle, (t, widths) = Oracle(name), _grid()
    exact = np.sum(widths * oracle.effective_weight(t) * _expected_eps_error(np.arctan2(oracle.b(t), oracle.a(t))))
    _agree(_loss(name, 100 + index), float(exact))


@pytest.mark.parametrize("name", [name for name in IMPORTANCE if "mode" not in name])
def test_uniform_log_snr_with_the_printed_weight_has_the_same_mean(name: str) -> None:
    """½ ∫ w(λ) E‖ε_Θ − ε‖² dλ by drawing λ uniformly: how edm's weight N(λ)(exp(−λ) + ¼) is printed."""
    oracle = Oracle(name)
    low, high = (-15.0, 20.0) if oracle.path != "linear" else (float(oracle.lam(np.array([x]))[0]) for x in (1, 1e-5))
    # stratified: one draw in each of many equal parts of the range
    parts = 1 << 17
    lam = low + (high - low) * (np.arange(parts) + np.random.default_rng(5).uniform(size=parts)) / parts
    if oracle.path == "rf":
        t = scipy.stats.logistic.cdf(-lam / 2)
    elif oracle.path == "cos":
        t = 2 / np.pi * np.arctan(np.exp(-lam / 2))
    elif oracle.path == "linear":
        fine = np.linspace(1e-6, 1, 1_000_001)
        t = np.interp(-lam, -oracle.lam(fine), fine).clip(1e-6, 1 - 1e-9)
    elif name == "edm/rf":
        t = scipy.stats.logistic.cdf(-lam / 2)
    elif name == "edm/cos":
        t = 2 / np.pi * np.arctan(np.exp(-lam / 2))
    else:
        t = scipy.stats.norm.cdf((-lam / 2 - oracle.numbers[0]) / oracle.numbers[1])
    inside = (t > 1e-12) & (t < 1 - 1e-12)
    w = np.zeros_like(t)
    w[inside] = oracle.w(t[inside])
    _agree(_loss(name, 7), 0.5 * (high - low) * w * _drawn_eps_error(lam, 8))


def test_rf_is_its_eps_form_under_uniform_times() -> None:
    """w = t/(1 − t), λ' = −2/(t(1 − t)): E_U[−½ w λ' ‖ε_Θ − ε‖²]."""
    t = np.random.default_rng(2).uniform(size=300_000)
    w, slope = t / (1 - t), -2 / (t * (1 - t))
    _agree(_loss("rf", 3), -0.5 * w * slope * _drawn_eps_error(-2 * np.log(t / (1 - t)), 4))


@pytest.mark.parametrize("name", [name for name in IMPORTANCE if name.startswith("rf/")])
def test_a_density_is_a_weight(name: str) -> None:
    """E_{t~π}[l(t)] = E_{t~U}[π(t) l(t)], l the loss of rf, π as printed."""
    parts = 1 << 14
    t = (np.arange(parts) + np.random.default_rng(1).uniform(size=parts)) / parts
    t = t.clip(1e-5, 1 - 1e-5)
    error = _drawn_eps_error(-2 * np.log(t / (1 - t)), 9) / (1 - t) ** 2
    _agree(_loss(name, 12), Oracle(name).density(t) * error)


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("rf/lognorm(0.50,0.60)", lambda rng, n: rng.normal(-1.0, 1.2, n)),
        ("rf/lognorm(-1.00,2.20)", lambda rng, n: rng.normal(2.0, 4.4, n)),
        ("rf/cosmap", lambda rng, n: scipy.stats.hypsecant(scale=2).rvs(n, random_state=rng)),
        ("edm(-1.20,1.20)", lambda rng, n: rng.normal(2.4, 2.4, n)),
        ("edm(0.60,0.60)", lambda rng, n: rng.normal(-1.2, 1.2, n)),
        ("edm/rf", lambda rng, n: rng.logistic(0, 2, n)),
        ("edm/cos", lambda rng, n: scipy.stats.hypsecant(scale=2).rvs(n, random_state=rng)),
        ("eps/cos", lambda rng, n: scipy.stats.hypsecant(scale=2).rvs(n, random_state=rng)),
        ("v/cos", lambda rng, n: scipy.stats.hypsecant(scale=2).rvs(n, random_state=rng)),
    ],
)
def test_drawing_log_snr_by_its_law_has_the_same_mean(name: str, draw) -> None:
    """lognorm(m,s) is λ ~ N(−2m,(2s)²), edm(Pm,Ps) λ ~ N(−2Pm,(2Ps)²), the cosine path a hyperbolic secant."""
    lam = draw(np.random.default_rng(21), 200_000)
    t = scipy.stats.logistic.cdf(-lam / 2)
    of_eps = {
        "rf": lambda: 1 / (1 - t) ** 2,  # ‖velocity error‖² = ‖ε error‖²/(1 − t)²
        "edm": lambda: 0.5 * (np.exp(-lam) + 0.25),
        "eps": lambda: np.full_like(lam, np.pi),
        "v": lambda: np.pi / 2 * (1 + np.exp(-lam)),
    }[name.split("/")[0].split("(")[0]]()
    _agree(_loss(name, 22), of_eps * _drawn_eps_error(lam, 23))


def test_rf_and_the_cosine_v_share_their_loss() -> None:
    """w(λ) = exp(−λ/2) of both."""
    _agree(_loss("rf", 31), _loss("v/cos", 32))


def test_a_wrong_weight_would_be_seen() -> None:
    """These tests have the power to tell: 5 % of weight more, or cosmap taken for rf/lognorm(0,1.5), fail."""
    with pytest.raises(AssertionError):
        _agree(1.05 * _loss("rf", 41), _loss("rf", 42))
    with pytest.raises(AssertionError):
        _agree(_loss("rf/cosmap", 43), _loss("rf/lognorm(0,1.5)", 44))
