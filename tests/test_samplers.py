"""Samplers against exact flows: a Gaussian and two modes, whose velocity is known, for every path and method."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mmdit_jax.diffusion import Formulation, SamplerConfig, formulation, guided, plan, sample, timesteps
from mmdit_jax.diffusion.sampler import _multistep, _Nodes
from mmdit_jax.errors import UserError

FAMILIES = ("rf", "edm(-1.20,1.20)", "edm/rf", "edm/cos", "eps/linear", "v/linear", "eps/cos", "v/cos")
NARROW = ("edm(-1.20,0.60)", "edm(0.00,0.60)", "edm(1.20,0.60)")
"""Schedules of σ that leave out much: the first starts at level 0.8, the last draws none under 0.2."""
LENGTH = 400
MEANS, MASSES, DEVIATION = np.array([-1.0, 1.0]), np.array([0.3, 0.7]), 0.35


def two_modes(f: Formulation, z: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(E[x0 | z], E[ε | z]) for data of two Gaussian modes: what a perfect network knows. z [B, 1], t [B]."""
    a, b = f.a(t)[:, None], f.b(t)[:, None]
    variance = a**2 * DEVIATION**2 + b**2
    residual = z - a * MEANS
    share = jax.nn.softmax(np.log(MASSES) - residual**2 / (2 * variance), axis=-1)
    x0 = jnp.sum(share * (MEANS + a * DEVIATION**2 * residual / variance), axis=-1, keepdims=True)
    return x0, jnp.sum(share * b * residual / variance, axis=-1, keepdims=True)


