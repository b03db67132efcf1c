"""Laws at their limits: where data tell nothing of a parameter, at the ends of what it can be, with few or odd rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from launch import cli
from scaling import law_bootstrap
from scaling.descent import descend, huber
from scaling.errors import TableError
from scaling.lack import lack_of_fit
from scaling.law_bootstrap import left_out_residuals
from scaling.law_kinds import JOINT, PARAMETERS, POWER
from scaling.laws import Law, fit_law
from scaling.powers import Powers

N, D = (
    column.ravel()
    for column in np.meshgrid(np.geomspace(2e5, 7e6, 6), np.geomspace(1e4, 1e5, 3).repeat(2), indexing="ij")
)
NOISE = np.random.default_rng(1).normal(0, 0.005, N.size)


def joint(scale: float = 20.0, alpha: float = 0.4, floor: float = 0.08, delta: float = 0.1) -> Law:
    loss = (floor + scale * N**-alpha + 30 * D**-0.5) * np.exp(NOISE)
    return fit_law(JOINT, [N, D], loss, huber=delta, draws=0)


def profile(law: Law, name: str, value: float) -> float:
    """SciPy's least objective where ``name`` has this value, from many starts, in the same box."""
    problem = law._problem
    j = [*law.kind.scales, *law.kind.exponents, law.kind.floor].index(name)
    held = value if name in law.kind.exponents else np.log(value)
    lower, upper = (np.delete(ends, j) for ends in (problem.lower, problem.upper))

    def objective(rest: np.ndarray) -> tuple[float, np.ndarray]:
        theta = np.insert(rest, j, held)[None]
        residual = problem.form.log_loss(theta, problem.u)[0] - problem.target
        slope = np.clip(residual, -problem.delta, problem.delta) @ problem.form.jacobian(theta, problem.u)[0]
        return 1e4 * float(huber(residual, problem.delta).sum()), 1e4 * np.delete(slope, j)

    rng, best = np.random.default_rng(0), np.inf
    for size in (0.0, 0.3, 0.3, 1.0, 1.0, 2.0, 2.0):
        start = np.clip(np.delete(law._theta, j) + rng.normal(0, size, len(lower)), lower, upper)
        options = {"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-12}
        bounds = list(zip(lower, upper, strict=True))
        found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        best = min(best, found.fun / 1e4)
    return float(best)


def excluded(law: Law, name: str, value: float) -> float:
    """By how much the objective rises there, as a share of what excludes a value: of least squares, by Student's t."""
    freedom = law.rows - law._problem.form.size
    threshold = law.objective / freedom * stats.t.ppf(0.975, freedom) ** 2
    return (profile(law, name, value) - law.objective) / float(threshold)


def test_what_tells_nothing_is_open() -> None:
    """No trend over N at all: no exponent of it is excluded, and none is told."""
    law = joint(scale=0.0)
    assert law.intervals["alpha"] == (0.0, np.inf) and law.intervals["A"][0] == 0.0
    assert any("of alpha holds zero" in reason for reason in law.reasons)
    for value in (0.05, 0.5, 2.0, 6.0):
        assert excluded(law, "alpha", value) < 1
    low, high = law.intervals["beta"]
    assert low < 0.5 < high and high - low < 0.05


@pytest.mark.parametrize("delta", [0.1, 1e-3])
def test_a_floor_that_is_not_there(delta: float) -> None:
    law = joint(floor=0.0, delta=delta)
    low, high = law.intervals["E"]
    assert low == 0.0 and high < 0.015
    assert not law.identifiable
    if delta == 0.1:
        assert excluded(law, "E", 1e-6) < 1
        assert excluded(law, "E", high) == pytest.approx(1, abs=0.03)
        for name in ("alpha", "beta"):
            assert [excluded(law, name, end) for end in law.intervals[name]] == pytest.approx([1, 1], abs=0.02)


def test_an_exponent_near_zero() -> None:
    law = joint(scale=0.2, alpha=0.03)
    low, high = law.intervals["alpha"]
    assert low < 0.03 < high
    assert [excluded(law, "alpha", end) for end in (low, high)] == pytest.approx([1, 1], abs=0.05)


def test_few_rows_with_a_small_delta_have_intervals() -> None:
    """Half of the residuals are zero, as the fit goes through as many points as it has parameters."""
    n, d = (column.ravel() for column in np.meshgrid(np.geomspace(2e5, 7e6, 3), np.geomspace(1e4, 1e5, 3)))
    loss = (0.08 + 20 * n**-0.4 + 30 * d**-0.5) * np.exp(NOISE[:9])
    law = fit_law(JOINT, [n, d], loss, draws=0)
    for name, value in {"alpha": 0.4, "beta": 0.5}.items():
        low, high = law.intervals[name]
        assert 0 < low < value < high < 1.5


@pytest.mark.parametrize("scale", [1e5, 1.0, 1e-7])
def test_units_do_not_matter(scale: float) -> None:
    """Losses of any size, N of 1e10 and D of 1e13: the same law in other units."""
    loss = (0.08 + 20 * N**-0.4 + 30 * D**-0.5) * np.exp(NOISE)
    one, other = (fit_law(JOINT, ends, values, draws=0) for ends, values in (
        ([N, D], loss), ([N * 1e4, D * 1e8], loss * scale)))  # fmt: skip
    for name, power in {"E": 1.0, "alpha": 0.0, "beta": 0.0}.items():
        assert other.params[name] == pytest.approx(one.params[name] * scale**power, rel=1e-3)
        assert other.intervals[name] == pytest.approx([end * scale**power for end in one.intervals[name]], rel=1e-3)
    for found, wanted in zip(other.new_run(1e11, 1e13), one.new_run(1e7, 1e5), strict=True):
        assert found == pytest.approx(wanted * scale, rel=1e-3)


def test_an_exact_table() -> None:
    law = fit_law(PARAMETERS, [N[::6]], 0.08 + 20 * N[::6] ** -0.4, draws=0)
    low, high = law.intervals["alpha"]
    assert low < 0.4 < high and high - low < 1e-3
    assert law.run_noise < 1e-4


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0, -1.0])
def test_values_that_have_no_logarithm_are_refused(wrong: float) -> None:
    loss = np.linspace(1, 2, 12)
    with pytest.raises(TableError, match=r"loss=.* \(row 3\): expected a finite number above 0"):
        fit_law(PARAMETERS, [np.geomspace(1, 9, 12)], np.where(np.arange(12) == 2, wrong, loss), draws=0)
    with pytest.raises(TableError, match="N="):
        fit_law(PARAMETERS, [np.where(np.arange(12) == 2, wrong, np.geomspace(1, 9, 12))], loss, draws=0)


