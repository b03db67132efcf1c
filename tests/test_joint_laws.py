"""Joint laws over N and D: scipy's optimum on the same objective, truth in the intervals, flat directions told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from launch import cli
from scaling.descent import descend, huber
from scaling.errors import TableError
from scaling.law_bootstrap import Problem, bootstrap
from scaling.law_kinds import DATA, JOINT, PARAMETERS
from scaling.laws import Law, fit_law
from scaling.powers import Powers

TRUE = {"E": 0.08, "A": 20.0, "alpha": 0.4, "B": 30.0, "beta": 0.5}


def truth(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return TRUE["E"] + TRUE["A"] * n ** -TRUE["alpha"] + TRUE["B"] * d ** -TRUE["beta"]


def grid(sizes: int = 6, budgets: int = 3, seeds: int = 2) -> tuple[np.ndarray, np.ndarray]:
    n, d, _ = np.meshgrid(np.geomspace(2e5, 7e6, sizes), np.geomspace(1e4, 1e5, budgets), range(seeds), indexing="ij")
    return n.ravel(), d.ravel()


def study(seed: int, size: float = 0.005, **shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, d = grid(**shape)
    return n, d, truth(n, d) * np.exp(np.random.default_rng(seed).normal(0, size, n.size))


@pytest.mark.parametrize("delta", [1e-3, 0.1])
def test_optimum_is_scipys(delta: float) -> None:
    n, d, loss = study(3, size=0.01)
    law = fit_law(JOINT, [n, d], loss, huber=delta, draws=0)

    def objective(theta: np.ndarray) -> float:
        fitted = np.log(
            np.exp(theta[0]) + np.exp(theta[1]) * (n / 1e6) ** -theta[2] + np.exp(theta[3]) * (d / 3e4) ** -theta[4]
        )
        return float(huber(fitted - np.log(loss), delta).sum())

    best = np.inf
    for alpha in (0.2, 0.6):
        for beta in (0.3, 0.8):
            start = np.array([np.log(0.05), np.log(0.1), alpha, np.log(0.15), beta])
            for _ in range(3):  # the simplex starts anew where it has shrunk too early
                found = optimize.minimize(
                    objective, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15, "maxfev": 6000}
                )
                start = found.x
            best = min(best, found.fun)
    assert law.objective <= best * (1 + 1e-6)
    by_hand = law.params["E"] + law.params["A"] * n ** -law.params["alpha"] + law.params["B"] * d ** -law.params["beta"]
    np.testing.assert_allclose(law.predict(n, d), by_hand, rtol=1e-9)


def test_noiseless_laws_come_back() -> None:
    n, d = grid(seeds=1)
    law = fit_law(JOINT, [n, d], truth(n, d), draws=20)
    assert law.params == pytest.approx(TRUE, rel=1e-3)
    assert law.identifiable, law.reasons
    one = fit_law(PARAMETERS, [n], TRUE["E"] + TRUE["A"] * n ** -TRUE["alpha"], draws=0)
    assert one.params == pytest.approx({key: TRUE[key] for key in ("E", "A", "alpha")}, rel=1e-3)
    other = fit_law(DATA, [d], TRUE["B"] * d ** -TRUE["beta"], draws=0, floor=False)
    assert other.params == pytest.approx({"E": 0.0, "B": TRUE["B"], "beta": TRUE["beta"]}, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [1e-3, 0.1])
def test_profiles_cover(delta: float) -> None:
    """The whole of it, 1,000 studies a design: ``python -m benchmarks.laws --coverage``."""
    studies, hits = 60, dict.fromkeys([*TRUE, "law", "run"], 0)
    for seed in range(studies):
        rng = np.random.default_rng(1000 + seed)
        n, d, loss = study(seed)
        law = fit_law(JOINT, [n, d], loss, huber=delta, draws=0)
        assert law.interval.startswith("profile likelihood")  # of means, in one study in twenty
        for name, value in TRUE.items():
            hits[name] += law.intervals[name][0] <= value <= law.intervals[name][1]
        far = (1.5e7, 2e5)
        low, high = law.profile_band(*far)
        hits["law"] += bool(low <= truth(*far) <= high)
        low, high = law.new_run(*far)
        hits["run"] += bool(low <= truth(*far) * np.exp(rng.normal(0, 0.005)) <= high)
    # 95 % nominal: three standard errors of 60 studies are 8 points.
    assert min(hits.values()) >= 0.87 * studies, hits
    assert np.mean(list(hits.values())) <= 0.995 * studies, hits  # and they are not just wide


def test_profile_of_a_straight_line_is_students() -> None:
    """Least squares (a large delta) of a law without floor is linear in theta: the profile is the t interval."""
    rng = np.random.default_rng(0)
    x = np.geomspace(1e12, 1e15, 20)
    loss = 30 * x**-0.15 * np.exp(rng.normal(0, 0.02, 20))
    law = fit_law(PARAMETERS, [x], loss, floor=False, huber=10.0, draws=0)
    line = stats.linregress(np.log(x), np.log(loss))
    reach = stats.t.ppf(0.975, 18) * line.stderr
    assert law.intervals["alpha"] == pytest.approx((-line.slope - reach, -line.slope + reach), rel=2e-3)
    reach = stats.t.ppf(0.975, 18) * line.intercept_stderr
    ends = (np.exp(line.intercept - reach), np.exp(line.intercept + reach))
    assert law.intervals["A"] == pytest.approx(ends, rel=5e-3)
    at = np.log(1e17)
    error = np.sqrt(line.stderr**2 * (at - np.log(x).mean()) ** 2 + np.exp(np.log(line.stderr**2)) * np.var(np.log(x)))
    low, high = law.profile_band(1e17)
    centre = float(law.predict(1e17))
    reach = stats.t.ppf(0.975, 18) * error
    assert (float(low), float(high)) == pytest.approx((centre * np.exp(-reach), centre * np.exp(reach)), rel=2e-3)


def test_a_fixed_ratio_of_tokens_is_not_identifiable() -> None:
    n = np.repeat(np.geomspace(1e5, 1e7, 8), 2)
    loss = truth(n, n / 20) * np.exp(np.random.default_rng(0).normal(0, 0.005, n.size))
    law = fit_law(JOINT, [n, n / 20], loss, draws=0)
    assert not law.identifiable
    assert any("move together" in reason for reason in law.reasons)
    assert law.identification.condition > 300 and law.identification.flat
    few = fit_law(JOINT, list(grid(sizes=2, budgets=4)), truth(*grid(sizes=2, budgets=4)), draws=0)
    assert any("2 different values of N" in reason for reason in few.reasons)


def test_what_is_resampled() -> None:
    """Seeds: only what repeated runs differ by. A misfit of the law is in the bootstrap of runs, not in that."""
    n, d, loss = study(1, seeds=4)
    misfit = loss * np.where(np.isclose(n, n.max()), 1.05, 1.0)
    laws = {how: fit_law(JOINT, [n, d], misfit, resample=how, draws=150) for how in ("runs", "seeds", "residuals")}
    assert [laws[how].bootstrap for how in ("runs", "seeds", "residuals")] == ["groups", "seeds", "residuals"]
    width = {how: np.ptp(law.percentiles["alpha"]) for how, law in laws.items()}
    assert width["seeds"] < 0.7 * width["runs"]
    with pytest.raises(TableError, match="single run"):
        fit_law(JOINT, list(grid(seeds=1)), truth(*grid(seeds=1)), resample="seeds")
    with pytest.raises(TableError, match="expected one of"):
        fit_law(JOINT, [n, d], loss, resample="rows")


def test_seeds_spread_is_unbiased() -> None:
    """Of two seeds a setting, targets vary as new seeds would: by the noise's own variance."""
    n, d, loss = study(0, size=0.01, sizes=30, budgets=10)
    u = np.log(np.stack([n, d], axis=1))
    problem = Problem(Powers(2, True), u - u.mean(0), np.log(loss), np.arange(len(n)), 0.1, u.mean(0), 16)
    samples, how = bootstrap(problem, np.zeros(5), "seeds", 40, np.random.default_rng(0))
    assert how == "seeds" and samples.shape == (40, 5)
    from scaling.law_bootstrap import _seed_targets

    drawn = _seed_targets(problem, 400, np.random.default_rng(0))
    assert drawn.var(axis=0).mean() == pytest.approx(0.01**2, rel=0.15)