def gaussian(f: Formulation, z: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same for x0 ~ N(0.4, 0.3²)."""
    a, b = f.a(t)[:, None], f.b(t)[:, None]
    residual = (z - 0.4 * a) / (a**2 * 0.3**2 + b**2)
    return 0.4 + a * 0.3**2 * residual, b * residual


@functools.partial(jax.jit, static_argnums=0)
def _run(knows, f, table, noise):
    def network(z_in: jax.Array, t: jax.Array) -> jax.Array:
        x0, eps = knows(f, z_in / f.network_input(jnp.ones_like(z_in), t), t)
        return f.target(x0, eps, t)

    return sample(table, network, noise)


def draw(knows, f: Formulation, noise: np.ndarray, **config: object) -> np.ndarray:
    """All methods, steps and shifts run through one compiled loop a family."""
    settings = SamplerConfig(guidance=1.0, **config)  # type: ignore[arg-type]
    return np.asarray(_run(knows, f, plan(f, settings, LENGTH), jnp.asarray(noise, jnp.float32))[0], np.float64)


def mixture(x: np.ndarray, level: float = 0.0) -> np.ndarray:
    """Distribution function of the two modes at a level of the straight path."""
    deviation = np.hypot((1 - level) * DEVIATION, level)
    means = (1 - level) * MEANS
    return sum(mass * scipy.stats.norm.cdf(x, mean, deviation) for mass, mean in zip(MASSES, means, strict=True))


def exact(knows, noise: np.ndarray, start: float) -> np.ndarray:
    """Where the flow carries ``start`` · noise from level ``start``: in one dimension it keeps every quantile."""
    if knows is gaussian:
        return 0.4 + 0.3 * (start * noise - (1 - start) * 0.4) / np.hypot((1 - start) * 0.3, start)
    grid = np.linspace(-4, 4, 400_001)
    return np.interp(mixture(start * noise, start), mixture(grid), grid)


def errors(knows, name: str, steps: tuple[int, ...], **config: object) -> np.ndarray:
    """Mean error of a sampler at each number of steps."""
    f = formulation(name)
    start = float(plan(f, SamplerConfig(steps=2, variables=config.get("variables", "straight"))).start)
    truth = exact(knows, NOISE, start)
    return np.array([np.abs(draw(knows, f, NOISE, steps=n, **config) - truth).mean() for n in steps])


NOISE = np.linspace(-2.2, 2.2, 41)[:, None]


def orders(errors: np.ndarray) -> np.ndarray:
    """Binary logarithms of how much the error falls, as the steps are halved."""
    return np.log2(errors[:-1] / errors[1:])


@pytest.mark.parametrize("name", [*FAMILIES, *NARROW])
@pytest.mark.parametrize("knows", [gaussian, two_modes])
def test_the_error_falls_at_the_methods_order(knows, name: str) -> None:
    """Halving the step halves Euler's error and quarters Heun's; DPM-Solver++(2M)'s falls as h² log(1/h).

    So for each path, prediction and kind of schedule of σ, and at the ends and the middle of the paper's narrow ones.
    Its published coefficients are of second order in steps of λ, which are large near both ends of equidistant levels.
    """
    euler, heun = (errors(knows, name, (40, 80, 160), method=method) for method in ("euler", "heun"))
    multistep = errors(knows, name, (70, 140, 280), method="dpm++2m")
    np.testing.assert_allclose(orders(euler), 1.0, atol=0.05)
    np.testing.assert_allclose(orders(heun), 2.0, atol=0.05)
    assert (orders(multistep) > 1.5).all() and orders(multistep)[1] > orders(multistep)[0], orders(multistep)
    assert multistep[-1] < 3e-4 and heun[-1] < 1e-4


def test_a_step_at_a_low_level_is_taken_at_that_level() -> None:
    """c_in z, and x0 where the network says 0 (c_skip z), at σ = s/(1 − s), however rarely training draws it."""
    for name in ("edm(0.00,0.60)", "edm(1.20,0.60)", "edm(1.20,0.20)"):
        f = formulation(name)
        table = plan(f, SamplerConfig(steps=500))
        level = float(f.last_level()) * (1 - np.arange(500) / 500)
        sigma = level / (1 - level)
        np.testing.assert_allclose(table.input_by_y, (1 + sigma) / np.sqrt(sigma**2 + 0.25), rtol=2e-5)
        np.testing.assert_allclose(table.x0_by_y, (1 + sigma) * 0.25 / (sigma**2 + 0.25), rtol=2e-4)
        assert (np.diff(table.t) <= 0).all() and 0 < table.t[-1] < 1e-8


def test_orders_in_the_paths_own_variables() -> None:
    """As above for paths that are smooth at both ends. EDM's quantiles and LDM-linear's √t at t = 0 cost an order."""
    for name in ("rf", "eps/cos", "v/cos"):
        for knows in (gaussian, two_modes):
            euler, heun = (
                errors(knows, name, (40, 80, 160), method=method, variables="path") for method in ("euler", "heun")
            )
            np.testing.assert_allclose(orders(euler), 1.0, atol=0.05)
            np.testing.assert_allclose(orders(heun), 2.0, atol=0.05)
    for name in ("edm(-1.20,1.20)", "v/linear"):
        for method in ("euler", "heun"):
            found = errors(two_modes, name, (40, 80, 160), method=method, variables="path")
            assert (orders(found) > 0.8).all() and found[-1] < 0.05


@pytest.mark.parametrize("name", ["rf", "v/cos", "v/linear", "eps/linear", "edm(-1.20,1.20)", "edm(1.20,0.60)"])
@pytest.mark.parametrize("alpha", [0.3, 3.0])
def test_a_shift_in_the_paths_own_variables(name: str, alpha: float) -> None:
    """Levels are shifted relative to the last: the start stays, and no two nodes meet."""
    f = formulation(name)
    plain, moved = (plan(f, SamplerConfig(steps=20, variables="path", shift=shift)) for shift in (1.0, alpha))
    assert moved.start == plain.start and moved.t[0] == plain.t[0]
    last = float(f.last_level())
    part = np.asarray(f.level(plain.t), np.float64)[1:] / last
    expected = last * alpha * part / (1 + (alpha - 1) * part)
    np.testing.assert_allclose(f.level(moved.t)[1:], expected, rtol=1e-3)
    assert (np.diff(moved.t) < 0).all()
    most = {"rf": 0.06, "v/cos": 0.06}.get(name, 0.4)  # others' first quantile is a long way from data
    for method in ("euler", "heun", "dpm++2m"):
        assert errors(gaussian, name, (100,), method=method, variables="path", shift=alpha)[0] < most, method


def test_a_multistep_after_a_step_of_no_length_is_of_first_order() -> None:
    level = np.array([0.9, 0.6, 0.6, 0.3, 0.1, 0.0])
    rows = _multistep(_Nodes(level, *[level] * 6))  # type: ignore[arg-type]
    assert all(np.isfinite([row.by_y, row.by_x0, row.by_previous]).all() for row in rows)
    assert [bool(row.by_previous) for row in rows] == [False, False, False, True, False]


@pytest.mark.parametrize("method", ["euler", "heun", "dpm++2m"])
def test_noise_becomes_data_in_distribution(method: str) -> None:
    """Four thousand draws against the two modes' distribution function, for every path and both kinds of variables."""
    noise = np.random.default_rng(0).standard_normal((4000, 1))
    for name in FAMILIES:
        for variables in ("straight", "path"):
            if (name, variables) == ("edm/rf", "path") or (name, variables) == ("edm/cos", "path"):
                continue  # σ from 1e5 down in equidistant t: its first steps alone would take hundreds
            x0 = draw(two_modes, formulation(name), noise, steps=200, method=method, variables=variables)
            # what the path's end costs of the mean is known exactly, and is not the sampler's error
            start = float(plan(formulation(name), SamplerConfig(steps=2, variables=variables)).start)
            grid = exact(two_modes, np.linspace(-6, 6, 20_001)[:, None], start)[:, 0]
            cdf = lambda x, grid=grid: scipy.stats.norm.cdf(np.interp(x, grid, np.linspace(-6, 6, 20_001)))  # noqa: E731
            assert scipy.stats.kstest(x0[:, 0], cdf).pvalue > 0.01, (name, variables)
            if start == 1:
                assert scipy.stats.kstest(x0[:, 0], mixture).pvalue > 0.01, (name, variables)


def multistep_in_lambda(velocity, z: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """DPM-Solver++(2M), Algorithm 2 of arXiv 2211.01095, written out in the path's a, b and λ = log(a/b); float64."""
    with np.errstate(divide="ignore"):
        lam = np.log(a / b)
    previous = None
    for i in range(len(a) - 1):
        x0 = velocity(z, i)
        h = lam[i + 1] - lam[i]
        first_order = i == 0 or i == len(a) - 2 or not np.isfinite(lam[i - 1])
        d = x0
        if not first_order:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        z = b[i + 1] / b[i] * z - a[i + 1] * np.expm1(-h) * d
        previous = x0
    return z


def test_multistep_is_the_published_one() -> None:
    """In the cosine path's own variables against the algorithm written out, which itself agrees with diffusers'."""
    sigma = 0.999 * np.linspace(1, 0, 21)
    toy = lambda z, i: z - sigma[i] * (np.sin(3 * z) * sigma[i] - 0.3)  # noqa: E731
    # diffusers 0.42.1: DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), 20 steps
    theirs = 1.3740875629
    assert multistep_in_lambda(toy, np.ones(1), 1 - sigma, sigma)[0] == pytest.approx(theirs, rel=1e-5)

    f = formulation("v/cos")
    level = np.linspace(1, 0, 13)
    t = np.arctan2(level, 1 - level) / (np.pi / 2)
    a, b = np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
    a[0] = 0.0

    def posterior(z: np.ndarray, i: int) -> np.ndarray:
        variance = a[i] ** 2 * DEVIATION**2 + b[i] ** 2
        residual = z - a[i] * MEANS
        share = MASSES * np.exp(-(residual**2) / (2 * variance))
        share /= share.sum(1, keepdims=True)
        return np.sum(share * (MEANS + a[i] * DEVIATION**2 * residual / variance), axis=1, keepdims=True)

    expected = multistep_in_lambda(posterior, NOISE, a, b)
    ours = draw(two_modes, f, NOISE, steps=12, method="dpm++2m")
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    assert np.abs(ours - draw(two_modes, f, NOISE, steps=12)).max() > 0.01


def test_steps_by_hand() -> None:
    """dz/ds = s z from 1 over 0.5 to 0: Euler (1 − 0.5 · 1)(1 − 0.5 · 0.5); Heun corrects the first step."""
    network = lambda z, t: t[:, None] * z  # noqa: E731
    f = formulation("rf")

    def run(**config: object) -> tuple[float, float]:
        x0, length = sample(plan(f, SamplerConfig(guidance=1.0, **config)), network, jnp.ones((2, 1)))  # type: ignore[arg-type]
        assert x0.shape == (2, 1) and length.shape == (2,)
        return float(x0[0, 0]), float(length[0])

    assert run(steps=2) == pytest.approx((0.375, 0.5 + 0.125), rel=1e-4)
    first = 1 - 0.25 * (1 * 1 + 0.5 * 0.5)
    assert run(steps=2, method="heun") == pytest.approx((first * 0.75, (1 - first) + 0.25 * first), rel=1e-4)
    assert SamplerConfig(steps=2, method="heun").evaluations == 3
    # shift 3: 1, 0.75, 0
    assert run(steps=2, shift=3.0)[0] == pytest.approx((1 - 0.25 * 1) * (1 - 0.75 * 0.75), rel=1e-4)
    trained = formulation("rf/lognorm(0,1)/shift(3)")  # the shift it was trained under is the sampler's, once
    np.testing.assert_array_equal(plan(trained, SamplerConfig(steps=4)).t, plan(f, SamplerConfig(steps=4, shift=3.0)).t)
    np.testing.assert_array_equal(plan(trained, SamplerConfig(steps=4, shift=1.0)).t, plan(f, SamplerConfig(steps=4)).t)


def test_path_length_is_the_straight_line_where_the_flow_is_straight() -> None:
    """One point of data: every velocity is constant, and the path as long as the way from noise to data."""
    target = jnp.asarray([[0.5, -0.25, 1.0]])
    network = lambda z, t: (z - target) / t[:, None]  # noqa: E731
    noise = jax.random.normal(jax.random.key(0), (5, 3))
    for method in ("euler", "heun", "dpm++2m"):
        for steps in (1, 7):
            config = SamplerConfig(steps=steps, guidance=1.0, method=method)
            x0, length = sample(plan(formulation("rf"), config), network, noise)
            np.testing.assert_allclose(x0, jnp.broadcast_to(target, x0.shape), atol=1e-3)
            np.testing.assert_allclose(length, np.linalg.norm(noise - target, axis=1), rtol=1e-3)


def test_one_loop_serves_every_method_shift_and_formulation() -> None:
    traces = []

    @jax.jit
    def run(table, noise):
        traces.append(1)
        return sample(table, lambda z, t: 0.1 * z, noise)

    base = SamplerConfig(steps=9, guidance=1.0)
    configs = [base, replace(base, method="heun", steps=30), replace(base, method="dpm++2m"), replace(base, shift=3.0)]
    found = {
        (name, config.label): float(run(plan(formulation(name), config, 64), jnp.ones((1, 2)))[0][0, 0])
        for name in FAMILIES
        for config in [*configs, replace(base, variables="path")]
    }
    assert len(traces) == 1 and len(set(found.values())) > len(FAMILIES)
    with pytest.raises(ValueError, match="59 evaluations don't fit"):
        plan(formulation("rf"), configs[1], 58)


def test_timesteps_shift_once_and_the_references_twice() -> None:
    np.testing.assert_allclose(timesteps(4), [1, 0.75, 0.5, 0.25, 0])
    t = np.linspace(1, 0, 11)
    np.testing.assert_allclose(timesteps(10, shift=3.0), 3 * t / (1 + 2 * t), rtol=1e-6)
    # FlowMatchEulerDiscreteScheduler(shift=3.0).set_timesteps(6).sigmas, diffusers 0.42.1
    theirs = [1.0, 0.923342525, 0.818923354, 0.668326675, 0.432225078, 0.008928571, 0.0]
    np.testing.assert_allclose(timesteps(6, shift=3.0, applied="twice"), theirs, rtol=1e-5)
    table = plan(formulation("rf"), SamplerConfig(steps=6, shift=3.0, shift_applied="twice"))
    np.testing.assert_allclose(table.t[1:], theirs[1:6], rtol=1e-5)
    for bad in ({"steps": 0}, {"steps": 5, "shift": 0.0}, {"steps": 5, "shift": float("nan")}):
        with pytest.raises(UserError, match=r"^(steps|shift)="):
            timesteps(**bad)


def test_guidance_its_interval_and_rescale() -> None:
    conditional, unconditional = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[0.5, 3.0]])
    np.testing.assert_allclose(guided(conditional, unconditional, 4.0), [[2.5, -1.0]])
    np.testing.assert_allclose(guided(conditional, unconditional, 1.0), conditional)
    # deviations 0.5 and 1.75: half of the output is scaled by 0.5 / 1.75
    half = np.array([[2.5, -1.0]]) * (0.5 * (0.5 / 1.75) + 0.5)
    np.testing.assert_allclose(guided(conditional, unconditional, 4.0, 0.5), half, rtol=1e-6)
    for interval in ((0.25, 0.65), (0.3, 0.6)):  # nodes on the bounds are within
        table = plan(formulation("rf"), SamplerConfig(steps=10, guidance=5.0, interval=interval), 12)
        np.testing.assert_allclose(table.guidance, [1, 1, 1, 1, 5, 5, 5, 5, 1, 1, 0, 0])
    for low, high in ((0.1, 0.8), (0.1, 0.7), (0.2, 0.9)):
        config = SamplerConfig(steps=10, guidance=5.0, interval=(low, high))
        assert (plan(formulation("rf"), config).guidance == 5).sum() == round(10 * (high - low)) + 1

    def network(z: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        return 0.5 * z, 0.375 * z

    pair = sample(plan(formulation("rf"), SamplerConfig(steps=5, guidance=3.0)), network, jnp.ones((1, 2)))[0]
    alone = sample(
        plan(formulation("rf"), SamplerConfig(steps=5, guidance=1.0)), lambda z, t: 0.75 * z, jnp.ones((1, 2))
    )[0]
    np.testing.assert_allclose(pair, alone, rtol=1e-6)  # 0.375 + 3 (0.5 − 0.375)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"steps": 0}, "steps=0: expected a whole number, 1 or more"),
        ({"steps": 2.5}, "steps=2.5: expected a whole number"),
        ({"guidance": float("nan")}, "guidance=nan: expected a finite number"),
        ({"method": "eular"}, "method='eular': unknown; did you mean 'euler'?"),
        ({"shift": 0.0}, "shift=0.0: expected 0.01 to 100 (1 for none)"),
        ({"shift": 1e-40}, "shift=1e-40: expected 0.01 to 100"),
        ({"shift": 1e6}, "shift=1000000.0: expected 0.01 to 100"),
        ({"shift": True}, "shift=True: expected a number"),
        ({"shift": "abc"}, "shift='abc': expected a number"),
        ({"guidance": None}, "guidance=None: expected a number"),
        ({"rescale": "x"}, "rescale='x': expected a number"),
        ({"interval": ("abc",)}, "interval=('abc',): expected two levels"),
        ({"interval": ("a", "b")}, "interval=('a', 'b'): expected two levels"),
        ({"interval": 0.5}, "interval=0.5: expected two levels"),
        ({"interval": (0.6, 0.4)}, "interval=(0.6, 0.4): expected two levels"),
        ({"rescale": 1.5}, "rescale=1.5: expected 0 to 1"),
        ({"shift_applied": "twice", "variables": "path"}, "use variables='straight'"),
    ],
)
def test_a_sampler_refuses_in_one_line(fields: dict, says: str) -> None:
    with pytest.raises(UserError) as caught:
        SamplerConfig(**fields)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert SamplerConfig(guidance=5).label == SamplerConfig(guidance=5.0).label == "euler-24-g5"