def test_grouped_rows_have_the_bootstrap_s_band() -> None:
    law = fit_law(PARAMETERS, [N], 0.08 + 20 * N**-0.4 * np.exp(NOISE), groups=np.arange(N.size) // 3, draws=60)
    for ends in zip(law.profile_band(1e7), law.band(1e7), strict=True):
        assert ends[0] == ends[1]
    low, high = law.new_run(1e7)
    assert low < law.band(1e7)[0] and high > law.band(1e7)[1]


def test_a_held_value_may_be_at_the_end_of_the_box() -> None:
    """There others still find their least: SciPy's, with the exponent held at zero."""
    law = joint()
    problem = law._problem
    form = Powers(2, True)
    direction = np.eye(5)[2]
    theta, objective = descend(
        form, problem.u, law._theta[None], problem.target[None], np.ones((1, N.size)), delta=0.1, lower=problem.lower,
        upper=problem.upper, fixed=(direction, np.zeros(1)),
    )  # fmt: skip
    assert theta[0, 2] == pytest.approx(0.0, abs=1e-12)
    assert objective[0] == pytest.approx(profile(law, "alpha", 0.0), rel=1e-4)


def test_fits_run_on_the_host_and_leave_the_process_as_it_is() -> None:
    """Fits use the first processor and 64 bits; a process with another device and 32 bits keeps both."""
    script = """
import jax, jax.numpy as jnp, numpy as np
other = jax.devices()[1]
jax.config.update("jax_default_device", other)
from scaling import descent
program, devices = descent._program, []
def spied(form):
    def run(*args):
        found = program(form)(*args)
        devices.append(found[0].devices())
        assert found[0].dtype == jnp.float64
        return found
    return run
descent._program = spied
from scaling.law_kinds import PARAMETERS
from scaling.laws import fit_law
n = np.geomspace(1e5, 1e7, 8)
fit_law(PARAMETERS, [n], 20 * n**-0.4, floor=False, draws=0)
assert devices and all(found == {jax.devices("cpu")[0]} for found in devices), devices
kept = jnp.ones(2)
assert kept.devices() == {other} and kept.dtype == jnp.float32
"""
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"
    environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_command_on_odd_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that are not done, a run that is there twice, an interval that is open."""
    loss = (0.08 + 30 * D**-0.5) * np.exp(NOISE)
    table = pd.DataFrame({"params": N, "images": D, "val_loss": loss})
    table.loc[[4, 9], "val_loss"] = np.nan
    table.to_csv(tmp_path / "t.csv", index=False)
    words = ["fit", str(tmp_path / "t.csv"), "--law", "joint", "--bootstrap", "0"]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert "val_loss=blank in 2 of 36 rows (the first is row 5)" in err and "--where 'val_loss>0'" in err
    assert cli.main([*words, "--where", "val_loss>0"]) == 0
    out = capsys.readouterr().out
    assert "alpha = " in out and "[0, open]" in out and "34 rows" in out and "repeat" not in out
    pd.concat([table, table[:3]]).to_csv(tmp_path / "t.csv", index=False)
    assert cli.main([*words, "--where", "val_loss>0"]) == 0
    assert "3 rows repeat another's params, images, val_loss" in capsys.readouterr().out


def settings(seeds: int, seed: int, misfit: float = 0.04, luck: float = 0.014) -> tuple[np.ndarray, ...]:
    """(N, D, loss) of 6 × 3 settings whose means miss a law by ``misfit``, each with ``seeds`` runs."""
    rng = np.random.default_rng(seed)
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(2e5, 7e6, 6), np.geomspace(1e4, 1e5, 3)))
    mean = np.log(0.08 + 20 * n**-0.4 + 30 * d**-0.5) + misfit * rng.normal(size=18)
    loss = np.concatenate([np.exp(mean + luck * rng.normal(size=18)) for _ in range(seeds)])
    return np.tile(n, seeds), np.tile(d, seeds), loss


@pytest.mark.slow
def test_more_seeds_do_not_make_a_law_surer_that_misses_settings() -> None:
    """With four seeds the parameters are held as often as with one, and a run's noise holds misfit and luck."""
    held = []
    for study in range(16):
        n, d, loss = settings(4, study)
        law = fit_law(JOINT, [n, d], loss, draws=0)
        assert "settings' means" in law.interval and law.rows == 72 and law.groups == 18
        held += [
            law.intervals[name][0] <= value <= law.intervals[name][1] for name, value in (("E", 0.08), ("alpha", 0.4))
        ]
        assert 0.02 < law.run_noise < 0.12
    assert np.mean(held) > 0.84  # of 32; with seeds as rows it was 0.68
    n, d, loss = settings(4, 0, misfit=0.0)
    assert fit_law(JOINT, [n, d], loss, draws=0).interval == "profile likelihood"


def test_what_is_left_out_is_fitted_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows and of runs of three checkpoints; at once, and in parts; without what no law is left by."""
    loss = (0.08 + 20 * N**-0.4 + 30 * D**-0.5) * np.exp(NOISE)
    for groups in (None, np.arange(len(N)) // 3):
        law = fit_law(JOINT, [N, D], loss, huber=0.1, draws=0, groups=groups)
        problem, member = law._problem, np.arange(len(N)) if groups is None else groups
        found = left_out_residuals(problem, law._theta)
        for group in (0, 5, 11):
            out = member == group
            rest = fit_law(JOINT, [N[~out], D[~out]], loss[~out], huber=0.1, draws=0, groups=member[~out])
            np.testing.assert_allclose(found[out], np.log(loss[out] / rest.predict(N[out], D[out])), atol=1e-6)
        monkeypatch.setattr(law_bootstrap, "_MOST_NUMBERS", 5 * len(N))
        np.testing.assert_allclose(left_out_residuals(problem, law._theta), found, atol=1e-9)
        monkeypatch.undo()
    # Two sizes, one of which a single group has: without it no exponent is left.
    n, d = np.array([1e5] * 6 + [1e6] * 2), np.geomspace(1e4, 1e5, 8)
    law = fit_law(JOINT, [n, d], 2 + n**-0.3 + d**-0.3, floor=False, draws=0, groups=np.array([0, 1, 2, 3, 4, 5, 6, 6]))
    own = np.log(2 + n**-0.3 + d**-0.3) - np.log(law.predict(n, d))
    assert len(left_out_residuals(law._problem, law._theta)) == len(own)


def test_very_many_rows() -> None:
    """Their noise is told without a fit for each; more than a fit takes are refused."""
    rng = np.random.default_rng(0)
    compute = np.exp(rng.uniform(30, 50, 1500))
    law = fit_law(POWER, [compute], 40 * compute**-0.1 * np.exp(rng.normal(0, 0.02, 1500)), floor=False, draws=0)
    assert law.run_noise == pytest.approx(0.02, rel=0.06)
    with pytest.raises(TableError, match="rows=20,001: expected 20,000 or fewer"):
        fit_law(POWER, [np.arange(1.0, 20_002)], np.ones(20_001))


def test_lack_of_fit_is_the_classical_test() -> None:
    """A line through 5 places with 3 repetitions each, against the sums of squares by hand and F's own distribution."""
    x = np.repeat(np.arange(5.0), 3)
    found = []
    for seed in range(300):
        y = 1 + 2 * x + np.random.default_rng(seed).normal(size=15)
        residual = y - np.polyval(np.polyfit(x, y, 1), x)
        lack = lack_of_fit(x[:, None], residual, 2)
        assert lack is not None
        mean = residual.reshape(5, 3).mean(axis=1)
        within = ((residual.reshape(5, 3) - mean[:, None]) ** 2).sum() / 10
        assert lack.f == pytest.approx((3 * mean**2).sum() / 3 / within)
        found.append(lack.p)
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert lack_of_fit(np.arange(5.0)[:, None], np.zeros(5), 2) is None  # nothing is repeated


def test_off_a_fixed_ratio_a_band_holds_the_law_of_exchanged_exponents() -> None:
    """D = 20·N: N and D can be exchanged at no cost. Off the ray the band holds the truth all the same, and is told."""
    held = []
    for seed in range(8):
        n = np.geomspace(1e7, 1e10, 12)
        loss = (1.7 + 400 * n**-0.34 + 2000 * (20 * n) ** -0.28) * np.exp(
            0.003 * np.random.default_rng(seed).normal(size=12)
        )
        law = fit_law(JOINT, [n, 20 * n], loss, draws=0)
        for point in ((1e9, 2e8), (1e7, 2e10)):
            low, high = law.profile_band(*point)
            held.append(low <= 1.7 + 400 * point[0] ** -0.34 + 2000 * point[1] ** -0.28 <= high)
        assert law.beyond(1e9, 2e8) == {"D/N": pytest.approx(100)} or "D" in law.beyond(1e9, 2e8)
    assert np.mean(held) >= 0.85
    assert law.beyond(1e9, 2e10) == {}
