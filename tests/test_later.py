"""What came after the paper's 61: resolution shift, min-SNR weights, histograms, and how all of them are named."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from mmdit_jax.diffusion import LATER, formulation, histogram, resolution_shift
from mmdit_jax.errors import UserError

T = np.linspace(0.01, 0.99, 99).astype(np.float32)
DRAWS = 40_000


@jax.jit
def _drawn(f, key):
    t = f.sample_t(key, (DRAWS,))
    return t, f.log_snr(t)


def _draw(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    t, lam = _drawn(formulation(name), jax.random.key(seed))
    return np.asarray(t, np.float64), np.asarray(lam, np.float64)


def _is(sample: np.ndarray, cdf) -> bool:
    return scipy.stats.kstest(sample, cdf).pvalue > 0.01


# ---- shift -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "s", "alpha"), [(0.0, 1.0, 3.0), (-0.5, 0.6, 0.4), (1.0, 1.8, 1.73)])
def test_a_shifted_lognorm_is_a_lognorm(m: float, s: float, alpha: float) -> None:
    """rf/lognorm(m,s)/shift(α) is lognorm(m + log α, s)."""
    f = formulation(f"rf/lognorm({m},{s})/shift({alpha})")
    t, lam = _draw(f.name, 1)
    assert _is(np.log(t) - np.log1p(-t), scipy.stats.norm(m + np.log(alpha), s).cdf)
    assert _is(lam, scipy.stats.norm(-2 * (m + np.log(alpha)), 2 * s).cdf)
    grid = T.astype(np.float64)
    logit = np.log(grid) - np.log1p(-grid)
    density = scipy.stats.norm.pdf(logit, m + np.log(alpha), s) / (grid * (1 - grid))
    np.testing.assert_allclose(f.density(T), density, rtol=1e-4, atol=1e-10)
    plain = formulation(f"rf/lognorm({m + np.log(alpha)},{s})")
    np.testing.assert_allclose(f.effective_weight(T), plain.effective_weight(T), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(_draw(plain.name, 1)[0], t, rtol=1e-3)  # draw by draw


@pytest.mark.parametrize("alpha", [0.25, 1.5, 3.0, 20.0])
def test_shifted_uniform_times(alpha: float) -> None:
    """Of t = αu/(1 + (α − 1)u): u = t/(α − (α − 1)t), du/dt = α/(α − (α − 1)t)²."""
    f, grid = formulation(f"rf/shift({alpha})"), T.astype(np.float64)
    assert _is(_draw(f.name, 2)[0], lambda t: t / (alpha - (alpha - 1) * t))
    np.testing.assert_allclose(f.density(T), alpha / (alpha - (alpha - 1) * grid) ** 2, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("edm(-1.2,1.2)", scipy.stats.norm(2.4, 2.4)),
        ("edm(1.2,1.8)", scipy.stats.norm(-2.4, 3.6)),
        ("edm/rf", scipy.stats.logistic(scale=2)),
        ("edm/cos", scipy.stats.hypsecant(scale=2)),
        ("v/cos", scipy.stats.hypsecant(scale=2)),
        ("eps/cos", scipy.stats.hypsecant(scale=2)),
        ("rf/cosmap", scipy.stats.hypsecant(scale=2)),
    ],
)
@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_a_shift_lowers_log_snr_by_twice_its_logarithm(name: str, law, alpha: float) -> None:
    """On any path; so edm(Pm,Ps)/shift(α) is edm(Pm + log α, Ps) in log-SNR. The density is that of the draws."""
    f = formulation(f"{name}/shift({alpha})")
    t, lam = _draw(f.name, 3)
    assert _is(lam + 2 * np.log(alpha), law.cdf)
    # p(t) = p(λ) |λ'|
    lam_at, slope = np.asarray(f.log_snr(T), np.float64), np.asarray(f.log_snr_slope(T), np.float64)
    np.testing.assert_allclose(f.density(T), -slope * law.pdf(lam_at + 2 * np.log(alpha)), rtol=1e-3)
    _density_is_that_of(f, t)


def _density_is_that_of(f, t: np.ndarray) -> None:
    """It integrates to 1, and over each of 20 bins to the share of draws there."""
    grid = np.union1d(scipy.stats.logistic.cdf(np.linspace(-11.5, 11.5, 20_001)), np.linspace(0, 1, 21))
    density = np.asarray(f.density(grid), np.float64)
    mass = scipy.integrate.cumulative_trapezoid(density, grid, initial=0)
    assert mass[-1] == pytest.approx(1, abs=1e-3)
    share = np.diff(mass[np.searchsorted(grid, np.linspace(0, 1, 21))])
    counts, _ = np.histogram(t, 20, (0, 1))
    error = np.sqrt(np.maximum(share * t.size, 1))
    assert (np.abs(counts - share * t.size) < 4.5 * error + 1e-3 * t.size).all()


@pytest.mark.parametrize("name", ["rf/mode(1.29)/shift(3)", "rf/histogram(1,0,3,2)/shift(3)", "rf/lognorm(1.9,1)"])
def test_the_density_is_that_of_the_draws(name: str) -> None:
    _density_is_that_of(formulation(name), _draw(name, 4)[0])


@pytest.mark.parametrize("name", ["rf", "rf/lognorm(0,1)", "rf/mode(1.29)", "edm(0,1)", "edm/cos", "v/cos", "v/linear"])
def test_a_shift_by_one_changes_no_bit(name: str) -> None:
    f, shifted = formulation(name), formulation(f"{name}/shift(1)")
    assert f.name == shifted.name
    for before, after in zip(jax.tree.leaves(f), jax.tree.leaves(shifted), strict=True):
        np.testing.assert_array_equal(before, after)
    key, evaluate = jax.random.key(0), jax.jit(lambda f: (f.sample_t(key, (100,)), f.density(T)))
    unshifted = np.asarray(jax.random.uniform(key, (100,)))
    if f.path != "rf" or name == "rf":
        np.testing.assert_array_equal(evaluate(shifted)[0], np.clip(unshifted, np.float32(1e-5), np.float32(1 - 1e-5)))
        np.testing.assert_array_equal(evaluate(shifted)[1], 1)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("edm(-1.2,0.6)/shift(10)", "0.49 <= alpha <= 2.02, or 'edm(1.1026,0.60)'"),
        ("edm(-1.2,0.6)/shift(0.4)", "0.49 <= alpha <= 2.02, or 'edm(-2.1163,0.60)'"),
        ("edm(0,1.2)/shift(4.2)", "0.24 <= alpha <= 4.09, or 'edm(1.4351,1.20)'"),
    ],
)
def test_a_shift_that_would_pile_times_up_is_refused(name: str, other: str) -> None:
    with pytest.raises(UserError, match="more than a thousandth of the times would pile up") as caught:
        formulation(name)
    assert other in str(caught.value) and "\n" not in str(caught.value)
    end = formulation("edm(-1.2,0.6)/shift(2)")
    t = _draw(end.name, 5)[0]
    assert 5e-5 < np.mean(t >= 1 - 1.1e-5) < 2e-3
    _density_is_that_of(end, t)


# ---- min-SNR ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 5.0])
@pytest.mark.parametrize("name", ["eps/cos", "eps/linear", "v/cos", "v/linear", "rf", "edm(-1.2,1.2)", "edm/rf"])
def test_min_snr_weights(name: str, gamma: float) -> None:
    """min(SNR,γ)/SNR of ε, /(SNR + 1) of v, min((1−t)², γt²) of rf, min(SNR,γ) c_out² of F (Hang et al. 2023)."""
    f = formulation(f"{name}/minsnr({gamma})")
    a, b = np.asarray(f.a(T), np.float64), np.asarray(f.b(T), np.float64)
    snr, t = (a / b) ** 2, T.astype(np.float64)
    capped = np.minimum(snr, gamma)
    expected = {
        "eps": capped / snr,
        "v": capped / (snr + 1),
        "velocity": np.minimum((1 - t) ** 2, gamma * t**2),
        "F": capped * (0.5 * b) ** 2 / (b**2 + 0.25),
    }[f.prediction]
    np.testing.assert_allclose(f.weight(T), expected, rtol=2e-4)
    # per unit of ‖ε_Θ − ε‖², which is SNR ‖x0_Θ − x0‖², it is the same whatever is predicted
    np.testing.assert_allclose(f.effective_weight(T), capped / snr, rtol=2e-4)
    np.testing.assert_array_equal(f.density(T), 1)
    np.testing.assert_array_equal(
        f.sample_t(jax.random.key(1), (9,)), formulation(name).sample_t(jax.random.key(1), (9,))
    )


def test_min_snr_leaves_the_draws_of_any_density() -> None:
    f = formulation("rf/lognorm(0,1)/shift(3)/minsnr(5)")
    t, logit = T.astype(np.float64), np.log(T.astype(np.float64) / (1 - T.astype(np.float64)))
    density = scipy.stats.norm.pdf(logit, np.log(3), 1) / (t * (1 - t))
    np.testing.assert_allclose(f.effective_weight(T), density * np.minimum(1, 5 * (t / (1 - t)) ** 2), rtol=1e-4)


# ---- histograms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "masses",
    [
        (1.0,),
        (1.0, 2.0, 1.0),
        (0.0, 1.0, 0.0, 0.0, 3.0, 0.0),
        (1e-6, 1.0),
        (1e6, 2e6 / 3, 1e6),
        (1e-35, 3e-35),
        tuple(np.random.default_rng(0).uniform(size=64).round(4) * (np.arange(64) % 5 > 0)),
    ],
)
def test_a_histogram_is_constant_on_its_bins(masses: tuple[float, ...]) -> None:
    f = formulation(f"rf/histogram({','.join(map(str, masses))})")
    bins, share = len(masses), np.array(masses) / np.sum(masses)
    edges, below = np.arange(bins + 1) / bins, np.concatenate([[0], np.cumsum(share)])
    t = _draw(f.name, 6)[0]
    assert _is(t, lambda x: np.interp(x, edges, below))
    empty = share[np.minimum((t * bins).astype(int), bins - 1)] == 0
    assert not empty.any()
    grid = (np.arange(10 * bins) + 0.5) / (10 * bins)
    np.testing.assert_allclose(f.density(grid), np.repeat(share, 10) * bins, rtol=1e-5)
    assert formulation(f.name).name == f.name


def test_a_histogram_of_a_function() -> None:
    law = scipy.stats.beta(2, 3)
    for bins in (1, 8, 64):
        f = formulation(histogram(law.pdf, bins))
        share = np.diff(law.cdf(np.arange(bins + 1) / bins))
        np.testing.assert_allclose(f.density((np.arange(bins) + 0.5) / bins), share * bins, rtol=2e-3)
    assert _is(_draw(f.name, 7)[0], law.cdf)  # 64 bins and 40,000 draws do not tell
    assert histogram(lambda t: 7.0 * (t < 0.5), 4) == "rf/histogram(2.00,2.00,0.00,0.00)"
    # what takes one number at a time, and whole numbers that are not ints
    assert histogram(lambda t: 3.0 if t < 0.5 else 1.0, 2) == "rf/histogram(1.50,0.50)"
    assert histogram(lambda t: math.exp(-t), 8) == histogram(lambda t: np.exp(-t), np.int64(8))
    assert histogram(lambda t: 1.0, 2) == "rf/histogram(1.00,1.00)"


def test_a_histogram_of_masses() -> None:
    counts, _ = np.histogram([0.1, 0.2, 0.6, 0.7, 0.8, 0.9], 4, (0, 1))
    name = "rf/histogram(1.333,0.00,1.333,1.333)"
    assert histogram(counts) == histogram(list(counts), 4) == histogram(counts / 1e300 / 1e7) == name
    assert histogram(counts * 1e307) == histogram(tuple(counts * 1e-30), np.int64(4)) == name


@pytest.mark.parametrize(
    ("density", "bins", "says"),
    [
        (lambda t: t, 0, "bins=0: expected a whole number, 1 to 64"),
        (lambda t: t, 65, "bins=65: expected a whole number, 1 to 64"),
        (lambda t: np.where(t > 0.5, np.nan, 1), 8, "density: expected finite values"),
        (lambda t: 0.5 - t, 8, "density: expected finite values, none negative"),
        (lambda t: 0 * t, 8, "density: expected finite values, none negative and not all 0"),
        (lambda t: t, 2.5, "bins=2.5: expected a whole number, 1 to 64"),
        (lambda t: t, True, "bins=True: expected a whole number, 1 to 64"),
        (lambda t: None, 8, "density: expected finite values"),
        (lambda t: (1.0, t), 8, "density: expected a number for each t"),
        (lambda t: math.log(-t), 8, "density: raised ValueError (math domain error); expected a function of t"),
        (lambda: 1.0, 8, "density: raised TypeError"),
        ([1.0, -1.0], None, "density: expected finite values, none negative and not all 0, one for each bin"),
        ([0, 0], None, "density: expected finite values, none negative and not all 0, one for each bin"),
        ([1.0, 2.0], 3, "bins=3: expected 2, one a mass, or none"),
        ([], None, "density: expected a function of t, or 1 to 64 masses"),
        (np.ones(65), None, "density: expected a function of t, or 1 to 64 masses"),
        (np.ones((2, 2)), None, "density: expected a function of t, or 1 to 64 masses"),
        ("rf", None, "density: expected a function of t, or 1 to 64 masses"),
    ],
)
def test_what_is_no_density_is_refused(density, bins: int, says: str) -> None:
    with pytest.raises(UserError) as caught:
        histogram(density, bins)
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_round_trip() -> None:
    assert [formulation(name).name for name in LATER] == list(LATER)
    for form in (
        "rf",
        "rf/lognorm(0.50,0.60)",
        "rf/mode(-0.54)",
        "rf/cosmap",
        "rf/histogram(1.00,0.00)",
        "edm/rf",
        "v/cos",
    ):
        for first, second in itertools.permutations(("/shift(3.00)", "/minsnr(5.00)")):
            f = formulation(form + first + second)
            assert f.name == f"{form}/shift(3.00)/minsnr(5.00)"
            assert (float(f.shift), float(f.snr_cap)) == (3.0, 5.0)
            assert formulation(f.name).name == f.name
        assert formulation(f"{form} / shift( 3 )").name == f"{form}/shift(3.00)"
        assert formulation(f"{form}/minsnr(0.125)").name == f"{form}/minsnr(0.125)"
    assert formulation("rf/adaptive(-1)/minsnr(5)").name == "rf/adaptive(-1.00)/minsnr(5.00)"
    assert jax.tree.map(jnp.asarray, formulation("rf/shift(3)/minsnr(5)")).name == "rf/shift(3.00)/minsnr(5.00)"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rf/lognormal(0.5,1)", "did you mean 'rf/lognorm(0.50,1.00)', 'rf/"),
        ("rf/lognormal(0,1)/shift(3)", "did you mean 'rf/lognorm(0.00,1.00)/shift(3.00)', "),
        ("rf/shif(2)", "did you mean 'rf/shift(2.00)', "),
        ("rf/lognorm(0,1)/shift", "did you mean 'rf/lognorm(0.00,1.00)/shift(3.00)', "),
        ("v/cos/min_snr(5)/shift(3)", "did you mean 'v/cos/shift(3.00)/minsnr(5.00)', "),
        ("rf/mode(2.0)", "s=2 is out of range: use -1 <= s <= 1.7519"),
        ("rf/shift(0)", "alpha=0 is out of range: use 0.01 <= alpha <= 100"),
        ("rf/shift(1e30)", "alpha=1e+30 is out of range: use 0.01 <= alpha <= 100"),
        ("rf/shift()", "alpha=not a number is out of range"),
        ("rf/shift(2)/shift(2)", "shift is there twice: give it once"),
        ("rf/shift(2)/minsnr(1)/shift(2)", "shift is there twice: give it once"),
        ("v/linear/shift(3)", "use shift(1), or another path"),
        ("rf/adaptive(-1)/shift(3)", "use it without shift"),
        ("rf/adaptive(-5)", "p=-5 is out of range: use -4 <= p <= 4"),
        ("v/cos/minsnr(0)", "gamma=0 is out of range: use gamma > 0"),
        ("v/cos/minsnr(inf)", "gamma=inf is out of range: use gamma > 0 and finite"),
        ("rf/lognorm(0,1e-42)", "s=1e-42 is out of range: use s > 0"),
        ("rf/lognorm(0,1e300)", "s=1e+300 is out of range: use s > 0 and finite"),
        (f"rf/histogram({','.join('1' * 65)})", "65 numbers: expected 1 to 64"),
        ("rf/histogram(1,-1)", "mass=-1 is out of range: use 0 <= mass <= 1000000"),
        ("rf/histogram(1e38,1e38)", "mass=1e+38 is out of range: use 0 <= mass <= 1000000"),
        ("rf/histogram(1,nan)", "mass=nan is out of range: use 0 <= mass <= 1000000"),
        ("rf/histogram(0,0)", "every mass is 0: use at least one above 0"),
        ("rf/histogram(1e-50)", "every mass is 0: use at least one above 0"),
        ("rf/histogram()", "did you mean 'rf/histogram(1.00,2.00,1.00)'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_other_names_are_refused_in_one_line(name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        formulation(name)
    message = str(caught.value)
    assert message.startswith(f"formulation={name!r}: ") and says in message and "\n" not in message
    if "did you mean" in message:
        proposals = message.split("did you mean ")[1].split("? (forms")[0].replace(" or ", ", ").split(", ")
        names = [proposal.strip("'") for proposal in proposals]
        assert len(names) == len(set(names)) == 3
        assert [formulation(proposal).name for proposal in names] == names


def test_resolution_shift() -> None:
    assert resolution_shift(1024 * 1024, 256 * 256) == 4
    assert resolution_shift(256 * 256, 1024 * 1024) == 0.25
    assert resolution_shift(512 * 768, 512 * 768) == 1
    for pixels, base, says in ((0, 1, "pixels=0"), (1, -5, "base_pixels=-5"), (float("nan"), 1, "pixels=nan")):
        with pytest.raises(UserError, match=f"^{says}: expected 1 or more$"):
            resolution_shift(pixels, base)