def test_a_held_direction_is_held() -> None:
    n, d, loss = study(2)
    u = np.log(np.stack([n, d], axis=1))
    form = Powers(2, True)
    lower, upper = form.box(u - u.mean(0), np.log(loss))
    law = fit_law(JOINT, [n, d], loss, draws=0)
    direction, values = np.array([0.0, 0, 1, -1, 0]), np.array([-0.3, 0.0, 0.2])
    start = np.tile([np.log(0.1), np.log(0.1), 0.4, 0.5, np.log(0.08)], (3, 1))
    theta, objective = descend(
        form, u - u.mean(0), start, np.log(loss)[None], np.ones((1, len(n))), delta=1e-3, lower=lower, upper=upper,
        fixed=(direction, values),
    )  # fmt: skip
    np.testing.assert_allclose(theta @ direction, values, atol=1e-9)
    assert (objective > law.objective).all()


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["fit", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n, d, loss = study(0)
    frame = pd.DataFrame({"params": n, "images": d, "val_loss": loss, "val_loss_0": loss * 2, "val_loss_10": loss})
    path = str(tmp_path / "t.csv")
    frame.to_csv(path, index=False)
    words = (path, "--law", "joint", "--bootstrap", "50")
    code, out, _ = told(capsys, *words, "--at", "N=1e7,D=2e5", "--json")
    found = json.loads(out)
    assert code == 0 and found["law"] == "joint" and set(found["params"]) == set(TRUE)
    assert found["columns"]["N"] == {"column": "params", "unit": "parameters"}
    (at,) = found["at"]
    assert at["law"][0] <= truth(1e7, 2e5) <= at["law"][1] and len(at["beyond"]) == 2
    code, out, _ = told(capsys, *words, "--loss", "val_loss,val_loss_*", "--tokens-per-image", "64", "--json")
    laws = json.loads(out)["laws"]
    assert [law["loss"] for law in laws] == ["val_loss", "val_loss_0", "val_loss_10"]
    assert laws[0]["columns"]["D"]["unit"] == "image tokens (images × 64)"
    # D in tokens: the same law, its scale in other units.
    assert laws[0]["params"]["beta"] == pytest.approx(found["params"]["beta"], rel=1e-5)
    assert laws[0]["params"]["B"] == pytest.approx(found["params"]["B"] * 64 ** laws[0]["params"]["beta"], rel=1e-4)
    assert laws[1]["params"]["E"] == pytest.approx(2 * found["params"]["E"], rel=1e-4)
    code, out, _ = told(capsys, *words, "--out", str(tmp_path / "figures"), "--drop-highest", "1")
    assert code == 0 and "outliers" in out and "N: parameters" in out
    assert (tmp_path / "figures" / "law_val_loss.pdf").exists()
    rows = pd.read_csv(tmp_path / "figures" / "law_val_loss.csv")
    assert rows["dropped"].sum() == 1
    np.testing.assert_allclose(rows["log_residual"], np.log(rows["L"] / rows["predicted"]))


@pytest.mark.parametrize(
    ("words", "told_of"),
    [
        (("--at", "N=1e7"), "D is missing"),
        (("--at", "N=1e7,D=-1"), "above 0"),
        (("--at", "x"), "expected C="),
        (("--n", "parms"), "did you mean 'params'"),
        (("--loss", "nothing_*"), "matches none"),
        (("--huber", "0"), "above 0"),
        (("--starts", "0"), "starts=0"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told_of: str
) -> None:
    n, d, loss = study(0)
    pd.DataFrame({"params": n, "images": d, "val_loss": loss}).to_csv(tmp_path / "t.csv", index=False)
    code, _, err = told(capsys, str(tmp_path / "t.csv"), "--law", "joint", "--bootstrap", "0", *words)
    assert code == 2 and told_of in err and err.count("\n") == 1


def test_law_type() -> None:
    """Intervals are the bootstrap's where rows share a group."""
    n, d, loss = study(0)
    law = fit_law(JOINT, [n, d], loss, groups=np.arange(len(n)) // 2, draws=60)
    assert isinstance(law, Law) and law.interval == "bootstrap of groups" and law.intervals == law.percentiles
